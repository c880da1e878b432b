"""Label values that stay few: a metric must not grow with what clients or models make up."""

from __future__ import annotations

import re

OTHER = "other"
_UNUSUAL = re.compile(r"[^A-Za-z0-9_.:/-]+")
_LENGTH = 64


class BoundedLabel:
    """Passes the first ``limit`` distinct values, made harmless; folds the rest into `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        """The label value to use for ``value``."""
        label = self._known.get(value)
        if label is not None:
            return label
        if len(self._known) >= self._limit:
            return OTHER
        label = _UNUSUAL.sub("_", value)[:_LENGTH] or OTHER
        self._known[value] = label
        return label
