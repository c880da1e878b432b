"""Turns through the real store: what is committed is read, linked and replayed."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import orjson
import pytest
from sqlalchemy import text

from entrogate.errors import StoreError
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.heads import head_of_record
from entrogate.types import ToolResult, TurnHead, TurnRecord
from tests.integration.stored import trajectory_json
from tests.unit.store.made import (
    allowed_call,
    calls_of,
    capture,
    change,
    features,
    segment,
    sequence,
    turn,
)

pytestmark = pytest.mark.both_stores


def settings(url: str, **changed: object) -> StoreSettings:
    return StoreSettings.model_validate({"url": url} | changed)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store.open(settings(store_url))
    await opened.start()
    yield opened
    await opened.aclose()


async def commit(store: Store, record: TurnRecord) -> TurnHead:
    (head,) = await store.commit_turns([record])
    return head


async def test_a_turn_reads_back_as_it_was_written(store: Store) -> None:
    await store.remember_policy("v1", "test", "enforce", "text")
    first = turn("t", task_id="task", calls=allowed_call(), metadata={"run": "7"})
    result = ToolResult(call_id=first.calls[0].call_id, content="Ada lives in Ghent")
    second = turn(
        "t",
        parent=first,
        head=await commit(store, first),
        results=[result],
        change=change(True),
        segment=None,
    )
    await commit(store, second)
    found = await trajectory_json(store, "t", tokens=True)

    assert (found["task_id"], found["model"], found["mode"]) == ("task", "almanac", "enforce")
    assert (found["n_turns"], found["n_branches"], found["n_calls"]) == (2, 1, 1)
    assert found["metadata"] == {"run": "7"}
    assert found["complete"] is True
    one, two = found["turns"]
    assert one["segment"]["mean"] == {"lower": 0.9, "upper": 1.1}
    assert one["segment"]["estimator"] == "topk"
    assert one["spans"] == [
        {"kind": "reasoning", "start": 0, "stop": 5},
        {"kind": "control", "start": 5, "stop": 6},
    ]
    assert one["altered"] == [[1, 2]]
    assert one["messages"] == orjson.loads(first.new_messages)
    assert one["response"] == {"role": "assistant", "content": "so"}
    assert found["toolsets"][one["toolset_id"]][0]["function"]["name"] == "lookup"
    (call,) = one["calls"]
    assert call["decision"]["reason"] == "not_named"
    assert call["features"]["draw"] == 0.25
    assert one["change"] is None
    assert two["segment"] is None
    assert two["parent_id"] == first.turn_id
    assert two["results"] == [{"call_id": result.call_id, "content": result.content}]
    assert two["change"]["delta"] == {"lower": -0.75, "upper": -0.25}
    assert two["change"]["reduced"] is True
    assert two["tokens"]["prompt_token_ids"] == second.prompt_token_ids.tolist()
    assert two["tokens"]["token_ids"] == second.capture.token_ids.tolist()
    assert "tokens" not in (await trajectory_json(store, "t"))["turns"][0]


@pytest.mark.parametrize("exact", [True, False])
async def test_arrays_are_stored_bit_for_bit(store: Store, exact: bool) -> None:
    sampled = capture(1000, seed=5, exact=exact)
    record = turn("t", capture=sampled, length=1000)
    await commit(store, record)
    tokens = (await trajectory_json(store, "t", tokens=True))["turns"][0]["tokens"]
    for name in ("logprobs", "entropy_lower", "entropy_upper", "margin", "tail_mass"):
        read = np.array(tokens[name], dtype=np.float32)
        assert read.tobytes() == getattr(sampled, name).tobytes(), name
    read = np.array(tokens["p_tool_call"], dtype=np.float32)  # None becomes nan again
    assert np.array_equal(read, sampled.p_tool_call, equal_nan=True)


async def test_forks_and_breaks_become_branches(store: Store) -> None:
    root = turn("t")
    root_head = await commit(store, root)
    left = turn("t", parent=root, head=root_head)
    right = turn("t", parent=root, head=root_head)
    left_head, right_head = await commit(store, left), await commit(store, right)
    compacted = turn("t", parent=left, head=left_head, prompt=np.array([1, 2, 3], dtype=np.int32))
    on_right = turn("t", parent=right, head=right_head)
    heads = [root_head, left_head, right_head]
    heads += [await commit(store, compacted), await commit(store, on_right)]
    assert [head.turn_index for head in heads] == [0, 1, 2, 3, 4]
    assert [head.branch_index for head in heads] == [0, 0, 1, 2, 1]
    found = await trajectory_json(store, "t", tokens=True)
    assert found["n_branches"] == 3
    written = [root, left, right, compacted, on_right]
    for record, read in zip(written, found["turns"], strict=True):
        assert read["tokens"]["prompt_token_ids"] == record.prompt_token_ids.tolist()


async def test_a_chain_committed_at_once_links_within_itself(store: Store) -> None:
    internal = turn("t", calls=allowed_call(), replayed=True)
    visible = turn("t", parent=internal, head=head_of_record(internal, 0, 0))
    heads = await store.commit_turns([internal, visible])
    assert [(head.turn_index, head.branch_index) for head in heads] == [(0, 0), (1, 0)]
    found = await trajectory_json(store, "t", tokens=True)
    assert found["turns"][1]["parent_id"] == internal.turn_id
    assert found["turns"][1]["tokens"]["prompt_token_ids"] == visible.prompt_token_ids.tolist()


async def test_a_prefix_is_not_stored_twice(store: Store, store_url: str) -> None:
    first = turn("t", prompt=np.arange(5000, dtype=np.int32))
    await commit(store, turn("t", parent=first, head=await commit(store, first)))
    with store._database.reader.connect() as connection:
        sizes = connection.execute(
            text("SELECT length(prompt_token_ids) FROM turns ORDER BY turn_index")
        ).scalars()
        assert list(sizes) == [20_000, 20]


async def test_the_latest_turn_is_the_last_one_also_when_the_clock_was_set_back(
    store: Store, store_url: str
) -> None:
    first = turn("t", created_at=2000.0)
    head = await commit(store, first)
    last = await commit(store, turn("t", parent=first, head=head, created_at=1000.0))
    other = Store.open(settings(store_url))  # it knows nothing but the database
    assert await other.head_of_trajectory("t") == last
    await other.aclose()


async def test_heads_are_the_same_from_the_cache_and_from_the_database(
    store: Store, store_url: str
) -> None:
    record = turn("t", calls=allowed_call(), segment=segment(1 / 3), capture_gap="missing")
    head = await commit(store, record)
    other = Store.open(settings(store_url))  # another gateway on the same database
    for each in (store, other):
        assert await each.head_of_call(record.calls[0].call_id) == head
        assert await each.head_of_fingerprint(record.fingerprint) == head
        assert await each.head_of_trajectory("t") == head
        assert await each.head_of_call("call-nowhere") is None
        ids = ["call-nowhere", record.calls[0].call_id]
        assert await each.heads_of_calls(ids) == await each.heads_of_calls(ids[::-1]) == [head]
        assert await each.heads_of_calls([]) == []
        assert await each.head_of_fingerprint(b"nothing") is None
        assert await each.head_of_trajectory("nothing") is None
    assert head.capture_complete is False
    assert head.has_calls is True
    assert head.sequence_length == len(sequence(record))
    await other.aclose()


async def test_the_latest_of_equal_fingerprints_is_found(store: Store, store_url: str) -> None:
    first = turn("t")
    second = turn("u", fingerprint=first.fingerprint)
    await store.commit_turns([first, second])
    other = Store.open(settings(store_url))
    for each in (store, other):
        head = await each.head_of_fingerprint(first.fingerprint)
        assert head is not None
        assert head.turn_id == second.turn_id
    await other.aclose()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"error": "the upstream died"}, "error: the upstream died"),
        ({"capture_gap": "logprobs_missing"}, "capture_gap: logprobs_missing"),
    ],
)
async def test_a_fault_marks_the_trajectory_incomplete_for_good(
    store: Store, changed: dict[str, str], reason: str
) -> None:
    first = turn("t", **changed)  # type: ignore[arg-type]
    await commit(store, turn("t", parent=first, head=await commit(store, first)))
    found = await trajectory_json(store, "t")
    assert (found["complete"], found["incomplete_reason"]) == (False, reason)


async def test_a_lost_parent_marks_the_trajectory_incomplete(store: Store) -> None:
    lost = turn("t")
    await commit(store, turn("t", parent=lost, head=head_of_record(lost, 0, 0)))
    found = await trajectory_json(store, "t")
    assert found["incomplete_reason"] == "parent_missing"
    assert found["turns"][0]["parent_id"] is None


async def test_many_trajectories_at_once_keep_apart(store: Store) -> None:
    batches: list[int] = []
    store.on_commit = lambda _seconds, turns: batches.append(turns)

    async def agent(name: str) -> list[TurnRecord]:
        records: list[TurnRecord] = []
        head, last = None, None
        for step in range(6):
            made = calls_of(features("free", segment())) if step % 2 else ()
            last = turn(name, parent=last, head=head, calls=made)
            head = await commit(store, last)
            records.append(last)
        return records

    written = await asyncio.gather(*(agent(f"t{n}") for n in range(40)))
    assert sum(batches) == 240
    assert max(batches) > 1  # commits are shared
    assert store.queue_depth == 0
    for n, records in enumerate(written):
        found = await trajectory_json(store, f"t{n}", tokens=True)
        assert [read["id"] for read in found["turns"]] == [record.turn_id for record in records]
        assert [read["turn_index"] for read in found["turns"]] == list(range(6))
        assert {read["branch_index"] for read in found["turns"]} == {0}
        last = found["turns"][-1]["tokens"]["prompt_token_ids"]
        assert last == records[-1].prompt_token_ids.tolist()


async def test_two_gateways_share_a_database(store: Store, store_url: str) -> None:
    other = Store.open(settings(store_url))
    await other.start()
    roots = [turn(f"t{n}") for n in range(20)]
    heads = await store.commit_turns(roots)
    follows = [
        turn(root.trajectory_id, parent=root, head=head)
        for root, head in zip(roots, heads, strict=True)
        for _ in range(2)
    ]
    committed = await asyncio.gather(
        *(commit(which, each) for each, which in zip(follows, [store, other] * 20, strict=True))
    )
    for n in range(20):
        pair = committed[2 * n : 2 * n + 2]
        assert sorted(head.turn_index for head in pair) == [1, 2]
        assert sorted(head.branch_index for head in pair) == [0, 1]
    await other.aclose()


async def test_closing_writes_what_is_waiting(store_url: str) -> None:
    store = Store.open(settings(store_url))
    await store.start()
    waiting = [asyncio.ensure_future(store.commit_turns([turn(f"t{n}")])) for n in range(50)]
    await asyncio.sleep(0)
    await store.aclose()
    assert len(await asyncio.gather(*waiting)) == 50
    with pytest.raises(StoreError, match="closed"):
        await store.commit_turns([turn("late")])
    again = Store.open(settings(store_url), read_only=True)
    assert len((await again.list_trajectories(limit=100)).items) == 50
    await again.aclose()


async def test_durability_off_acknowledges_first_and_stores_the_right_branches(
    store_url: str,
) -> None:
    store = Store.open(settings(store_url, durability="off"))
    await store.start()
    first = turn("t", calls=allowed_call())
    (guess,) = await store.commit_turns([first])
    assert await store.head_of_call(first.calls[0].call_id) == guess  # before it is stored
    forks = [turn("t", parent=first, head=guess) for _ in range(2)]
    for fork in forks:
        await store.commit_turns([fork])
    await store.aclose()
    again = Store.open(settings(store_url), read_only=True)
    found = await trajectory_json(again, "t")
    assert [(read["turn_index"], read["branch_index"]) for read in found["turns"]] == [
        (0, 0),
        (1, 0),
        (2, 1),
    ]
    await again.aclose()


async def test_a_cancelled_caller_does_not_stop_the_commit(store: Store) -> None:
    record = turn("t")
    waiting = asyncio.ensure_future(store.commit_turns([record]))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await commit(store, turn("u"))  # the writer goes on
    assert (await store.get_trajectory("t")).n_turns == 1


async def test_one_bad_record_does_not_fail_the_others(store: Store) -> None:
    good = [turn(f"t{n}") for n in range(5)]
    twice = turn("t0")
    bad = [
        replace(twice, turn_id=good[0].turn_id),  # the id is taken
        turn("bad", model="\ud800"),  # cannot be encoded
        turn("bad", new_messages=b"\xff"),  # not UTF-8
    ]
    outcomes = await asyncio.gather(
        *(store.commit_turns([record]) for record in [*good[:3], *bad, *good[3:]]),
        return_exceptions=True,
    )
    assert [isinstance(outcome, StoreError) for outcome in outcomes] == [False] * 3 + [True] * 3 + [
        False
    ] * 2
    page = await store.list_trajectories()
    assert {item.id for item in page.items} == {record.trajectory_id for record in good}
    assert (await store.get_trajectory("t0")).n_turns == 1
