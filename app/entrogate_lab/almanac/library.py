"""The library of the `walk` domain: what `search` and `read` say about a place."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["plain", "hedged", "bare"]
Body = Literal["plain", "disputed"]

FIRST_PAGE, LAST_PAGE = 100, 999


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One attribute of one place, as the library tells it.

    `style` is how the search snippet speaks (`plain`: the true value; `hedged`: "perhaps" and
    `rumour`, which is mostly wrong; `bare`: nothing). `body` is how the page speaks (`disputed`:
    the true value and `rival`, in random order). With `link` the page only names another page.
    """

    place: str
    attribute: str
    value: str
    page: int
    style: Style
    rumour: str
    body: Body
    rival: str
    rival_first: bool
    link: int | None

    def snippet(self) -> str:
        """One line of search results."""
        head = f"[{self.page}] {self.place}: {self.attribute}"
        if self.style == "plain":
            return f"{head} {self.value}"
        if self.style == "hedged":
            return f"{head} perhaps {self.rumour}"
        return f"{head}, see page"

    def text(self, page: int) -> str:
        """The text of `page`, which is this entry's own page or the one it links to."""
        head = f"{self.place}: {self.attribute}"
        if self.link is not None and page == self.page:
            return f"{head} on page {self.link}"
        if self.body == "plain":
            return f"{head} {self.value}"
        first, second = (self.value, self.rival)
        if self.rival_first:
            first, second = second, first
        return f"{head} {first} or {second}"

    def path(self) -> tuple[int, ...]:
        """Pages to read, in order, until the fact is in view; empty when the snippet has it."""
        if self.style == "plain":
            return ()
        return (self.page,) if self.link is None else (self.page, self.link)


def roll_entry(
    rng: random.Random,
    *,
    place: str,
    attribute: str,
    value: str,
    values: Sequence[str],
    pages: tuple[int, int],
) -> Entry:
    """Draw how the library speaks about one fact; `pages` are its own page and a spare one."""
    style: Style = rng.choices(("plain", "hedged", "bare"), (0.40, 0.35, 0.25))[0]
    body: Body = rng.choices(("plain", "disputed"), (0.60, 0.40))[0]
    return Entry(
        place=place,
        attribute=attribute,
        value=value,
        page=pages[0],
        style=style,
        rumour=value if rng.random() < 0.25 else other(rng, values, value),
        body=body,
        rival=other(rng, values, value),
        rival_first=rng.random() < 0.5,
        link=pages[1] if rng.random() < 0.3 else None,
    )


def other(rng: random.Random, values: Sequence[str], value: str) -> str:
    """A value that is not `value`."""
    while (drawn := rng.choice(values)) == value:
        pass
    return drawn
