"""Token distributions to numbers: bounds of the entropy, statistics of a segment."""

from entrogate.entropy.capture import CaptureBuilder
from entrogate.entropy.statistics import segment_stats
from entrogate.entropy.topk import TopkBounds, topk_bounds

__all__ = ["CaptureBuilder", "TopkBounds", "segment_stats", "topk_bounds"]
