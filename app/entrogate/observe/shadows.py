"""Metrics of shadows (`docs/shadows.md`) and of the grader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Protocol

from prometheus_client import Counter, Gauge


class ShadowOutcome(StrEnum):
    """What became of a shadow that was due."""

    STORED = "stored"
    DROPPED = "dropped"  # too many were waiting
    UNAVAILABLE = "unavailable"  # the tokens before the call are not known exactly
    NO_ROOM = "no_room"  # the turn already fills the context or its token limit
    FAILED = "failed"  # the model server failed or its answer could not be used
    UNSTORED = "unstored"  # the store did not take it, or its turn is gone


class MakeCounter(Protocol):
    """Makes and registers a counter."""

    def __call__(self, name: str, text: str, *labels: str) -> Counter:
        """``name`` without the prefix and the suffix."""
        ...


class MakeGauge(Protocol):
    """Makes and registers a gauge."""

    def __call__(self, name: str, text: str, *labels: str) -> Gauge:
        """``name`` without the prefix."""
        ...


class ShadowMetrics:
    """Part of `Metrics`."""

    def __init__(self, counter: MakeCounter, gauge: MakeGauge) -> None:
        self._shadows = counter(
            "shadows", "Shadow answers that were due, by outcome.", "purpose", "outcome"
        )
        self._called = counter(
            "shadows_called", "Shadow answers in which the model wrote a call as text."
        )
        self._tokens = counter("shadow_tokens", "Tokens sampled for shadow answers.")
        self._scored = counter(
            "shadow_scores", "Scores given to shadow answers, by source.", "judged_by"
        )
        self._failures = counter(
            "grader_failures", "Failures of the grader of shadow answers, by kind.", "kind"
        )
        self._waiting = gauge("shadows_waiting", "Shadow answers waiting to be decoded.")
        for outcome in ShadowOutcome:
            self._shadows.labels("sample", outcome.value)
        for kind in ("timeout", "raised", "invalid", "unavailable", "hanging", "dropped"):
            self._failures.labels(kind)

    def record(self, purpose: str, outcome: ShadowOutcome) -> None:
        """What became of one shadow."""
        self._shadows.labels(purpose, outcome.value).inc()

    def record_decoded(self, *, tokens: int, called: bool) -> None:
        """One shadow came from the model server."""
        self._tokens.inc(tokens)
        if called:
            self._called.inc()

    def record_scores(self, scores: Mapping[str, int]) -> None:
        """So many shadows got a score, by what gave it."""
        for judged_by, count in scores.items():
            if count:
                self._scored.labels(judged_by).inc(count)

    def record_grader_failure(self, kind: str) -> None:
        """The grader gave no score."""
        self._failures.labels(kind).inc()

    def watch(self, waiting: Callable[[], int]) -> None:
        """Read how many wait whenever Prometheus asks."""
        self._waiting.set_function(waiting)
