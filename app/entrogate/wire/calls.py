"""The tool calls of one choice, put together from the deltas of a stream or taken from a body.

What parsers send differs: calls that grow side by side, ids in every piece or in none, a name after
the id, in pieces, or in every piece. The index says which call a piece belongs to. Where a server
leaves it out, or gives it to several calls, ids and names do.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from io import StringIO

import orjson

from entrogate.errors import UpstreamProtocol
from entrogate.wire.chunks import ToolCallPart

MAX_CALLS = 1024
"""Calls of one choice; an upstream that sends more is broken."""
MAX_CHARACTERS = 16 * 2**20
"""Characters that the names and arguments of one choice's calls may have together."""
MAX_NAME_CHARACTERS = 4096
_CHECKS = 16  # how often the arguments of one call are tried for being whole


class AccumulatedCall:
    """One call, as far as it has come.

    ``upstream_id`` is the first id that was not empty, ``name`` what stands for it so far:
    `is_named` says when no more of it can come.
    """

    __slots__ = (
        "_arguments",
        "_checks",
        "index",
        "is_named",
        "n_characters",
        "name",
        "upstream_id",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.upstream_id = ""
        self.name = ""
        self.is_named = False
        self.n_characters = 0
        self._arguments = StringIO(newline="")
        self._checks = _CHECKS

    @property
    def arguments(self) -> str:
        """The text of the arguments; copies it, so ask once per event at most."""
        return self._arguments.getvalue()

    def is_whole(self) -> bool:
        """Are its arguments whole JSON? Tried some times only: each time costs their length."""
        self._checks -= 1
        if self._checks < 0:
            return False
        try:
            orjson.loads(self.arguments)
        except orjson.JSONDecodeError:
            return False
        return True

    def take(self, part: ToolCallPart) -> int:
        """Take one piece; returns by how many characters the call grew.

        Raises UpstreamProtocol when its name has no end.
        """
        if part.id and not self.upstream_id:
            self.upstream_id = part.id
        function = part.function
        if function is None:
            return 0
        grown, name, arguments = 0, function.name, function.arguments
        if name and not self.is_named and name != self.name:  # equal: said again
            self.name += name
            grown = len(name)
            if len(self.name) > MAX_NAME_CHARACTERS:
                said = f"the name of a tool call exceeds {MAX_NAME_CHARACTERS} characters"
                raise UpstreamProtocol(said)
        if arguments:
            self._arguments.write(arguments)
            self.is_named = bool(self.name)
            grown += len(arguments)
        self.n_characters += grown
        return grown


def _index_of(call: AccumulatedCall) -> int:
    return call.index


class CallAccumulator:
    """The calls of one choice; ``calls`` lists them in the order of their indexes.

    The index is the key. The first id that is not empty stands. A name may come late and in pieces,
    and ends where the first arguments follow it; saying it again does not double it. Arguments are
    appended. Each piece costs the same, however long the calls have become.
    """

    __slots__ = ("_by_index", "_last", "_moved", "_n_characters", "calls", "is_renumbered")

    def __init__(self) -> None:
        self.calls: list[AccumulatedCall] = []
        self.is_renumbered = False  # was a piece given another index than its server's?
        self._moved: dict[int, int] = {}  # from an index of the server's to ours
        self._last: AccumulatedCall | None = None
        self._by_index: dict[int, AccumulatedCall] = {}
        self._n_characters = 0

    def get(self, index: int) -> AccumulatedCall | None:
        """The call with this index, if a piece of it has come."""
        return self._by_index.get(index)

    def feed(self, parts: Iterable[ToolCallPart]) -> None:
        """Take the pieces of one delta. Raises UpstreamProtocol when there are too many.

        Sets the index of a piece that has none, or that of another call.
        """
        for part in parts:
            if part.index < 0 or self._moved or self._is_another(part):
                part.index = self._renumbered(part)
                self.is_renumbered = True
            self._take(part.index, part)

    def feed_whole(self, parts: Iterable[ToolCallPart]) -> None:
        """Take the calls of a body, which are numbered by their position."""
        for position, part in enumerate(parts):
            self._take(position, part)

    def _is_another(self, part: ToolCallPart) -> bool:
        """Does a piece begin another call than the one that has its index, which is whole?"""
        call = self._by_index.get(part.index)
        return (
            call is not None
            and bool(part.id and call.upstream_id and part.id != call.upstream_id)
            and bool(part.function is not None and part.function.name)
            and call.is_whole()
        )

    def _renumbered(self, part: ToolCallPart) -> int:
        """The index of the call that a piece belongs to."""
        known = next((c for c in self.calls if part.id and c.upstream_id == part.id), None)
        if known is not None:
            return known.index
        given = part.index
        if given >= 0 and not self._is_another_moved(part):
            return self._moved.get(given, given)
        if given < 0 and self._last is not None and not _begins(part, self._last):
            return self._last.index
        index = self.calls[-1].index + 1 if self.calls else 0
        if given >= 0:
            self._moved[given] = index
        return index

    def _is_another_moved(self, part: ToolCallPart) -> bool:
        moved = self._moved.get(part.index, part.index)
        given, part.index = part.index, moved
        another = self._is_another(part)
        part.index = given
        return another

    def _take(self, index: int, part: ToolCallPart) -> None:
        call = self._by_index.get(index)
        if call is None:
            if len(self.calls) >= MAX_CALLS:
                raise UpstreamProtocol(f"the upstream sent more than {MAX_CALLS} tool calls")
            call = self._by_index[index] = AccumulatedCall(index)
            insort(self.calls, call, key=_index_of)
        self._last = call
        self._n_characters += call.take(part)
        if self._n_characters > MAX_CHARACTERS:
            raise UpstreamProtocol(
                f"the arguments of the upstream's tool calls exceed {MAX_CHARACTERS} characters"
            )


def _begins(part: ToolCallPart, last: AccumulatedCall) -> bool:
    """Does a piece without an index begin a call, or go on with the last one?"""
    name = part.function.name if part.function is not None else None
    has_new_id = bool(part.id and last.upstream_id)
    if not (name or has_new_id):
        return False
    if name and (has_new_id or (name != last.name and last.name and not last.is_named)):
        return True
    return last.is_whole()
