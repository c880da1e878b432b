"""What every turn shares: the parts of a running gateway."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from entrogate.errors import RequestError, StoreError
from entrogate.gate.schema import Policy
from entrogate.model_hashes import ModelHashes
from entrogate.observe.metrics import Metrics
from entrogate.segments.spans import Markers
from entrogate.serve.calibration import Calibrations
from entrogate.serve.fuses import Fuses
from entrogate.serve.graders import Grader
from entrogate.serve.grading import Grading
from entrogate.serve.policies import Policies
from entrogate.serve.shadows import Shadows
from entrogate.settings import Settings
from entrogate.store import Store
from entrogate.turn.clock import Clock
from entrogate.types import Mode
from entrogate.upstream.capabilities import Capabilities
from entrogate.upstream.captures import CaptureChannel
from entrogate.upstream.client import UpstreamClient
from entrogate.upstream.handshake import ask_capabilities, ask_identity
from entrogate.upstream.hashes import ask_hashes
from entrogate.upstream.watch import UpstreamWatch
from entrogate.weights.leases import Weights

if TYPE_CHECKING:  # it needs the extra `otel`
    from entrogate.observe.tracing import Tracing

MODE_HEADER = "x-entrogate-mode"
_log = logging.getLogger("entrogate.serve")


@dataclass(slots=True, kw_only=True)
class Gateway:
    """The parts, and the little state that is not in the store."""

    settings: Settings
    client: UpstreamClient
    store: Store
    policies: Policies
    metrics: Metrics
    channel: CaptureChannel | None = None  # None: capture by log-probs only
    grader: Grader | None = None  # None: shadows are scored by gold and agreement alone
    tracing: Tracing | None = None  # None: no traces
    weights: Weights = field(default_factory=Weights)
    vocab_size: int | None = None
    random: random.Random = field(default_factory=random.Random)
    clock: Clock = field(default_factory=Clock)
    background: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    watch: UpstreamWatch = field(init=False)
    grading: Grading = field(init=False)
    shadows: Shadows = field(init=False)
    fuses: Fuses = field(init=False)
    calibrations: Calibrations = field(init=False)

    def __post_init__(self) -> None:
        self.fuses = Fuses(
            records=self.store.fuses,
            policies=self.policies.in_force,
            metrics=self.metrics.fuses,
            interval_seconds=self.settings.gate.fuse_interval_seconds,
        )
        self.calibrations = Calibrations(
            required=self.settings.gate.require_calibration,
            policies=self.policies.in_force,
            mode_of=self.policies.mode_of,
            stable_weights=lambda: self.weights.routes.stable.version,
            metrics=self.metrics.calibration,
        )
        self.policies.on_change.append(self.fuses.wake)
        self.watch = UpstreamWatch(
            ask=self._ask_capabilities,
            glance=lambda: ask_identity(self.client),
            on_found=self._use,
            interval_seconds=self.settings.upstream.watch_interval_seconds,
        )
        self.grading = Grading(self.store, self.grader, self.metrics.shadows, self.settings.shadow)
        self.shadows = Shadows(
            self,
            self.settings.shadow,
            reasoning_end=self.settings.upstream.reasoning_end_token,
            on_stored=self.grading.queue_ungraded,
        )
        self.client.on_lost = self.watch.lost
        if self.channel is not None:
            self.channel.on_doubt = self.watch.suspect

    async def capabilities(self) -> Capabilities:
        """What the upstream can do, as far as is known; for the whole of one turn."""
        return await self.watch.capabilities()

    async def _ask_capabilities(self) -> Capabilities:
        found = await ask_capabilities(
            self.client, self.settings.upstream, vocab_size=self.vocab_size, channel=self.channel
        )
        hashes = await ask_hashes(self.client, found.model, found.folder)
        names = [found.model, *found.base_models]
        self.in_background(self._remember_model(names, hashes))
        self.calibrations.found(names, hashes.tokenizer, found.estimator)
        return found

    async def _remember_model(self, names: list[str], hashes: ModelHashes) -> None:
        """So that an export can tell a trainer which tokenizer the turns come from."""
        try:
            await self.store.remember_model(names, hashes)
        except StoreError as error:
            _log.warning("model.unrecorded %s", error)

    def _use(self, found: Capabilities) -> None:
        for problem in found.problems():
            _log.warning("upstream.limited %s", problem)
        self.metrics.set_upstream(found.model, found.estimator or "none")

    def wished_mode(self, wished: str | None) -> Mode | None:
        """The client's wish for one request, where the operator allows it; None: it has none."""
        if wished is None:
            return None
        if not self.settings.gate.allow_mode_header:
            raise RequestError(
                f"this gateway does not let clients choose with {MODE_HEADER};"
                " start it with --allow-mode-header",
                status=403,
                code="mode_not_allowed",
                param=MODE_HEADER,
            )
        try:
            return Mode(wished)
        except ValueError:
            raise RequestError(
                f"{MODE_HEADER} is {wished!r}; want observe, enforce or explore", param=MODE_HEADER
            ) from None

    @property
    def tool_call_token(self) -> str:
        """The text of the token that opens a tool call in the model's template."""
        return self.settings.upstream.tool_call_token

    def mode_of_turn(
        self, policy: Policy, mode: Mode, *, weights: str, model: str, counts: bool
    ) -> Mode:
        """What the gate may do in a turn that these weights answer: less where it has to be
        calibrated for them and is not."""
        return self.calibrations.mode(policy, mode, weights=weights, model=model, counts=counts)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` to its end even though nobody waits; the gateway waits when it stops."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)


def markers_of(capabilities: Capabilities) -> Markers:
    """The marker ids of a model as `segments` wants them."""
    return Markers(
        think_open=capabilities.reasoning_start_token_id,
        think_close=capabilities.reasoning_end_token_id,
        call_open=capabilities.tool_call_token_id,
        call_close=capabilities.tool_call_end_token_id,
        end=capabilities.control_token_ids,
    )
