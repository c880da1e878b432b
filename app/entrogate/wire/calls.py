"""The tool calls of one choice, put together from the deltas of a stream or taken from a body.

What parsers send differs: calls that grow side by side, ids in every piece or in none, a name after
the id, in pieces, or in every piece. Only the index says which call a piece belongs to.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from io import StringIO

from entrogate.errors import UpstreamProtocol
from entrogate.wire.chunks import ToolCallPart

MAX_CALLS = 1024
"""Calls of one choice; an upstream that sends more is broken."""
MAX_CHARACTERS = 16 * 2**20
"""Characters that the names and arguments of one choice's calls may have together."""
MAX_NAME_CHARACTERS = 4096


class AccumulatedCall:
    """One call, as far as it has come.

    ``upstream_id`` is the first id that was not empty, ``name`` what stands for it so far:
    `is_named` says when no more of it can come.
    """

    __slots__ = ("_arguments", "index", "is_named", "n_characters", "name", "upstream_id")

    def __init__(self, index: int) -> None:
        self.index = index
        self.upstream_id = ""
        self.name = ""
        self.is_named = False
        self.n_characters = 0
        self._arguments = StringIO(newline="")

    @property
    def arguments(self) -> str:
        """The text of the arguments; copies it, so ask once per event at most."""
        return self._arguments.getvalue()

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

    __slots__ = ("_by_index", "_n_characters", "calls")

    def __init__(self) -> None:
        self.calls: list[AccumulatedCall] = []
        self._by_index: dict[int, AccumulatedCall] = {}
        self._n_characters = 0

    def get(self, index: int) -> AccumulatedCall | None:
        """The call with this index, if a piece of it has come."""
        return self._by_index.get(index)

    def feed(self, parts: Iterable[ToolCallPart]) -> None:
        """Take the pieces of one delta. Raises UpstreamProtocol when there are too many."""
        for part in parts:
            self._take(part.index, part)

    def feed_whole(self, parts: Iterable[ToolCallPart]) -> None:
        """Take the calls of a body, which are numbered by their position."""
        for position, part in enumerate(parts):
            self._take(position, part)

    def _take(self, index: int, part: ToolCallPart) -> None:
        call = self._by_index.get(index)
        if call is None:
            if len(self.calls) >= MAX_CALLS:
                raise UpstreamProtocol(f"the upstream sent more than {MAX_CALLS} tool calls")
            call = self._by_index[index] = AccumulatedCall(index)
            insort(self.calls, call, key=_index_of)
        self._n_characters += call.take(part)
        if self._n_characters > MAX_CHARACTERS:
            raise UpstreamProtocol(
                f"the arguments of the upstream's tool calls exceed {MAX_CHARACTERS} characters"
            )
