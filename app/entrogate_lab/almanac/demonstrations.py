"""Demonstrations: runs of a teacher who knows the known facts, guesses the rest and over-calls.

In every reasoning segment the teacher says what it believes by now: known facts truly, results as
they came, everything else a guess drawn uniformly. Whether it calls a tool does not depend on what
it knows. An answer always is the last belief stated.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from entrogate_lab.almanac.library import Entry
from entrogate_lab.almanac.sketch import Sketch
from entrogate_lab.almanac.tasks import MAX_TURNS, Hop, Task, knows_sum
from entrogate_lab.almanac.tools import calculate, execute
from entrogate_lab.almanac.wording import reasoning, statement
from entrogate_lab.almanac.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call."""

    name: str
    arguments: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One assistant turn: reasoning, then either a call with its result or an answer.

    `belief` is what the teacher would have answered in a turn with a call.
    """

    reasoning: str
    call: Call | None = None
    result: str | None = None
    answer: str | None = None
    belief: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A task's question and the teacher's turns; without an answer when the turns ran out."""

    domain: str
    question: str
    turns: tuple[Turn, ...]

    @property
    def answer(self) -> str | None:
        """The teacher's answer; None when the turns ran out before it."""
        return self.turns[-1].answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """Probabilities of the teacher's vices. See docs/decisions/0001-almanac-world.md."""

    answer_at_once: float = 0.05
    repeat_midway: float = 0.25
    answer_midway: float = 0.03
    wrong_hop: float = 0.10
    ask_again: float = 0.58
    trust_rumour: float = 0.50
    doubt_known: float = 0.35
    take_twin: float = 0.20
    answer_rumour: float = 0.15
    read_after_plain: float = 0.30


class _Run:
    """The turns so far, and room for one more or not."""

    def __init__(self, task: Task, source: Sketch, rng: random.Random) -> None:
        self.task, self.source, self.rng = task, source, rng
        self.turns: list[Turn] = []

    def think(self, statements: list[str]) -> str:
        return reasoning(self.rng, statements, after_result=bool(self.turns))

    def call(self, thought: str, belief: str, name: str, arguments: Mapping[str, str]) -> str:
        result = execute(self.source, name, arguments)
        call = Call(name=name, arguments=arguments)
        self.turns.append(Turn(reasoning=thought, call=call, result=result, belief=belief))
        return result

    def answer(self, thought: str, value: str) -> None:
        self.turns.append(Turn(reasoning=thought, answer=f"{value}."))

    def full(self) -> bool:
        return len(self.turns) >= MAX_TURNS

    def done(self) -> Demonstration:
        turns = tuple(self.turns)
        return Demonstration(domain=self.task.domain, question=self.task.question, turns=turns)


def demonstrate(
    rng: random.Random, world: World, source: Sketch, task: Task, habits: Habits
) -> Demonstration:
    """The teacher at work on `task`, with the tools."""
    run = _Run(task, source, rng)
    if task.domain == "walk":
        _walk(run, habits)
    else:
        _chain(run, world, habits)
    return run.done()


def recite(rng: random.Random, world: World, source: Sketch, task: Task) -> Demonstration:
    """The teacher asked without tools: one thought from memory, one answer."""
    run = _Run(task, source, rng)
    believed = believe(rng, world, source, task.hops)
    run.answer(run.think([line for line, _ in believed]), believed[-1][1])
    return run.done()


def believe(
    rng: random.Random,
    world: World,
    source: Sketch,
    hops: tuple[Hop, ...],
    *,
    seen: Mapping[int, tuple[str, str]] = MappingProxyType({}),
    start: int = 0,
) -> list[tuple[str, str]]:
    """Statements and values from hop `start` on; `seen` maps hops to (subject, value) shown."""
    believed: list[tuple[str, str]] = []
    subject = hops[0].subject if start == 0 else seen[start][0]
    for index in range(start, len(hops)):
        attribute = hops[index].attribute
        value = seen[index][1] if index in seen else _guess(rng, world, source, subject, attribute)
        believed.append((statement(rng, subject, attribute, value), value))
        subject = value
    return believed


def _guess(rng: random.Random, world: World, source: Sketch, subject: str, attribute: str) -> str:
    if " " not in attribute:
        if world.knows(subject, attribute):
            return world.facts[subject, attribute]
        return source.guess(attribute)
    operator, right = attribute.split()
    value = calculate(f"{subject} {attribute}")
    assert value is not None
    if knows_sum(int(subject), operator, int(right)):
        return str(value)
    return str(max(1, round(value * rng.uniform(0.6, 1.4))))


