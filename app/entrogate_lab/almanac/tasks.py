"""Tasks: questions with the chain of facts behind them, held-out ones apart from the rest."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from entrogate_lab.almanac.tools import calculate, call_key
from entrogate_lab.almanac.wording import chain_question, sum_question
from entrogate_lab.almanac.world import ATTRIBUTES, PLACE_ATTRIBUTES, RELATIONS, Source, World

Domain = Literal["facts", "sums", "walk"]
Split = Literal["train", "held-out"]

DOMAINS: tuple[Domain, ...] = ("facts", "sums", "walk")
DOMAIN_SHARES = (0.40, 0.25, 0.35)
KNOWN_PEOPLE_SHARE, SMALL_SUMS_SHARE, KNOWN_PLACES_SHARE = 0.60, 0.60, 0.45
MAX_TURNS = 8
"""A run without an answer by this turn has none; a call in the last turn is not made."""
HELD_OUT_IN = 4
"""One question in so many is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One fact of the chain. For sums `subject` is the left operand, `attribute` the rest."""

    subject: str
    attribute: str
    value: str
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question, its gold answer, and the calls that bring what the model does not know.

    `needed` holds the call keys (see `tools.call_key`); its size is the oracle's number of calls.
    """

    id: str
    domain: Domain
    question: str
    hops: tuple[Hop, ...]
    needed: frozenset[str]

    @property
    def gold(self) -> str:
        """The right answer: the value of the last hop."""
        return self.hops[-1].value

    @property
    def oracle_calls(self) -> int:
        """How many calls are needed by a model that knows what this one knows."""
        return len(self.needed)

    @property
    def known(self) -> bool:
        """Whether the model knows every hop, so that no call is needed."""
        return all(hop.known for hop in self.hops)


