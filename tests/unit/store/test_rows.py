"""Typed rows have the columns that they are read from, in their order: that is their JSON."""

from dataclasses import fields

import orjson
import pytest
from sqlalchemy import Table

from entrogate.store import schema
from entrogate.store.codec import dump_segment
from entrogate.store.read.rows import (
    GivenFeedback,
    ListedTrajectory,
    Segment,
    Trajectory,
    TrajectoryRewards,
    TrajectorySummary,
    Turn,
    TurnWithTokens,
)
from entrogate.store.read.trajectory import read_segment
from tests.unit.store.made import segment


def names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


@pytest.mark.parametrize(
    ("kind", "table"),
    [(GivenFeedback, schema.feedback), (TrajectoryRewards, schema.rewards)],
)
def test_a_row_has_the_columns_of_its_table(kind: type, table: Table) -> None:
    assert names(kind) == [column.name for column in table.columns]


def test_what_a_list_and_a_page_add_to_a_trajectory() -> None:
    columns = [column.name for column in schema.trajectories.columns]
    assert names(TrajectorySummary) == [*columns, "complete"]
    assert names(ListedTrajectory) == [*columns, "complete", "sparse_reward"]
    parts = ["turns", "toolsets", "feedback", "rewards"]
    assert names(Trajectory) == [*columns, "complete", *parts]
    assert names(TurnWithTokens) == [*names(Turn), "tokens"]


def test_a_segment_is_written_as_it_was_stored() -> None:
    text = dump_segment(segment(0.5))
    assert text is not None
    read = read_segment(text)
    assert isinstance(read, Segment)
    assert orjson.dumps(read).decode() == text
