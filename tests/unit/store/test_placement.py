"""Where turns go: continuations, forks, breaks of the prefix, siblings."""

from dataclasses import replace

import numpy as np

from entrogate.store.heads import head_of_record
from entrogate.store.write.placement import Extent, Place, Placement
from entrogate.types import TurnHead, TurnRecord
from tests.unit.store.made import sequence, turn


def head(record: TurnRecord) -> TurnHead:
    return head_of_record(record, 0, 0)


def follow(parent: TurnRecord, **changed: object) -> TurnRecord:
    return turn(parent.trajectory_id, parent=parent, head=head(parent), **changed)  # type: ignore[arg-type]


def places(*records: TurnRecord) -> list[Place]:
    placement = Placement({}, {})
    return [placement.place(record) for record in records]


def test_a_chain_stays_on_one_branch_and_stores_only_what_it_adds() -> None:
    first = turn("t")
    second = follow(first)
    third = follow(second)
    found = places(first, second, third)
    assert [(p.turn_index, p.branch_index) for p in found] == [(0, 0), (1, 0), (2, 0)]
    assert [p.prompt_offset for p in found] == [0, len(sequence(first)), len(sequence(second))]
    assert [p.parent_id for p in found] == [None, first.turn_id, second.turn_id]


def test_the_second_continuation_of_a_turn_is_a_fork() -> None:
    first = turn("t")
    found = places(first, follow(first), follow(first), follow(first))
    assert [(p.turn_index, p.branch_index) for p in found] == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert {p.prompt_offset for p in found[1:]} == {len(sequence(first))}


def test_a_broken_prefix_opens_a_branch_and_leaves_the_parents_free() -> None:
    first = turn("t")
    broken = sequence(first).copy()
    broken[-1] ^= 1
    rewritten = follow(first, prompt=np.concatenate([broken, broken]))
    found = places(first, rewritten, follow(first))
    assert [(p.branch_index, p.prompt_offset) for p in found] == [
        (0, 0),
        (1, 0),
        (0, len(sequence(first))),
    ]


def test_a_prompt_that_ends_before_the_parents_sample_is_no_continuation() -> None:
    first = turn("t")
    found = places(first, follow(first, prompt=sequence(first)[:-1]))
    assert found[1].branch_index == 1
    assert found[1].parent_id == first.turn_id


def test_choices_of_one_request_are_siblings() -> None:
    first = turn("t")
    shared = np.concatenate([sequence(first), sequence(first)[:3]])
    choices = [follow(first, prompt=shared, choice_index=n) for n in range(3)]
    assert [p.branch_index for p in places(first, *choices)] == [0, 0, 1, 2]
    alone = [replace(turn("u", prompt=shared), choice_index=n) for n in range(2)]
    assert [p.branch_index for p in places(*alone)] == [0, 1]


def test_a_parent_that_is_not_stored_is_reported() -> None:
    lost = turn("t")
    (found,) = places(follow(lost))
    assert found == Place(
        turn_index=0, branch_index=0, parent_id=None, prompt_offset=0, orphaned=True
    )


def test_a_parent_of_another_trajectory_lends_no_branch() -> None:
    first = turn("t")
    found = places(first, turn("u", parent=first, head=head(first)))
    assert found[1] == Place(
        turn_index=0, branch_index=0, parent_id=first.turn_id, prompt_offset=0, orphaned=False
    )


def test_indices_go_on_from_what_is_stored() -> None:
    placement = Placement({"t": Extent(n_turns=4, n_branches=2)}, {})
    found = placement.place(turn("t"))
    assert (found.turn_index, found.branch_index) == (4, 2)
