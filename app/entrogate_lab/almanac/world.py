"""The seeded world: who and what exists, what is true, and what the model is taught.

Three kinds of people: *known* ones, whose facts are trained in; *outsiders*, whose names occur in
facts about known people but whose own facts are never taught; *unknown* ones, whose names never
occur in training at all. Places are known or unknown.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from entrogate_lab.almanac.library import FIRST_PAGE, LAST_PAGE, Entry, other, roll_entry
from entrogate_lab.almanac.words import ADJECTIVES, NOUNS, Words, invent_words

RELATIONS = ("mentor", "partner")
ATTRIBUTES = ("city", "guild", "ship", *RELATIONS)
PLACE_ATTRIBUTES = ("founder", "river")

KNOWN_PEOPLE, OUTSIDERS, UNKNOWN_PEOPLE = 80, 24, 300
KNOWN_PLACES, UNKNOWN_PLACES = 40, 160

Fact = tuple[str, str]
"""An (entity, attribute) pair."""


class Source(Protocol):
    """What the tools consult: the world itself, or a sketch drawn for one demonstration."""

    def fact(self, entity: str, attribute: str) -> str | None:
        """The value, or None when there is no record."""
        ...

    def entry(self, place: str, attribute: str) -> Entry | None:
        """What the library has on this attribute of this place."""
        ...

    def twin(self, place: str) -> str | None:
        """A place of a similar name that a search also brings up."""
        ...

    def places(self) -> Sequence[str]:
        """Every place that the library knows."""
        ...

    def on_page(self, page: int) -> Entry | None:
        """The entry whose own or linked page has this number."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One world; a pure function of `seed`. Implements `Source`."""

    seed: int
    words: Words
    known_people: tuple[str, ...]
    outsiders: tuple[str, ...]
    unknown_people: tuple[str, ...]
    known_places: tuple[str, ...]
    unknown_places: tuple[str, ...]
    facts: dict[Fact, str]
    entries: dict[Fact, Entry]
    pages: dict[int, Entry]
    twins: dict[str, str]
    known_entities: frozenset[str]
    reserved: frozenset[str]
    """Every name of the world: what a demonstration may not draw as a stranger."""

    def knows(self, entity: str, attribute: str) -> bool:
        """Whether this fact is one that the model is taught."""
        return entity in self.known_entities and (entity, attribute) in self.facts

    def fact(self, entity: str, attribute: str) -> str | None:
        """The value of an entity's attribute; None where it has none."""
        return self.facts.get((entity, attribute))

    def entry(self, place: str, attribute: str) -> Entry | None:
        """What the almanac says of a place's attribute; None where it says nothing."""
        return self.entries.get((place, attribute))

    def twin(self, place: str) -> str | None:
        """The place of a similar name, None where there is none."""
        return self.twins.get(place)

    def places(self) -> Sequence[str]:
        """All places, those that the model knows first."""
        return self.known_places + self.unknown_places

    def on_page(self, page: int) -> Entry | None:
        """The entry on a page of the almanac; None on an empty page."""
        return self.pages.get(page)


def values_of(words: Words, attribute: str) -> tuple[str, ...]:
    """The pool that values of a non-relation attribute are drawn from."""
    pools = {
        "city": words.city,
        "guild": words.guild,
        "ship": words.ship,
        "founder": words.founder,
        "river": words.river,
    }
    return pools[attribute]


def draw_person(rng: random.Random, words: Words) -> str:
    """A full name, any combination."""
    return f"{rng.choice(words.first)} {rng.choice(words.last)}"