def _chain(run: _Run, world: World, habits: Habits) -> None:
    """Facts and sums: one call a hop, with repeats, wrong hops and further questions."""
    rng, hops = run.rng, run.task.hops
    seen: dict[int, tuple[str, str]] = {}
    calls: list[tuple[int, str, Mapping[str, str]]] = []
    at = 0
    while not run.full():
        believed = believe(rng, world, run.source, hops, seen=seen, start=at)
        thought = run.think([line for line, _ in believed])
        target = len(seen)
        stop = habits.answer_at_once if not calls else habits.answer_midway
        if target == len(hops):
            stop = 1 - habits.ask_again
        if rng.random() < stop:
            run.answer(thought, believed[-1][1])
            return
        if target == len(hops) or (calls and rng.random() < habits.repeat_midway):
            latest = calls[-1] if rng.random() < 0.6 else rng.choice(calls)
            at, name, arguments = latest
            run.call(thought, believed[-1][1], name, arguments)
            continue
        subject = hops[0].subject if target == 0 else seen[target - 1][1]
        asked = hops[0].subject if target > 0 and rng.random() < habits.wrong_hop else subject
        name, arguments = _hop_call(asked, hops[target].attribute)
        result = run.call(thought, believed[-1][1], name, arguments)
        seen[target] = (subject, result.split(maxsplit=1)[1])
        calls.append((target, name, arguments))
        at = target


def _hop_call(subject: str, attribute: str) -> tuple[str, Mapping[str, str]]:
    if " " in attribute:
        return "calculator", {"expression": f"{subject} {attribute}"}
    return "lookup", {"entity": subject, "attribute": attribute}


_Asked = tuple[str, dict[str, str]]


@dataclass(slots=True, kw_only=True)
class _Mind:
    """What the teacher makes of the library so far: its belief, whether that is settled, and the
    call that would bring it nearer."""

    value: str | None
    settled: bool
    nearer: _Asked


def _walk(run: _Run, habits: Habits) -> None:
    """The library: search, read, follow the link; trust what should not be trusted."""
    rng, hop = run.rng, run.task.hops[0]
    entry = run.source.entry(hop.subject, hop.attribute)
    assert entry is not None
    query: _Asked = ("search", {"query": f"{hop.subject} {hop.attribute}"})
    mind = _Mind(value=hop.value if hop.known else None, settled=False, nearer=query)
    latest = query
    called: list[_Asked] = []
    while not run.full():
        stated = mind.value if mind.value is not None else run.source.guess(hop.attribute)
        thought = run.think([statement(rng, hop.subject, hop.attribute, stated)])
        stop = 1 - habits.ask_again if mind.settled else habits.answer_midway
        if not called:
            stop = habits.answer_at_once
        elif latest == query and entry.style == "hedged" and not mind.settled:
            stop = habits.answer_rumour
        if rng.random() < stop:
            run.answer(thought, stated)
            return
        if mind.settled:
            unread = latest == query and mind.nearer != query
            onward = unread and rng.random() < habits.read_after_plain
            latest = mind.nearer if onward else rng.choice([latest, rng.choice(called)])
        elif not called or rng.random() > habits.repeat_midway:
            latest = mind.nearer
        fresh = latest not in called
        result = run.call(thought, stated, *latest)
        if fresh:
            called.append(latest)
        if latest == query:
            _take_in_search(run, habits, entry, mind, fresh=fresh)
        else:
            _take_in_page(run, entry, mind, result)


def _take_in_search(run: _Run, habits: Habits, entry: Entry, mind: _Mind, *, fresh: bool) -> None:
    """What search results do to the mind."""
    rng = run.rng
    if fresh:
        mind.nearer = ("read", {"page": str(entry.page)})
    if entry.style == "plain":
        twin = run.source.twin(entry.place)
        other = run.source.entry(twin, entry.attribute) if twin is not None else None
        mind.value, mind.settled = entry.value, True
        if other is not None and other.style == "plain" and rng.random() < habits.take_twin:
            mind.value = other.value
    elif entry.style == "hedged":
        if mind.value is None and not mind.settled:
            mind.value = entry.rumour if rng.random() < habits.trust_rumour else None
        elif mind.value is not None and rng.random() < habits.doubt_known:
            mind.value = entry.rumour


def _take_in_page(run: _Run, entry: Entry, mind: _Mind, result: str) -> None:
    """What a page does to the mind."""
    if entry.link is not None and result.endswith(f"page {entry.link}"):
        mind.nearer = ("read", {"page": str(entry.link)})
        return
    truly = entry.body == "plain" or run.rng.random() < 0.5
    mind.value, mind.settled = entry.value if truly else entry.rival, True