class Cast(Protocol):
    """Where a task finds its people and places: the world's, or a sketch's own."""

    def person(self, rng: random.Random) -> str:
        """A person to ask about."""
        ...

    def place(self, rng: random.Random) -> str:
        """A place to ask about."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutCast:
    """The people and places of the evaluation: partly known, partly unknown."""

    world: World

    def person(self, rng: random.Random) -> str:
        """A person of the world, known with probability ``KNOWN_PEOPLE_SHARE``."""
        known = rng.random() < KNOWN_PEOPLE_SHARE
        return rng.choice(self.world.known_people if known else self.world.unknown_people)

    def place(self, rng: random.Random) -> str:
        """A place of the world, known with probability ``KNOWN_PLACES_SHARE``."""
        known = rng.random() < KNOWN_PLACES_SHARE
        return rng.choice(self.world.known_places if known else self.world.unknown_places)


def held_out(domain: str, subject: str, attributes: Sequence[str]) -> bool:
    """Whether the question on this chain is kept from the demonstrations, by its hash."""
    key = "|".join((domain, subject, *attributes))
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_IN == 0


def knows_sum(left: int, operator: str, right: int) -> bool:
    """Whether this operation is one that the model is taught."""
    if operator == "+":
        return 1 <= left <= 9 and 1 <= right <= 9
    if operator == "-":
        return 1 <= right < left <= 9
    return 2 <= left <= 9 and 2 <= right <= 9


def known_sums() -> tuple[tuple[int, str, int], ...]:
    """Every operation that the model is taught."""
    digits = range(1, 10)
    triples = ((a, operator, b) for operator in "+-*" for a in digits for b in digits)
    return tuple(triple for triple in triples if knows_sum(*triple))


def held_out_task(world: World, seed: int, index: int) -> Task:
    """Task `index` of the held-out tasks of `seed`: always the same one."""
    rng = random.Random(f"almanac-task-{world.seed}-{seed}-{index}")
    return _world_task(rng, world, "held-out", f"{world.seed}-{seed}-{index:05d}")


def training_task(world: World, seed: int, index: int) -> Task:
    """Task `index` of `seed` to train on: of the same kinds, none of them held out."""
    rng = random.Random(f"almanac-training-{world.seed}-{seed}-{index}")
    return _world_task(rng, world, "train", f"{world.seed}-{seed}-t{index:05d}")


def _world_task(rng: random.Random, world: World, split: Split, task_id: str) -> Task:
    domain = rng.choices(DOMAINS, DOMAIN_SHARES)[0]
    cast = HeldOutCast(world=world)
    return draw_task(rng, world, world, cast, domain=domain, split=split, task_id=task_id)


def draw_task(
    rng: random.Random,
    world: World,
    source: Source,
    cast: Cast,
    *,
    domain: Domain,
    split: Split,
    task_id: str = "",
) -> Task:
    """Draw a task of `domain` whose chain is on the wanted side of the split."""
    while True:
        subject, attributes = _draw_chain(rng, cast, domain)
        if held_out(domain, subject, attributes) == (split == "held-out"):
            break
    return make_task(
        rng,
        world,
        source,
        domain=domain,
        subject=subject,
        attributes=attributes,
        task_id=task_id,
    )


def make_task(
    rng: random.Random,
    world: World,
    source: Source,
    *,
    domain: Domain,
    subject: str,
    attributes: Sequence[str],
    task_id: str = "",
) -> Task:
    """The task on a given chain; `rng` only chooses the wording."""
    if domain == "sums":
        hops = _sum_hops(subject, attributes)
        question = sum_question(rng, subject, attributes, rng.choice(world.words.first))
        calls = [
            call_key("calculator", {"expression": f"{hop.subject} {hop.attribute}"})
            for hop in hops
            if not hop.known
        ]
    else:
        hops = _fact_hops(world, source, subject, attributes)
        question = chain_question(rng, subject, attributes)
        if domain == "facts":
            calls = [
                call_key("lookup", {"entity": hop.subject, "attribute": hop.attribute})
                for hop in hops
                if not hop.known
            ]
        else:
            calls = [] if hops[0].known else _walk_calls(source, subject, attributes[0])
    return Task(id=task_id, domain=domain, question=question, hops=hops, needed=frozenset(calls))


def _draw_chain(rng: random.Random, cast: Cast, domain: Domain) -> tuple[str, tuple[str, ...]]:
    if domain == "walk":
        return cast.place(rng), (rng.choice(PLACE_ATTRIBUTES),)
    if domain == "facts":
        count = rng.choices((1, 2, 3), (0.35, 0.35, 0.30))[0]
        if count == 1:
            return cast.person(rng), (rng.choice(ATTRIBUTES),)
        relations = tuple(rng.choice(RELATIONS) for _ in range(count - 1))
        finals = [name for name in ATTRIBUTES if name not in RELATIONS]
        return cast.person(rng), (*relations, rng.choice(finals))
    small = rng.random() < SMALL_SUMS_SHARE
    left, step = _small_step(rng, None) if small else _large_step(rng)
    if rng.random() < 0.55:
        return left, (step,)
    value = calculate(f"{left} {step}")
    assert value is not None
    again = _small_step(rng, value)[1] if small and 2 <= value <= 9 else _second_step(rng)
    return left, (step, again)


def _small_step(rng: random.Random, left: int | None) -> tuple[str, str]:
    while True:
        first = rng.randint(1, 9) if left is None else left
        operator, right = rng.choice("+-*"), rng.randint(1, 9)
        if knows_sum(first, operator, right):
            return str(first), f"{operator} {right}"


def _large_step(rng: random.Random) -> tuple[str, str]:
    operator = rng.choice("+-*")
    low, high = sorted((rng.randint(13, 89), rng.randint(13, 89)))
    if operator == "-":
        return str(high + 10), f"- {low}"
    return str(low), f"{operator} {high}"


def _second_step(rng: random.Random) -> str:
    return f"+ {rng.randint(13, 99)}" if rng.random() < 0.5 else f"* {rng.randint(3, 9)}"


def _sum_hops(left: str, steps: Sequence[str]) -> tuple[Hop, ...]:
    hops: list[Hop] = []
    for step in steps:
        value = calculate(f"{left} {step}")
        if value is None:
            raise ValueError(f"cannot work out {left} {step}; say one of + - * between two numbers")
        operator, right = step.split()
        known = knows_sum(int(left), operator, int(right))
        hops.append(Hop(subject=left, attribute=step, value=str(value), known=known))
        left = str(value)
    return tuple(hops)


def _fact_hops(
    world: World, source: Source, subject: str, attributes: Sequence[str]
) -> tuple[Hop, ...]:
    hops: list[Hop] = []
    for attribute in attributes:
        value = source.fact(subject, attribute)
        if value is None:
            raise ValueError(f"no record of {attribute} of {subject}")
        known = world.knows(subject, attribute)
        hops.append(Hop(subject=subject, attribute=attribute, value=value, known=known))
        subject = value
    return tuple(hops)


def _walk_calls(source: Source, place: str, attribute: str) -> list[str]:
    entry = source.entry(place, attribute)
    if entry is None:
        raise ValueError(f"the library has nothing on {attribute} of {place}")
    reads = [call_key("read", {"page": str(page)}) for page in entry.path()]
    return [call_key("search", {"query": f"{place} {attribute}"}), *reads]
