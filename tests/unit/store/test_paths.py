"""Which turns an outcome speaks of, where the store is damaged."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, text

from entrogate.store.paths import judged_path


def rows(*pairs: tuple[str, str | None]) -> list[Any]:
    listed = " UNION ALL ".join(
        f"SELECT '{name}' AS id, {'NULL' if parent is None else repr(parent)} AS parent_id,"
        " 1 AS has_calls"
        for name, parent in pairs
    )
    with create_engine("sqlite://").connect() as connection:
        return list(connection.execute(text(listed)))


@pytest.mark.parametrize(
    ("pairs", "path"),
    [
        ([("a", None), ("b", "a"), ("c", "b")], "abc"),
        ([("a", None), ("b", "gone"), ("c", "b")], "bc"),
        ([("a", "a")], "a"),
        ([("a", "c"), ("b", "a"), ("c", "b")], "abc"),
        ([("a", "b"), ("b", "a"), ("c", "b")], "abc"),
    ],
)
def test_no_turn_is_on_the_way_twice(pairs: list[tuple[str, str | None]], path: str) -> None:
    assert [row.id for row in judged_path(rows(*pairs), None)] == list(path)
