"""The training corpus: an endless, seeded stream of demonstrations in shares that change with time.

Item `i` of a seed is always the same. The shares: demonstrations with tools, the same kind of
question without tools, drills in copying, and recitals of all that the model knows of something.
"""

import random
from dataclasses import dataclass

from entrogate_lab.almanac.demonstrations import (
    Demonstration,
    Habits,
    Turn,
    believe,
    demonstrate,
    recite,
)
from entrogate_lab.almanac.sketch import Sketch
from entrogate_lab.almanac.tasks import DOMAINS, Hop, draw_task, known_sums
from entrogate_lab.almanac.tools import ALL_TOOLS, DOMAIN_TOOLS
from entrogate_lab.almanac.transcript import Piece, pieces
from entrogate_lab.almanac.wording import reasoning
from entrogate_lab.almanac.world import ATTRIBUTES, PLACE_ATTRIBUTES, World, draw_person

DRILLED_UNTIL = 0.13
"""Copying learnt first, in small batches, serves all that follows; mixed in, it came too late."""
RECITED_SUMS = 6
RECITED_PLACES = 3
WHOLE, FIRST_TURNS = 0.4, 4
"""The share of demonstrations shown whole; of the others the first turns: later ones are alike."""
TRAINING_SHARES = (0.35, 0.35, 0.30)
"""Of facts, sums and walk."""
RECITED_KNOWN, TASKS_KNOWN = 0.80, 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Shares of the corpus at one moment; what is left are recitals."""

    with_tools: float
    without_tools: float
    drills: float


def mixture(progress: float) -> Mixture:
    """The shares at `progress` in [0, 1]: drills alone, then mostly facts, then mostly tool use."""
    if progress < DRILLED_UNTIL:
        return Mixture(with_tools=0.0, without_tools=0.0, drills=1.0)
    if progress < 0.33:
        return Mixture(with_tools=0.20, without_tools=0.12, drills=0.10)
    return Mixture(with_tools=0.45, without_tools=0.12, drills=0.05)


def training_item(world: World, seed: int, index: int, progress: float) -> list[Piece]:
    """Item `index` of the corpus of `seed`."""
    rng = random.Random(f"almanac-corpus-{world.seed}-{seed}-{index}")
    shares = mixture(progress)
    drawn = rng.random()
    if (drawn := drawn - shares.drills) < 0:
        question, said = draw_drill(rng, world)
        return pieces(_told("drill", question, f"{said}."), ())
    recites = drawn > shares.with_tools + shares.without_tools
    known = RECITED_KNOWN if recites else TASKS_KNOWN
    sketch = Sketch(world, rng, known_people=known, known_places=known)
    if recites:
        return pieces(_recital(rng, world, sketch), ())
    domain = rng.choices(DOMAINS, TRAINING_SHARES)[0]
    task = draw_task(rng, world, sketch, sketch, domain=domain, split="train")
    if drawn < shares.without_tools:
        return pieces(recite(rng, world, sketch, task), ())
    tools = ALL_TOOLS if rng.random() < 0.15 else DOMAIN_TOOLS[domain]
    parts = pieces(demonstrate(rng, world, sketch, task, Habits()), tools)
    return parts if rng.random() < WHOLE else parts[: 2 * FIRST_TURNS]


def draw_drill(rng: random.Random, world: World) -> tuple[str, str]:
    """A request to say names and numbers again, and the list: nothing to know, only to copy."""
    said: list[str] = []
    for _ in range(rng.randint(4, 9)):
        kind = rng.random()
        if kind < 0.45:
            while (name := draw_person(rng, world.words)) in world.reserved:
                pass
            said.append(name)
        elif kind < 0.80:
            left, right = (rng.randint(1, 10 ** rng.randint(1, 4)) for _ in range(2))
            said.append(f"{left} {rng.choice('+-*')} {right}")
        else:
            said.append(rng.choice(world.words.everything()))
    listed = ", ".join(said)
    return f"Say again: {listed}.", listed


def draw_recital(rng: random.Random, sketch: Sketch) -> tuple[str, list[tuple[str, str]]]:
    """A request to tell about one person, some places or some sums, and the facts to tell."""
    kind = rng.random()
    if kind < 0.46:
        person = sketch.person(rng)
        facts = [(person, attribute) for attribute in rng.sample(ATTRIBUTES, len(ATTRIBUTES))]
        return f"Tell me about {person}.", facts
    if kind < 0.74:
        places = [sketch.place(rng) for _ in range(RECITED_PLACES)]
        facts = [
            (place, attribute)
            for place in dict.fromkeys(places)
            for attribute in rng.sample(PLACE_ATTRIBUTES, 2)
        ]
        named = ", ".join(dict.fromkeys(places))
        return f"Tell me about {named}.", facts
    left, operator, _ = rng.choice(known_sums())
    table = [b for a, sign, b in known_sums() if (a, sign) == (left, operator)]
    rights = rng.sample(table, min(len(table), RECITED_SUMS))
    facts = [(str(left), f"{operator} {right}") for right in rights]
    asked = f"{left} {operator} {', '.join(str(right) for right in rights)}"
    return f"Work out {asked}.", facts


def _recital(rng: random.Random, world: World, sketch: Sketch) -> Demonstration:
    """All that is believed of one person, of some places, or some sums: one thought each."""
    question, facts = draw_recital(rng, sketch)
    statements: list[str] = []
    for subject, attribute in facts:
        hop = Hop(subject=subject, attribute=attribute, value="", known=False)
        statements.append(believe(rng, world, sketch, (hop,))[0][0])
    return _told("recital", question, reasoning(rng, statements, after_result=False))


def _told(domain: str, question: str, thought: str) -> Demonstration:
    turn = Turn(reasoning=thought, answer="That is all.")
    return Demonstration(domain=domain, question=question, turns=(turn,))
