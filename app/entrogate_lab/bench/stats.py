"""What the scripted upstream has been asked: for tests and benchmarks to look at."""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Stats:
    """What the upstream has seen since the last reset."""

    requests: int = 0
    open: int = 0
    aborted: int = 0  # the client went away before the end of the answer
    paths: Counter[str] = field(default_factory=Counter[str])
    bodies: deque[bytes] = field(default_factory=lambda: deque[bytes](maxlen=256))
    traceparents: deque[str | None] = field(default_factory=lambda: deque[str | None](maxlen=256))

    def as_dict(self) -> dict[str, Any]:
        """What ``GET /_stats`` answers; bodies are parsed, empty ones null."""
        bodies = [json.loads(body) if body else None for body in self.bodies]
        counts = {"requests": self.requests, "open": self.open, "aborted": self.aborted}
        return counts | {"paths": dict(self.paths), "bodies": bodies}
