"""The cache in front of the database."""

from entrogate.store.heads import HeadCache, Lru, has_calls, head_of_record
from entrogate.types import Action
from tests.unit.store.made import allowed_call, calls_of, features, segment, turn


def test_lru_forgets_what_was_not_used_for_longest() -> None:
    cache: Lru[str, int] = Lru(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert len(cache) == 2


def test_a_turn_is_found_by_call_fingerprint_and_trajectory() -> None:
    cache = HeadCache(10)
    record = turn("t", calls=allowed_call())
    head = head_of_record(record, 3, 1)
    cache.remember(record, head)
    assert cache.by_call.get(record.calls[0].call_id) is head
    assert cache.by_fingerprint.get(record.fingerprint) is head
    assert cache.by_trajectory.get("t") is head


def test_a_turn_that_broke_off_does_not_become_the_latest() -> None:
    cache = HeadCache(10)
    good, broken = turn("t"), turn("t", error="upstream died")
    cache.remember(good, head_of_record(good, 0, 0))
    cache.remember(broken, head_of_record(broken, 1, 0))
    latest = cache.by_trajectory.get("t")
    assert latest is not None
    assert latest.turn_id == good.turn_id


def test_a_suppressed_call_brings_no_result() -> None:
    suppressed = calls_of(features("lookup", segment(0.1)))
    assert suppressed[0].decision.applied is Action.SUPPRESS
    assert not has_calls(turn("t", calls=suppressed))
    assert has_calls(turn("t", calls=allowed_call()))
    assert not has_calls(turn("t"))
