"""Graders as users write them, and ways in which they fail."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

seen: list[Mapping[str, Any]] = []
not_a_function = 3


def keeps(asked: Mapping[str, Any]) -> float:
    seen.append(asked)
    return 0.75


def says_berlin(asked: Mapping[str, Any]) -> np.float32:
    return np.float32("Berlin" in asked["answer"])


async def in_its_own_loop(asked: Mapping[str, Any]) -> bool:
    return "Berlin" in asked["answer"]


def raises(asked: Mapping[str, Any]) -> float:
    return asked["no such key"]


def leaves(_: Mapping[str, Any]) -> float:
    raise SystemExit(3)


def too_much(_: Mapping[str, Any]) -> float:
    return 1.01


def no_number(_: Mapping[str, Any]) -> float:
    return float("nan")


def a_word(_: Mapping[str, Any]) -> str:
    return "right"


def enormous(_: Mapping[str, Any]) -> int:
    return 10**400


def hangs(_: Mapping[str, Any]) -> float:
    time.sleep(2)  # the tests' time-out is far below
    return 1.0
