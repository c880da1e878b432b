"""Publishing that never raises into the decoder."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from entrogate.engine.publisher import Publisher, Silence, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from entrogate.engine.faults import Faults
    from entrogate.engine.gate import GateState


class Guarded(Silence):
    """A publisher whose faults are counted; what it held is lost, and its gateways see the gap.

    A boundary of its own: only one tensor-parallel rank publishes, and a fault there must not
    change what its gate does beside the other ranks.
    """

    def __init__(self, publisher: Publisher, faults: Faults) -> None:
        self.publisher = publisher
        self._guard = partial(faults.guard, undo=publisher.lose)

    def began(
        self, gateway: str, request: str, choice: int, prompt: Sequence[int], *, resumed: int
    ) -> Stream:
        began = self._guard(self.publisher.began, gateway, request, choice, prompt, resumed=resumed)
        return Stream(gateway, 0) if began is None else began

    def tokens(
        self,
        streams: Sequence[Stream],
        token_ids: Sequence[int],
        logprobs: np.ndarray,
        measured: np.ndarray,
    ) -> None:
        self._guard(self.publisher.tokens, streams, token_ids, logprobs, measured)

    def gated(
        self, stream: Stream, gate: GateState, *, position: int, action: str, p_tool_call: float
    ) -> None:
        event: dict[str, Any] = {"position": position, "action": action, "p_tool_call": p_tool_call}
        self._guard(self.publisher.gated, stream, gate, **event)

    def ended(self, stream: Stream, n_tokens: int) -> None:
        self._guard(self.publisher.ended, stream, n_tokens)

    def step(self) -> None:
        self._guard(self.publisher.step)
