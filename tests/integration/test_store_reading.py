"""Pages, outcomes and rewards, replay of decisions, and the commands on top of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
from click.testing import CliRunner, Result

from entrogate.errors import UnknownRecord
from entrogate.gate.policy import parse_policy
from entrogate.settings import StoreSettings
from entrogate.store import Store, TrajectoryFilter
from entrogate.store.read.cli import replay, trajectories
from entrogate.store.read.replay import replay_store
from entrogate.types import Action, Mode, TurnRecord
from tests.integration.stored import trajectory_json
from tests.unit.store.made import (
    POLICY_TEXT,
    allowed_call,
    calls_of,
    change,
    features,
    policy,
    segment,
    turn,
)

pytestmark = pytest.mark.both_stores


@pytest.fixture
def url(store_url: str) -> str:
    return store_url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = Store.open(StoreSettings(url=url))
    await opened.start()
    yield opened
    await opened.aclose()


async def chain(store: Store, name: str, *labels: bool | None, last_calls: bool = False) -> Any:
    """A trajectory with one call before each label; returns its records."""
    records: list[TurnRecord] = []
    head = None
    for number in range(len(labels) + 1):
        last = number == len(labels)
        records.append(
            turn(
                name,
                parent=records[-1] if records else None,
                head=head,
                calls=allowed_call() if last_calls or not last else (),
                change=None if number == 0 else change(labels[number - 1]),
            )
        )
        (head,) = await store.commit_turns(records[-1:])
    return records


# -- pages ---------------------------------------------------------------------------------------


async def test_pages_are_stable_while_trajectories_arrive(store: Store) -> None:
    # Two of each instant: the id decides between equal times.
    await store.commit_turns([turn(f"t{n:02}", created_at=1000.0 + n // 2) for n in range(20)])
    seen: list[str] = []
    cursor = None
    while True:
        page = await store.list_trajectories(limit=3, cursor=cursor)
        seen += [item.id for item in page.items]
        await store.commit_turns([turn(f"new{len(seen)}", created_at=5000.0 + len(seen))])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"t{n:02}" for n in range(19, -1, -1)]


async def test_a_last_page_that_is_full_ends_the_list(store: Store) -> None:
    await store.commit_turns([turn(f"t{n}") for n in range(4)])
    page = await store.list_trajectories(limit=4)
    assert (len(page.items), page.next_cursor) == (4, None)


async def test_filters(store: Store) -> None:
    enforced = allowed_call()
    observed = calls_of(features("free", segment()), mode=Mode.OBSERVE)
    await store.commit_turns(
        [
            turn("a", task_id="x", created_at=10.0, calls=enforced),
            turn("b", task_id="x", created_at=20.0, model="other", calls=observed),
            turn("c", task_id="y", created_at=30.0, capture_gap="gone"),
        ]
    )
    await store.add_feedback(trajectory_id="b", score=0.0)

    async def found(**wanted: Any) -> str:
        page = await store.list_trajectories(TrajectoryFilter(**wanted))
        return "".join(item.id for item in page.items)

    assert await found() == "cba"
    assert await found(task_id="x") == "ba"
    assert await found(model="other") == "b"
    assert await found(mode="enforce") == "a"
    assert await found(mode="observe") == "b"
    assert await found(has_outcome=True) == "b"  # an outcome of 0 is an outcome
    assert await found(has_outcome=False) == "ca"
    assert await found(complete=False) == "c"
    assert await found(complete=True) == "ba"
    assert await found(since=20.0) == "cb"
    assert await found(until=20.0) == "a"
    assert await found(since=20.0, until=30.0, task_id="x") == "b"


@pytest.mark.parametrize("cursor", ["", "nonsense", "bm90IGEgbnVtYmVy", "é"])
async def test_a_cursor_of_another_kind_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(ValueError, match="next_cursor"):
        await store.list_trajectories(cursor=cursor)


@pytest.mark.parametrize("limit", [0, 1001])
async def test_a_limit_out_of_range_is_refused(store: Store, limit: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 1000"):
        await store.list_trajectories(limit=limit)


# -- outcomes and rewards ------------------------------------------------------------------------


async def test_rewards_follow_the_paper(store: Store) -> None:
    records = await chain(store, "t", True, False, True, None)
    given = await store.add_feedback(trajectory_id="t", score=0.5, comment="half")
    # m = 2 of n = 3 known labels; dense: 0.5 * (1 + 0.5 * I_k); the unknown one stays unknown.
    assert given["rewards"]["sparse"] == pytest.approx(0.5 * 2 / 3)
    assert given["rewards"]["dense"] == [0.75, 0.5, 0.75, None]
    found = await store.get_trajectory("t")
    assert [read.dense_reward for read in found.turns] == [0.75, 0.5, 0.75, None, None]
    assert [read.id for read in found.turns] == [record.turn_id for record in records]
    assert found.outcome == 0.5
    rewards = found.rewards
    assert rewards is not None
    assert (rewards.n_groups, rewards.n_labelled, rewards.n_reduced) == (4, 3, 2)
    assert (rewards.alpha, rewards.no_calls, rewards.all_unknown) == (
        0.5,
        "outcome",
        "null",
    )
    (page,) = (await store.list_trajectories()).items
    assert page.sparse_reward == rewards.sparse


async def test_the_last_feedback_counts_and_the_earlier_is_kept(store: Store) -> None:
    await chain(store, "t", True)
    await store.add_feedback(trajectory_id="t", score=1.0, comment="good")
    await store.add_feedback(trajectory_id="t", answer="Ghent", gold=["Bruges", "Aalst"])
    found = await store.get_trajectory("t")
    assert (found.outcome, found.rewards and found.rewards.sparse) == (0.0, 0.0)
    assert [(given.score, given.comment) for given in found.feedback] == [
        (1.0, "good"),
        (0.0, None),
    ]
    assert found.feedback[1].gold == ["Bruges", "Aalst"]


async def test_a_turn_after_the_outcome_changes_the_rewards(store: Store) -> None:
    records = await chain(store, "t", True, last_calls=True)
    given = await store.add_feedback(trajectory_id="t", score=1.0)
    assert given["rewards"]["dense"] == [1.5, None]  # no turn followed the last call yet
    head = await store.head_of_trajectory("t")
    late = turn("t", parent=records[-1], head=head, change=change(False))
    await store.commit_turns([late])
    found = await store.get_trajectory("t")
    assert [read.dense_reward for read in found.turns] == [1.5, 1.0, None]
    assert found.rewards is not None
    assert found.rewards.sparse == 0.5


async def test_feedback_on_a_fork_judges_its_own_path(store: Store) -> None:
    root = turn("t", calls=allowed_call())
    (head,) = await store.commit_turns([root])
    left = turn("t", parent=root, head=head, change=change(True))
    right = turn("t", parent=root, head=head, change=change(False))
    await store.commit_turns([left, right])
    by_response = await store.add_feedback(response_id=left.response_id, score=1.0)
    assert by_response["rewards"]["sparse"] == 1.0
    assert by_response["rewards"]["turn_id"] == left.turn_id
    by_call = await store.add_feedback(tool_call_id=root.calls[0].call_id, score=1.0)
    assert by_call["rewards"]["turn_id"] == right.turn_id  # the latest that follows the call
    assert by_call["rewards"]["sparse"] == 0.0


async def test_an_outcome_without_calls(store: Store) -> None:
    await store.commit_turns([turn("t")])
    given = await store.add_feedback(trajectory_id="t", score=0.75)
    assert (given["rewards"]["sparse"], given["rewards"]["dense"]) == (0.75, [])


@pytest.mark.parametrize("target", ["trajectory_id", "response_id", "tool_call_id"])
async def test_feedback_on_an_unknown_id(store: Store, target: str) -> None:
    with pytest.raises(UnknownRecord, match="nowhere"):
        await store.add_feedback(**{target: "nowhere"}, score=1.0)  # type: ignore[arg-type]
    with pytest.raises(UnknownRecord):
        await store.get_trajectory("nowhere")


# -- replay --------------------------------------------------------------------------------------


async def decided(store: Store) -> None:
    """Six turns with calls: three modes, certain and uncertain, one of two parallel calls."""
    certain, uncertain = features(stats=segment(0.1)), features(stats=segment(2.0))
    seen = [(certain,), (uncertain,), (features("free"),), (certain, uncertain)]
    for number, each in enumerate(seen):
        await store.commit_turns([turn(f"t{number}", calls=calls_of(*each))])
    for mode in (Mode.OBSERVE, Mode.EXPLORE):
        await store.commit_turns([turn(f"{mode}", calls=calls_of(certain, mode=mode))])


async def test_stored_decisions_replay_to_themselves(store: Store) -> None:
    await decided(store)
    version = policy().version
    report = replay_store(store, None)
    assert report.no_policy == {version: 7}
    assert report.calls == 0

    await store.remember_policy(version, "test", Mode.ENFORCE, POLICY_TEXT)
    await store.remember_policy(version, "test", Mode.ENFORCE, POLICY_TEXT)  # again: no matter
    report = replay_store(store, None)
    assert (report.turns, report.calls, report.equal, report.mismatches) == (6, 7, 7, 0)
    assert report.stored[Action.SUPPRESS] > 0
    assert report.changed == {}


async def test_a_decision_that_does_not_follow_from_its_features_is_reported(store: Store) -> None:
    other = parse_policy(POLICY_TEXT.replace("0.5", "5.0"), "other.yaml")
    wrong = calls_of(features(stats=segment(2.0)), by=other)  # suppressed under 5.0
    await store.commit_turns([turn("t", calls=wrong)])
    await store.remember_policy(other.version, "test", Mode.ENFORCE, POLICY_TEXT)
    report = replay_store(store, None)
    assert report.mismatches == 1
    assert report.changed == {("lookup", "suppress", "allow"): 1}
    assert report.examples[0]["stored"]["action"] == "suppress"


async def test_every_decision_is_read_whatever_the_batch(store: Store) -> None:
    await decided(store)
    whole = list(store.iter_decisions())
    assert len(whole) == 6
    assert [list(store.iter_decisions(batch)) for batch in (1, 2, 3, 6)] == [whole] * 4
    assert [len(each.calls) for each in whole].count(2) == 1


# -- commands ------------------------------------------------------------------------------------


async def invoke(command: click.Command, arguments: list[str]) -> Result:
    """In a thread of its own: a command starts an event loop, and this one is running."""
    return await asyncio.to_thread(CliRunner().invoke, command, arguments)


async def test_commands(store: Store, url: str, tmp_path: Path) -> None:
    await decided(store)
    await chain(store, "chain", True)
    await store.add_feedback(trajectory_id="chain", score=1.0, comment="well done")
    await store.remember_policy(policy().version, "test", Mode.ENFORCE, POLICY_TEXT)
    at = ["--store", url]

    listed = await invoke(trajectories, ["list", *at])
    assert listed.exit_code == 0
    assert "chain" in listed.output
    assert "Frage" not in listed.output  # no prompt text in a list
    as_json = orjson.loads((await invoke(trajectories, ["list", "--json", *at])).stdout)
    assert len(as_json["items"]) == 7
    short = await invoke(trajectories, ["list", "--limit", "2", *at])
    assert "--cursor" in short.stderr

    shown = await invoke(trajectories, ["show", "chain", *at])
    assert shown.exit_code == 0
    for said in (
        "Frage",
        "free(",
        "not_named",
        "well done",
        "sparse     1.000",
        "[-0.750, -0.250]",
        "mode enforce, policy ",
    ):
        assert said in shown.output
    whole = await invoke(trajectories, ["show", "chain", "--json", "--tokens", *at])
    assert orjson.loads(whole.stdout) == await trajectory_json(store, "chain", tokens=True)

    again = await invoke(replay, at)
    assert again.exit_code == 0
    assert "different: 0" in again.output
    lax = tmp_path / "lax.yaml"
    lax.write_text(POLICY_TEXT.replace("name: test", "name: lax").replace("0.5", "0.0"))
    report_file = tmp_path / "report.json"
    other = await invoke(replay, ["--policy", str(lax), "--json", str(report_file), *at])
    assert other.exit_code == 0
    report = orjson.loads(report_file.read_bytes())
    assert {"tool": "lookup", "stored": "suppress", "replayed": "allow", "calls": 3} in report[
        "changed"
    ]


async def test_replay_of_an_unknown_policy_is_a_failure(store: Store, url: str) -> None:
    await decided(store)
    result = await invoke(replay, ["--store", url])
    assert result.exit_code == 1
    assert f"7 calls of policy version {policy().version}, which is not stored" in result.output
