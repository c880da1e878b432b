"""Metrics: what happened, in Prometheus' words."""

from entrogate.observe.metrics import Metrics

__all__ = ["Metrics"]
