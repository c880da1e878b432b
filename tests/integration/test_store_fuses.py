"""Audits as the store reads them, and fuses as it keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from entrogate.gate.decide import sub_draw
from entrogate.gate.policy import parse_policy
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.audit import GATEWAY, Act, AuditFilter, Deed
from entrogate.store.read.fuses import Audits, Fuse, FuseState
from entrogate.types import CallRecord, Mode, TurnHead, TurnRecord
from tests.integration.audited import add_shadows, shadow_row
from tests.unit.store.made import calls_of, features, segment, turn

pytestmark = pytest.mark.both_stores

POLICY = parse_policy(
    "schema_version: 1\nname: audited\nmode: enforce\n"
    "signal: {statistic: entropy_mean, min_tokens: 2}\n"
    "tools: {lookup: {threshold: 2.0}, search: {threshold: 2.0, max_calls: 1}}\n"
    "audit: {share: 0.5}\n",
    "audited.yaml",
)
CERTAIN = segment(mean=0.5)
AUDITED = next(n / 100 for n in range(100) if sub_draw(n / 100, "audit") < 0.5)
SUPPRESSED = next(n / 100 for n in range(100) if sub_draw(n / 100, "audit") >= 0.5)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store.open(StoreSettings.model_validate({"url": store_url}))
    await opened.start()
    yield opened
    await opened.aclose()


def calls(*tools: str, draw: float = AUDITED, **options: Any) -> tuple[CallRecord, ...]:
    seen = [features(tool, CERTAIN, draw=draw) for tool in tools]
    return calls_of(*seen, by=POLICY, **options)


async def commit(store: Store, record: TurnRecord) -> TurnHead:
    (head,) = await store.commit_turns([record])
    return head


async def audit(
    store: Store,
    url: str,
    name: str,
    *tools: str,
    score: float | None = 1.0,
    outcome: float | None = 1.0,
    **changed: Any,
) -> TurnRecord:
    """A trajectory of one audited turn, with its shadow and its outcome.

    An outcome scores the shadows that are there: one without a score comes after it.
    """
    record = turn(name, calls=calls(*tools or ("lookup",)), **changed)
    await commit(store, record)
    if score is not None:
        add_shadows(url, shadow_row(record.turn_id, name, score))
    if outcome is not None:
        await store.add_feedback(trajectory_id=name, score=outcome)
    if score is None:
        add_shadows(url, shadow_row(record.turn_id, name, score))
    return record


def lost(audits: Audits, tool: str = "lookup") -> list[bool | None]:
    return [each.lost for each in audits.counted(tool)]


@pytest.mark.parametrize(
    ("outcome", "score", "expected"),
    [
        (1.0, 0.0, True),
        (0.5, 0.49, True),
        (1.0, 0.5, False),
        (1.0, 1.0, False),
        (0.0, 1.0, False),  # a gain is no loss
        (0.49, 0.0, False),
        (None, 0.0, None),
        (1.0, None, None),
    ],
)
async def test_what_is_lost(
    store: Store,
    store_url: str,
    outcome: float | None,
    score: float | None,
    expected: bool | None,
) -> None:
    await audit(store, store_url, "t", outcome=outcome, score=score)
    assert lost(await store.fuses.audits(POLICY.version)) == [expected]


async def test_audits_come_in_the_order_of_their_last_change(store: Store, store_url: str) -> None:
    for name, score in (("c", 0.0), ("a", 1.0), ("b", None)):
        await audit(store, store_url, name, score=score)
    assert lost(await store.fuses.audits(POLICY.version)) == [True, False, None]
    await store.add_feedback(trajectory_id="c", score=0.0)  # the last word counts
    assert lost(await store.fuses.audits(POLICY.version)) == [False, None, False]


async def test_what_is_no_audit(store: Store, store_url: str) -> None:
    """Suppressed, observed, let through by a fault, ordered away, sampled for another purpose."""
    for number, made in enumerate(
        (
            calls("lookup", draw=SUPPRESSED),
            calls("lookup", mode=Mode.OBSERVE),
            calls("lookup", mode=Mode.EXPLORE),
            calls_of(features("search", CERTAIN, draw=AUDITED, tool_calls_before=1), by=POLICY),
            tuple(
                replace(c, decision=replace(c.decision, reason="gate_fault"))
                for c in calls("lookup")
            ),
        )
    ):
        record = turn(f"t{number}", calls=made)
        await commit(store, record)
        add_shadows(store_url, shadow_row(record.turn_id, f"t{number}", 0.0))
        await store.add_feedback(trajectory_id=f"t{number}", score=1.0)
    sampled = turn("sampled", calls=calls("lookup"))
    await commit(store, sampled)
    add_shadows(store_url, shadow_row(sampled.turn_id, "sampled", 0.0, purpose="sample"))
    assert (await store.fuses.audits(POLICY.version)).audited == ()
    await audit(store, store_url, "real")
    assert (await store.fuses.audits("another")).audited == ()
    assert len((await store.fuses.audits(POLICY.version)).audited) == 1


@pytest.mark.parametrize("draw", [AUDITED, SUPPRESSED], ids=["audited", "suppressed"])
async def test_only_the_first_skip_of_a_trajectory_counts(
    store: Store, store_url: str, draw: float
) -> None:
    first = turn("t", calls=calls("search", draw=draw))
    second = turn("t", parent=first, head=await commit(store, first), calls=calls("lookup"))
    await commit(store, second)
    add_shadows(store_url, shadow_row(second.turn_id, "t", 0.0))
    if draw == AUDITED:
        add_shadows(store_url, shadow_row(first.turn_id, "t", 1.0))
    await store.add_feedback(trajectory_id="t", score=1.0)
    found = await store.fuses.audits(POLICY.version)
    assert lost(found) == []
    assert lost(found, "search") == ([False] if draw == AUDITED else [])


async def test_a_call_that_went_through_does_not_make_a_later_skip_the_second(
    store: Store, store_url: str
) -> None:
    first = turn("t", calls=calls_of(features("lookup", segment(mean=5.0)), by=POLICY))
    second = turn("t", parent=first, head=await commit(store, first), calls=calls("lookup"))
    await commit(store, second)
    add_shadows(store_url, shadow_row(second.turn_id, "t", 0.0))
    await store.add_feedback(trajectory_id="t", score=1.0)
    assert lost(await store.fuses.audits(POLICY.version)) == [True]


async def test_parallel_calls_are_one_audit_of_each_tool(store: Store, store_url: str) -> None:
    await audit(store, store_url, "t", "lookup", "lookup", "search", score=0.0)
    found = await store.fuses.audits(POLICY.version)
    assert lost(found) == lost(found, "search") == [True]


FUSE = Fuse(
    policy_version=POLICY.version,
    tool="lookup",
    state=FuseState.ARMED,
    armed_at=0.0,
    armed_sequence=0,
    changed_at=0.0,
    n=3,
    losses=1,
    lower=0.01,
    upper=0.9,
)
BLOW = Deed(actor=GATEWAY, action=Act.BLOW_FUSE, target="lookup")
ARM = Deed(actor="key_1", action=Act.ARM_FUSE, target="lookup")


async def noted(store: Store, action: Act) -> int:
    return len((await store.admin.audit(AuditFilter(action=action.value))).entries)


async def test_a_fuse_is_kept_as_it_was_saved(store: Store) -> None:
    saved = await store.fuses.save(FUSE, BLOW)
    assert replace(saved, armed_at=0.0, changed_at=0.0) == FUSE
    assert saved.armed_at == saved.changed_at > 0
    assert await store.fuses.all() == [saved]
    assert (await store.fuses.audits(POLICY.version)).fuses == {"lookup": saved}
    assert await noted(store, Act.BLOW_FUSE) == 0


async def test_a_blown_fuse_stays_blown(store: Store) -> None:
    await store.fuses.save(FUSE, BLOW)
    blown = await store.fuses.save(replace(FUSE, state=FuseState.BLOWN, losses=3), BLOW)
    assert (blown.state, blown.losses) == (FuseState.BLOWN, 3)
    again = await store.fuses.save(replace(FUSE, n=4), BLOW)  # what another replica computed
    assert (again.state, again.n) == (FuseState.BLOWN, 4)
    assert again.changed_at == blown.changed_at
    assert await noted(store, Act.BLOW_FUSE) == 1


async def test_what_was_computed_before_arming_is_not_stored(store: Store, store_url: str) -> None:
    await audit(store, store_url, "t")
    blown = await store.fuses.save(replace(FUSE, state=FuseState.BLOWN), BLOW)
    armed = await store.fuses.arm(POLICY.version, "lookup", ARM)
    assert (armed.state, armed.n, armed.lower) == (FuseState.ARMED, 0, None)
    assert armed.armed_sequence > 0
    assert await store.fuses.save(replace(blown, n=9), BLOW) == armed
    assert await store.fuses.all() == [armed]
    assert await noted(store, Act.ARM_FUSE) == 1


async def test_audits_from_before_arming_do_not_count(store: Store, store_url: str) -> None:
    await audit(store, store_url, "old", score=0.0)
    await audit(store, store_url, "unjudged", score=0.0, outcome=None)
    armed = await store.fuses.arm(POLICY.version, "lookup", ARM)
    assert lost(await store.fuses.audits(POLICY.version)) == []
    await store.add_feedback(trajectory_id="unjudged", score=1.0)  # its turn was before
    assert lost(await store.fuses.audits(POLICY.version)) == []
    await audit(store, store_url, "new", score=0.0, created_at=armed.armed_at + 1)
    assert lost(await store.fuses.audits(POLICY.version)) == [True]


async def test_a_clock_that_was_set_back_does_not_stop_the_audit(
    store: Store, store_url: str
) -> None:
    """Turns from now on seem to be older than the arming; what was committed then is still old."""
    await audit(store, store_url, "old", score=0.0)
    await store.fuses.arm(POLICY.version, "lookup", ARM)
    await audit(store, store_url, "new", score=1.0)
    found = await store.fuses.audits(POLICY.version)
    assert lost(found) == []  # of 2023, says its clock
    jumped = replace(found, now=found.fuses["lookup"].armed_at - 3600)
    assert lost(jumped) == [False]


async def test_fuses_are_there_after_a_restart(store: Store, store_url: str) -> None:
    saved = await store.fuses.save(replace(FUSE, state=FuseState.BLOWN), BLOW)
    again = Store.open(StoreSettings.model_validate({"url": store_url}))
    await again.start()
    try:
        assert await again.fuses.all() == [saved]
    finally:
        await again.aclose()
