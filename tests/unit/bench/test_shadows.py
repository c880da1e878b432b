"""The answer under a policy, read from an observed trajectory and its shadows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate_lab.bench.shadows import MISSING, answer_under
from tests.unit.store.made import calls_of, features, policy, segment, shadow, turn


@pytest.mark.parametrize(
    ("means", "shadowed", "answer"),
    [
        ((1.0, 1.0), (True, True), None),  # never below 0.5
        ((1.0, 0.2), (True, True), "turn 1"),
        ((0.2, 0.2), (True, True), "turn 0"),
        ((0.2, 1.0), (False, True), MISSING),
        ((1.0, 0.2), (False, True), "turn 1"),  # not needed where the call is allowed
    ],
)
async def test_the_first_suppressed_call_ends_it(
    tmp_path: Path, means: tuple[float, ...], shadowed: tuple[bool, ...], answer: str | None
) -> None:
    store = Store.open(StoreSettings(url=f"sqlite:///{tmp_path}/store.db"))
    await store.start()
    parent, head = None, None
    for index, (mean, has_one) in enumerate(zip(means, shadowed, strict=True)):
        calls = calls_of(features("lookup", segment(mean)))
        parent = turn("one", parent=parent, head=head, calls=calls)
        (head,) = await store.commit_turns([parent])
        if has_one:
            await store.shadows.add(replace(shadow(parent), content=f"turn {index}"))
    found = await store.get_trajectory("one")
    await store.aclose()
    assert answer_under(policy(), found) == answer
