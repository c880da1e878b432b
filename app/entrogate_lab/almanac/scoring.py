"""Judging a run: was it right, which calls were needless or repeated, and why it failed."""

import string
from dataclasses import dataclass

from entrogate_lab.almanac.agent import Run
from entrogate_lab.almanac.tasks import Task
from entrogate_lab.almanac.tools import call_key
from entrogate_lab.almanac.world import World

CAUSES = (
    "turns_ran_out",
    "misled",
    "wrong_hop",
    "answered_without_evidence",
    "misremembered",
    "misread",
    "malformed",
)
"""Why a run failed, in the order in which causes are looked for (`malformed` comes first):

- `turns_ran_out`: no answer by the last turn.
- `misled`: the answer is what a rumour, a disputed page or a similarly named place said.
- `wrong_hop`: a call on a fact that is not on the chain.
- `answered_without_evidence`: answered before the needed calls were made.
- `misremembered`: the model knows every fact of the chain, and answered something else.
- `misread`: everything needed was in view, and the answer is something else.
- `malformed`: the last response was cut off or empty.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCall:
    """A call that was made. Needless: not the first to bring a fact that the chain needs and the
    model does not know. Repeated: name and arguments equal an earlier call's."""

    name: str
    arguments: dict[str, object]
    needless: bool
    repeated: bool


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.casefold().split()).strip(string.punctuation + " ")


def is_correct(answer: str | None, gold: str) -> bool:
    """Whether the answer is the gold value, ignoring case, spaces and punctuation at the ends."""
    return answer is not None and normalise(answer) == normalise(gold)


def judge_calls(task: Task, run: Run) -> list[JudgedCall]:
    """Every call of the run with its two marks."""
    made: set[str] = set()
    judged: list[JudgedCall] = []
    for call in run.calls:
        repeated = call.key in made
        judged.append(
            JudgedCall(
                name=call.name,
                arguments=dict(call.arguments),
                needless=repeated or call.key not in task.needed,
                repeated=repeated,
            )
        )
        made.add(call.key)
    return judged


def failure_cause(world: World, task: Task, run: Run) -> str | None:
    """Why the run failed (one of `CAUSES`), or None when it was right."""
    if is_correct(run.answer, task.gold):
        return None
    last = run.responses[-1]
    if last.finish_reason == "length" or (run.answer is None and not last.asked):
        return "malformed"
    if run.answer is None:
        return "turns_ran_out"
    answer = normalise(run.answer)
    if run.calls and answer in misleading_values(world, task):
        return "misled"
    if task.domain != "walk" and any(call.key not in _chain_calls(task) for call in run.calls):
        return "wrong_hop"
    if not task.needed <= {call.key for call in run.calls}:
        return "answered_without_evidence"
    return "misremembered" if task.known else "misread"


def misleading_values(world: World, task: Task) -> frozenset[str]:
    """What the library says besides the truth on the way to this task's fact, normalised."""
    if task.domain != "walk":
        return frozenset()
    hop = task.hops[0]
    names = (hop.subject, world.twin(hop.subject))
    entries = [world.entry(name, hop.attribute) for name in names if name is not None]
    said = {value for entry in entries if entry for value in (entry.rumour, entry.rival)}
    said |= {entry.value for entry in entries if entry}
    return frozenset(normalise(value) for value in said if value != task.gold)


def _chain_calls(task: Task) -> frozenset[str]:
    if task.domain == "sums":
        return frozenset(
            call_key("calculator", {"expression": f"{hop.subject} {hop.attribute}"})
            for hop in task.hops
        )
    return frozenset(
        call_key("lookup", {"entity": hop.subject, "attribute": hop.attribute}) for hop in task.hops
    )
