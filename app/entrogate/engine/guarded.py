"""Sending that never raises into the decoder."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from entrogate.engine.sender import CaptureSender, Sender, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from entrogate.engine.faults import Faults
    from entrogate.engine.gate import GateState


class GuardedSender(Sender):
    """Counts the faults of ``inner``; what it held is lost, and its gateways see the gap.

    A boundary of its own: only one tensor-parallel rank sends, and a fault there must not
    change what its gate does beside the other ranks.
    """

    def __init__(self, inner: CaptureSender, faults: Faults) -> None:
        self.inner = inner
        self._guard = partial(faults.guard, undo=inner.lose)

    def began(
        self, gateway: str, request: str, choice: int, prompt: Sequence[int], *, resumed: int
    ) -> Stream:
        """A stream without a number, so not captured, after a fault."""
        began = self._guard(self.inner.began, gateway, request, choice, prompt, resumed=resumed)
        return Stream(gateway, 0) if began is None else began

    def tokens(
        self,
        streams: Sequence[Stream],
        token_ids: Sequence[int],
        logprobs: np.ndarray,
        measured: np.ndarray,
    ) -> None:
        """The tokens are lost after a fault, with all else that waited."""
        self._guard(self.inner.tokens, streams, token_ids, logprobs, measured)

    def gated(
        self,
        stream: Stream,
        gate: GateState,
        *,
        position: int,
        action: str,
        p_tool_call: float,
        p_sampled: float = math.nan,
    ) -> None:
        """The gate's action stands even if a fault keeps it from being sent."""
        event: dict[str, Any] = {
            "position": position,
            "action": action,
            "p_tool_call": p_tool_call,
            "p_sampled": p_sampled,
        }
        self._guard(self.inner.gated, stream, gate, **event)

    def ended(self, stream: Stream, n_tokens: int) -> None:
        """After a fault the gateway sees a gap instead of this end."""
        self._guard(self.inner.ended, stream, n_tokens)

    def step(self) -> None:
        """Send what is due; after a fault, nothing of it is sent."""
        self._guard(self.inner.step)
