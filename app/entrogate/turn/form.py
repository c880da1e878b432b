"""How an answer is read and written: streamed (`stream.StreamForm`) or whole (`body.BodyForm`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from entrogate.errors import EntrogateError
from entrogate.turn.choice import Choice
from entrogate.turn.without import Without
from entrogate.upstream.answer import UpstreamAnswer


class Form(Protocol):
    """What `machine.Machine` asks of it. Bytes that are yielded or returned go to the client."""

    @property
    def cut(self) -> Choice | None:
        """The choice whose call was suppressed before it was whole; reading stopped there."""
        ...

    def begin_leg(self, *, calls_only: bool) -> None:
        """A leg was asked for. ``calls_only``: the client has its text from an earlier attempt."""
        ...

    def read(self, response: UpstreamAnswer) -> AsyncGenerator[bytes]:
        """Take the answer of the current leg into its choices. Raises UpstreamError."""
        ...

    def passed(self, choice: Choice) -> bool:
        """Has the client got calls of ``choice`` already?"""
        ...

    def let_through(self, choice: Choice) -> bytes:
        """The calls of ``choice`` may go."""
        ...

    def end_at_limit(self, choice: Choice) -> None:
        """The call of ``choice`` is dropped, and no token may follow."""
        ...

    def begin_with(self, choice: Choice, position: int, draft: Without) -> bytes:
        """Cut the call off that opened at ``position``; the choice goes on with ``draft``."""
        ...

    def read_resumed(
        self, choice: Choice, position: int | None, response: UpstreamAnswer
    ) -> AsyncGenerator[bytes]:
        """Take the rest of ``choice``, decoded without the call that opened at ``position``.

        Cuts the call off once the answer has begun to come; None: it is cut off already. Raises
        UpstreamError.
        """
        ...

    def catch_up(self) -> None:
        """Take into the choices what went to the client unread."""
        ...

    def end(self) -> bytes:
        """The last bytes, when all is recorded."""
        ...

    def break_off(self, error: EntrogateError) -> bytes:
        """The end of an answer that failed on the way; raises ``error`` if none can be made."""
        ...
