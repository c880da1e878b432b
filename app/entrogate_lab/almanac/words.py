"""Invented words: the names of people, cities, guilds, ships, founders and rivers."""

import random
from dataclasses import dataclass

_ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "r", "s")
_ONSETS_LATER = ("d", "l", "m", "n", "r", "t", "v", "z", "nd", "lm", "rv", "st")
_VOWELS = ("a", "e", "i", "o", "u")

ADJECTIVES = (
    "Amber", "Ashen", "Birch", "Black", "Blue", "Copper", "Crown", "Dawn", "Elder", "Frost",
    "Glass", "Golden", "Green", "Grey", "Hollow", "Iron", "Ivory", "Lone", "Moon", "North",
    "Old", "Red", "Salt", "Silver",
)  # fmt: skip
NOUNS = (
    "Abbey", "Arch", "Barn", "Bridge", "Castle", "Chapel", "Court", "Dock", "Farm", "Ferry",
    "Forge", "Gate", "Hall", "House", "Inn", "Keep", "Lodge", "Market", "Mill", "Priory",
    "School", "Tower", "Vault", "Well",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The pools that every name and value of one world is drawn from."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    city: tuple[str, ...]
    guild: tuple[str, ...]
    ship: tuple[str, ...]
    founder: tuple[str, ...]
    river: tuple[str, ...]

    def everything(self) -> tuple[str, ...]:
        """All words, the places' English ones included."""
        invented = self.first + self.last + self.city + self.guild + self.ship
        return invented + self.founder + self.river + ADJECTIVES + NOUNS


def invent_words(rng: random.Random) -> Words:
    """Draw the pools; no word occurs in two of them."""
    taken = {word.lower() for word in ADJECTIVES + NOUNS}
    return Words(
        first=_pool(rng, taken, 80, ("a", "o", "n", "s")),
        last=_pool(rng, taken, 80, ("in", "er", "ek", "ard")),
        city=_pool(rng, taken, 64, ("dra", "burg", "ton", "via")),
        guild=_pool(rng, taken, 64, ("ix", "orn", "ael", "ith")),
        ship=_pool(rng, taken, 64, ("una", "essa", "ora", "ene")),
        founder=_pool(rng, taken, 64, ("mund", "win", "ric", "bert")),
        river=_pool(rng, taken, 64, ("le", "we", "sk", "yre")),
    )


def _pool(
    rng: random.Random, taken: set[str], count: int, endings: tuple[str, ...]
) -> tuple[str, ...]:
    words: list[str] = []
    while len(words) < count:
        word = rng.choice(_ONSETS) + rng.choice(_VOWELS)
        if rng.random() < 0.5:
            word += rng.choice(_ONSETS_LATER) + rng.choice(_VOWELS)
        word += rng.choice(endings)
        if len(word) >= 4 and word not in taken:
            taken.add(word)
            words.append(word.capitalize())
    return tuple(words)
