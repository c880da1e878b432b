"""What a turn uses of a running gateway."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from entrogate.gate.schema import Policy
from entrogate.observe.metrics import Metrics
from entrogate.store import Store
from entrogate.types import Mode
from entrogate.upstream.captures import CaptureChannel
from entrogate.upstream.client import UpstreamClient
from entrogate.weights.leases import Weights

if TYPE_CHECKING:  # it needs the extra `otel`
    from entrogate.observe.tracing import Tracing


class Parts(Protocol):
    """Implemented by `serve.gateway.Gateway`."""

    @property
    def client(self) -> UpstreamClient:
        """The connection to the model server."""
        ...

    @property
    def store(self) -> Store:
        """Where turns are committed and looked up."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Where the turn is counted."""
        ...

    @property
    def weights(self) -> Weights:
        """Which weights answer, and leases of the versions in use."""
        ...

    @property
    def random(self) -> random.Random:
        """The source of the draws that explore."""
        ...

    @property
    def channel(self) -> CaptureChannel | None:
        """None: capture by log-probs only."""
        ...

    @property
    def tracing(self) -> Tracing | None:
        """None: turns are not traced."""
        ...

    @property
    def tool_call_token(self) -> str:
        """The text of the token that opens a call."""
        ...

    def mode_of_turn(
        self, policy: Policy, mode: Mode, *, weights: str, model: str, counts: bool
    ) -> Mode:
        """What the gate may do in a turn that these weights answer."""
        ...

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` to its end even though nobody waits for it."""
        ...
