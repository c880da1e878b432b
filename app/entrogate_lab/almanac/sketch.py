"""A sketch: the people and places of one demonstration, drawn afresh around the known world."""

import random
from collections.abc import Sequence

from entrogate_lab.almanac.library import FIRST_PAGE, LAST_PAGE, Entry, roll_entry
from entrogate_lab.almanac.words import NOUNS
from entrogate_lab.almanac.world import (
    RELATIONS,
    Fact,
    World,
    draw_person,
    draw_place,
    values_of,
)


class Sketch:
    """A `Source` and a `Cast`: known facts as in the world, everything else rolled when asked for.

    No name of the evaluation's unknown people and places ever comes out of it.
    """

    def __init__(
        self, world: World, rng: random.Random, *, known_people: float, known_places: float
    ) -> None:
        self._world = world
        self._rng = rng
        self._known_shares = (known_people, known_places)
        self._facts: dict[Fact, str] = {}
        self._entries: dict[Fact, Entry] = {}
        self._pages: dict[int, Entry] = {}
        self._places: list[str] = []
        self._twins: dict[str, str | None] = {}

    def person(self, rng: random.Random) -> str:
        """A person: known (by the sketch's share), else an outsider or, mostly, made up."""
        if rng.random() < self._known_shares[0]:
            return rng.choice(self._world.known_people)
        return rng.choice(self._world.outsiders) if rng.random() < 0.1 else self.stranger()

    def place(self, rng: random.Random) -> str:
        """A place: known, or made up; it is on the list of `places` from now on."""
        if rng.random() < self._known_shares[1]:
            place = rng.choice(self._world.known_places)
        else:
            place = self._strange_place()
        if place not in self._places:
            self._places.append(place)
        return place

    def stranger(self) -> str:
        """A person who is nobody's: not known, not an outsider, not of the evaluation."""
        world = self._world
        while (name := draw_person(self._rng, world.words)) in world.reserved:
            pass
        return name

    def guess(self, attribute: str) -> str:
        """A value for an attribute that nothing is known about, uniformly at random."""
        if attribute in RELATIONS:
            return self.stranger()
        return self._rng.choice(values_of(self._world.words, attribute))

    def fact(self, entity: str, attribute: str) -> str | None:
        """The world's fact where the model knows it, else one rolled once and kept."""
        if self._world.knows(entity, attribute):
            return self._world.facts[entity, attribute]
        key = (entity, attribute)
        if key not in self._facts:
            if attribute in RELATIONS and self._rng.random() < 0.25:
                self._facts[key] = self._rng.choice(self._world.known_people)
            else:
                self._facts[key] = self.guess(attribute)
        return self._facts[key]

    def entry(self, place: str, attribute: str) -> Entry | None:
        """The almanac's entry, rolled when first asked for, with its own page and a spare one."""
        key = (place, attribute)
        if key not in self._entries:
            value = self.fact(place, attribute)
            assert value is not None
            first, second = self._rng.sample(range(FIRST_PAGE, LAST_PAGE + 1), 2)
            entry = roll_entry(
                self._rng,
                place=place,
                attribute=attribute,
                value=value,
                values=values_of(self._world.words, attribute),
                pages=(first, second),
            )
            self._entries[key] = entry
            self._pages[first] = entry
            if entry.link is not None:
                self._pages[second] = entry
        return self._entries[key]

    def twin(self, place: str) -> str | None:
        """A place of a similar name, which every second place has; None for the others."""
        if place not in self._twins:
            self._twins[place] = self._strange_place(place) if self._rng.random() < 0.5 else None
        return self._twins[place]

    def places(self) -> Sequence[str]:
        """The places that have come up so far."""
        return self._places

    def on_page(self, page: int) -> Entry | None:
        """The entry on a page; None where nothing that came up stands there."""
        return self._pages.get(page)

    def _strange_place(self, like: str | None = None) -> str:
        taken = self._world.reserved.union(self._places)
        if like is None:
            while (name := draw_place(self._rng)) in taken:
                pass
            return name
        adjective = like.split()[0]
        free = [name for noun in NOUNS if (name := f"{adjective} {noun}") not in taken]
        return self._rng.choice(free) if free else self._strange_place()