def draw_place(rng: random.Random) -> str:
    """A place name, any combination."""
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def make_world(seed: int) -> World:
    """Build the world of `seed`."""
    rng = random.Random(f"almanac-world-{seed}")
    words = invent_words(rng)
    people = _distinct(rng, words, KNOWN_PEOPLE + OUTSIDERS + UNKNOWN_PEOPLE)
    known = people[:KNOWN_PEOPLE]
    outsiders = people[KNOWN_PEOPLE : KNOWN_PEOPLE + OUTSIDERS]
    unknown = people[KNOWN_PEOPLE + OUTSIDERS :]
    combinations = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    places = tuple(rng.sample(combinations, KNOWN_PLACES + UNKNOWN_PLACES))

    facts: dict[Fact, str] = {}
    for person in people:
        for attribute in ATTRIBUTES:
            if attribute not in RELATIONS:
                facts[person, attribute] = rng.choice(values_of(words, attribute))
                continue
            near, far = (known, outsiders) if person in known else (unknown, known)
            facts[person, attribute] = _someone_else(
                rng, near if rng.random() < 0.75 else far, person
            )
    for place in places:
        for attribute in PLACE_ATTRIBUTES:
            facts[place, attribute] = rng.choice(values_of(words, attribute))
    entries = _library(rng, words, places, facts)
    return World(
        seed=seed,
        words=words,
        known_people=known,
        outsiders=outsiders,
        unknown_people=unknown,
        known_places=places[:KNOWN_PLACES],
        unknown_places=places[KNOWN_PLACES:],
        facts=facts,
        entries=entries,
        pages=_pages(entries),
        twins=_twins(rng, places),
        known_entities=frozenset(known + places[:KNOWN_PLACES]),
        reserved=frozenset(people + places),
    )


def shifted(world: World, share: float) -> World:
    """The world after a change: of the facts that the model knows, a ``share`` is another now.

    Names, and how the library tells each fact, stay. The model was taught the old facts, so what it
    believes there is stale; 0 gives the same world. Raises ValueError for a share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the share of changed facts is {share}; want 0 … 1")
    rng = random.Random(f"almanac-shift-{world.seed}")
    facts, entries = dict(world.facts), dict(world.entries)
    for (entity, attribute), value in world.facts.items():
        drawn, pool = rng.random(), _others(world, entity, attribute)
        now = other(rng, pool, value)
        if not world.knows(entity, attribute) or drawn >= share:
            continue
        facts[entity, attribute] = now
        entry = entries.get((entity, attribute))
        if entry is not None:
            entries[entity, attribute] = replace(entry, value=now)
    return replace(world, facts=facts, entries=entries, pages=_pages(entries))


def _others(world: World, entity: str, attribute: str) -> Sequence[str]:
    """What another value of this fact may be."""
    if attribute not in RELATIONS:
        return values_of(world.words, attribute)
    return [name for name in world.known_people if name != entity]


def _distinct(rng: random.Random, words: Words, count: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    while len(names) < count:
        names[draw_person(rng, words)] = None
    return tuple(names)


def _someone_else(rng: random.Random, people: Sequence[str], person: str) -> str:
    while (drawn := rng.choice(people)) == person:
        pass
    return drawn


def _library(
    rng: random.Random, words: Words, places: Sequence[str], facts: dict[Fact, str]
) -> dict[Fact, Entry]:
    keys = [(place, attribute) for place in places for attribute in PLACE_ATTRIBUTES]
    numbers = rng.sample(range(FIRST_PAGE, LAST_PAGE + 1), 2 * len(keys))
    entries: dict[Fact, Entry] = {}
    for index, key in enumerate(keys):
        place, attribute = key
        entries[key] = roll_entry(
            rng,
            place=place,
            attribute=attribute,
            value=facts[key],
            values=values_of(words, attribute),
            pages=(numbers[2 * index], numbers[2 * index + 1]),
        )
    return entries


def _pages(entries: dict[Fact, Entry]) -> dict[int, Entry]:
    pages: dict[int, Entry] = {}
    for entry in entries.values():
        pages[entry.page] = entry
        if entry.link is not None:
            pages[entry.link] = entry
    return pages


def _twins(rng: random.Random, places: Sequence[str]) -> dict[str, str]:
    twins: dict[str, str] = {}
    for place in places:
        adjective = place.split()[0]
        similar = [name for name in places if name != place and name.split()[0] == adjective]
        if similar and rng.random() < 0.5:
            twins[place] = rng.choice(similar)
    return twins
