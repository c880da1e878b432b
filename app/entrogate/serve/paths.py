"""What is said of routes by their patterns, found by a request's path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class PathTable(Generic[T]):
    """Values of patterns such as ``/v1/models`` and ``/v1/trajectories/{trajectory_id}``."""

    def __init__(self, values: Mapping[str, T]) -> None:
        self._exact = {path: value for path, value in values.items() if "{" not in path}
        below = {path[: path.index("{")]: v for path, v in values.items() if "{" in path}
        self._below = sorted(below.items(), key=lambda each: -len(each[0]))

    def get(self, path: str, default: T) -> T:
        """The value for a path; ``default`` where no pattern fits."""
        if path in self._exact:
            return self._exact[path]
        for beginning, value in self._below:
            if path.startswith(beginning):
                return value
        return default
