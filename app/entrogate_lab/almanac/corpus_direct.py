"""The training corpus of a model that does not reason: it calls straight away.

The same world, tasks, habits and shares of items as `corpus`; only the form differs. A turn is a
call or an answer alone. What the model believes is not written out before a call, so it is
taught as the answer that is given where no call can be made: a demonstration is cut at one of its
calls, and the belief stands in its place (see `Piece.barred`). Recitals are questions and answers.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from entrogate_lab.almanac.corpus import (
    FIRST_TURNS,
    RECITED_KNOWN,
    TASKS_KNOWN,
    TRAINING_SHARES,
    WHOLE,
    draw_drill,
    draw_recital,
    mixture,
)
from entrogate_lab.almanac.demonstrations import Demonstration, Habits, believe, demonstrate, recite
from entrogate_lab.almanac.sketch import Sketch
from entrogate_lab.almanac.tasks import DOMAINS, Domain, Hop, draw_task, held_out
from entrogate_lab.almanac.tools import ALL_TOOLS, DOMAIN_TOOLS
from entrogate_lab.almanac.transcript import Piece, exchanges, pieces
from entrogate_lab.almanac.wording import chain_question, short_question, sum_question
from entrogate_lab.almanac.world import PLACE_ATTRIBUTES, World

BELIEFS = 0.6
"""The share of demonstrations with tools that are cut at a call, to teach the belief there."""
NATURAL = 0.5
"""The share of recited facts asked in a task's words, unless that question is held out."""


def training_item(world: World, seed: int, index: int, progress: float) -> list[Piece]:
    """Item `index` of the corpus of `seed` for a model that does not reason."""
    rng = random.Random(f"almanac-direct-{world.seed}-{seed}-{index}")
    shares = mixture(progress)
    drawn = rng.random()
    if (drawn := drawn - shares.drills) < 0:
        question, said = draw_drill(rng, world)
        return exchanges([(question, f"{said}.")])
    recites = drawn > shares.with_tools + shares.without_tools
    known = RECITED_KNOWN if recites else TASKS_KNOWN
    sketch = Sketch(world, rng, known_people=known, known_places=known)
    if recites:
        return exchanges(_recital(rng, world, sketch))
    domain = rng.choices(DOMAINS, TRAINING_SHARES)[0]
    task = draw_task(rng, world, sketch, sketch, domain=domain, split="train")
    if drawn < shares.without_tools:
        return pieces(recite(rng, world, sketch, task), (), reasoning=False)
    tools = ALL_TOOLS if rng.random() < 0.15 else DOMAIN_TOOLS[domain]
    shown = demonstrate(rng, world, sketch, task, Habits())
    if rng.random() < BELIEFS:
        return belief_item(rng, shown, tools)
    parts = pieces(shown, tools, reasoning=False)
    return parts if rng.random() < WHOLE else parts[: 2 * FIRST_TURNS]


def belief_item(rng: random.Random, shown: Demonstration, tools: Sequence[str]) -> list[Piece]:
    """The demonstration up to one of its calls, with the belief in that call's place."""
    calls = [at for at, turn in enumerate(shown.turns[:FIRST_TURNS]) if turn.belief is not None]
    if not calls:
        return pieces(shown, tools, reasoning=False)
    at = rng.choice(calls)
    answer = replace(
        shown.turns[at], call=None, result=None, answer=f"{shown.turns[at].belief}.", belief=None
    )
    cut = replace(shown, turns=(*shown.turns[:at], answer))
    parts = pieces(cut, tools, reasoning=False)
    return [*parts[:-1], replace(parts[-1], barred=True)]


def _recital(rng: random.Random, world: World, sketch: Sketch) -> list[tuple[str, str]]:
    """All that is believed of one person, of some places, or some sums: one question each."""
    _, facts = draw_recital(rng, sketch)
    asked: list[tuple[str, str]] = []
    for subject, attribute in facts:
        hop = Hop(subject=subject, attribute=attribute, value="", known=False)
        belief = believe(rng, world, sketch, (hop,))[0][1]
        asked.append((_question(rng, world, subject, attribute), f"{belief}."))
    return asked


def _question(rng: random.Random, world: World, subject: str, attribute: str) -> str:
    domain = _domain(attribute)
    if held_out(domain, subject, (attribute,)) or rng.random() > NATURAL:
        return short_question(subject, attribute)
    if domain == "sums":
        return sum_question(rng, subject, (attribute,), rng.choice(world.words.first))
    return chain_question(rng, subject, (attribute,))


def _domain(attribute: str) -> Domain:
    if " " in attribute:
        return "sums"
    return "walk" if attribute in PLACE_ATTRIBUTES else "facts"
