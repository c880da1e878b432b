"""Metrics of the audits and fuses (`serve.fuses`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import Gauge

_LABELS = ("policy", "version", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseFigures:
    """What is shown of one tool under one policy. Rates are of judged audits; None: unknown."""

    policy: str
    version: str
    tool: str
    blown: bool
    audits: int
    waiting: int
    losses: int
    estimate: float | None
    lower: float | None
    upper: float | None
    max_loss: float


class FuseMetrics:
    """``gauge`` makes a gauge of the gateway's registry, ``tool`` a harmless label."""

    def __init__(self, gauge: Callable[..., Gauge], tool: Callable[[str], str]) -> None:
        self._tool = tool
        self._blown = gauge(
            "fuse_blown",
            "1 while the tool is only observed because audits showed too many losses, else 0.",
            *_LABELS,
        )
        self._audits = gauge("fuse_audits", "Audits that have been judged.", *_LABELS)
        self._waiting = gauge(
            "fuse_audits_waiting",
            "Audits that still lack an outcome or a score of the answer without the call.",
            *_LABELS,
        )
        self._losses = gauge("fuse_losses", "Judged audits in which the call was needed.", *_LABELS)
        self._rate = gauge("fuse_loss_rate", "Share of judged audits that were losses.", *_LABELS)
        self._lower = gauge(
            "fuse_loss_rate_lower",
            "Lower confidence bound on the loss rate, valid at all times.",
            *_LABELS,
        )
        self._upper = gauge(
            "fuse_loss_rate_upper",
            "Upper confidence bound on the loss rate, valid at all times.",
            *_LABELS,
        )
        self._limit = gauge("fuse_max_loss", "Loss rate that the policy allows.", *_LABELS)

    def set(self, fuses: Sequence[FuseFigures]) -> None:
        """Show these fuses and no others."""
        gauges = (self._blown, self._audits, self._waiting, self._losses, self._limit)
        for gauge in (*gauges, self._rate, self._lower, self._upper):
            gauge.clear()
        for fuse in fuses:
            labels = (fuse.policy, fuse.version, self._tool(fuse.tool))
            counts = (float(fuse.blown), fuse.audits, fuse.waiting, fuse.losses, fuse.max_loss)
            for gauge, value in zip(gauges, counts, strict=True):
                gauge.labels(*labels).set(value)
            rates = (fuse.estimate, fuse.lower, fuse.upper)
            for gauge, rate in zip((self._rate, self._lower, self._upper), rates, strict=True):
                if rate is not None:
                    gauge.labels(*labels).set(rate)
