"""Who answers what: shares as asked for, the same every time, and moved by nothing but need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.errors import RequestError
from entrogate.types import PublishedWeights, WeightsState
from entrogate.weights.leases import Weights
from entrogate.weights.routing import Routes, add, find, roll_back, set_share

TRAJECTORIES = [f"traj_{i:06d}" for i in range(20_000)]


def published(
    version: str, share: float = 0.0, promoted_at: float | None = None, **changed: object
):
    weights = PublishedWeights(
        model="m",
        version=version,
        name=f"m-{version}",
        folder=f"/loras/{version}",
        rank=8,
        share=share,
        promoted_at=promoted_at,
        state=WeightsState.SERVING,
        published_at=1.0,
        updated_at=1.0,
    )
    return replace(weights, **changed)  # pyright: ignore[reportArgumentType]


def routes(*weights: PublishedWeights) -> Routes:
    return Routes(weights, {each.version for each in weights})


def members(routing: Routes, version: str) -> set[str]:
    return {t for t in TRAJECTORIES if routing.target(t).version == version}


@pytest.mark.parametrize(
    "shares",
    [{"a": 0.1}, {"a": 0.5}, {"a": 0.01, "b": 0.29}, {"a": 0.2, "b": 0.3, "c": 0.5}],
    ids=str,
)
def test_every_version_gets_its_share(shares: dict[str, float]) -> None:
    """Within 4.5 standard deviations of the binomial: missed by chance once in 150,000."""
    routing = routes(*(published(v, share) for v, share in shares.items()))
    counts = Counter(routing.target(t).version for t in TRAJECTORIES)
    n = len(TRAJECTORIES)
    for version, share in {**shares, "base": 1.0 - sum(shares.values())}.items():
        bound = 4.5 * sqrt(n * share * (1.0 - share)) + 1e-6 * n
        assert abs(counts[version] - n * share) <= bound, version


def test_a_share_that_grows_only_takes_in() -> None:
    before: set[str] = set()
    for share in (0.0, 0.05, 0.1, 0.4, 0.9, 1.0):
        now = members(routes(published("a", share)), "a")
        assert before <= now
        before = now
    assert len(before) == len(TRAJECTORIES)


def test_a_second_canary_leaves_the_first_one_most_of_its_own() -> None:
    alone = members(routes(published("a", 0.2)), "a")
    beside = members(routes(published("a", 0.2), published("b", 0.2)), "a")
    # The stable version shrank: of the first one's trajectories only the second takes any.
    moved = {
        routes(published("a", 0.2), published("b", 0.2)).target(t).version for t in alone - beside
    }
    assert moved == {"b"}
    assert len(alone & beside) > 0.75 * len(alone)


@given(st.text(min_size=1, max_size=128), st.floats(0.0, 1.0))
def test_the_same_trajectory_goes_the_same_way(trajectory: str, share: float) -> None:
    one, again = (routes(published("a", share)).target(trajectory) for _ in range(2))
    assert one == again
    if share in (0.0, 1.0):
        assert one.version == ("a" if share else "base")


def test_a_trajectory_stays_while_its_version_is_served() -> None:
    low, high = published("a", 0.0), published("b", 1.0, promoted_at=5.0)
    routing = routes(low, high)
    for version in ("a", "b", "base"):
        assert {routing.target(t, version).version for t in TRAJECTORIES[:100]} == {version}
    assert routing.target("t", "gone").version == "b"


def test_only_what_is_served_is_routed_to() -> None:
    a, b = published("a", 0.5), published("b", 0.5)
    missing = Routes([a, b], {"b"})
    assert {missing.target(t).version for t in TRAJECTORIES[:200]} == {"b", "base"}
    assert missing.target("t", "a").version == "base"
    leaving = routes(replace(a, state=WeightsState.DRAINING), b)
    assert {leaving.target(t).version for t in TRAJECTORIES[:200]} == {"b", "base"}
    assert leaving.version_of("m-a") == "a"
    assert leaving.share_of("a") == 0.0


def test_the_latest_promotion_is_stable_and_gets_the_rest() -> None:
    old, new = published("old", 1.0, promoted_at=1.0), published("new", 1.0, promoted_at=2.0)
    canary = published("canary", 0.25)
    routing = routes(new, old, canary)
    shares = {v: routing.share_of(v) for v in ("base", "old", "new", "canary")}
    assert shares == {"base": 0.0, "old": 0.0, "new": 0.75, "canary": 0.25}
    assert routes(old, canary).stable.version == "old"


def changed(rows: Sequence[PublishedWeights], change: Sequence[PublishedWeights]):
    """The rows as the store holds them after the change."""
    new = {each.version: each for each in change}
    return [*(new.pop(each.version, each) for each in rows), *new.values()]


def test_shares_that_add_up_to_more_than_one_are_refused() -> None:
    rows = [published("a", 0.4)]
    rows = changed(rows, add(rows, published("b"), 0.6, 2.0))
    assert [each.share for each in rows] == [0.4, 0.6]
    for version, share in (("b", 0.61), ("b", 1.0), ("a", 0.5)):
        with pytest.raises(RequestError, match="add up to"):
            set_share(rows, version, share, 3.0)
    with pytest.raises(RequestError, match="want 0 to 1"):
        set_share(rows, "a", float("nan"), 3.0)
    rows = changed(rows, set_share(rows, "b", 0.0, 3.0))
    rows = changed(rows, set_share(rows, "a", 1.0, 4.0))
    assert routes(*rows).stable.version == "a"
    rows = changed(rows, set_share(rows, "b", 1.0, 5.0))
    assert routes(*rows).stable.version == "b", "what is promoted leaves room for the next"


def test_publishing_a_version_again_keeps_its_name_and_share() -> None:
    rows = [published("a", 0.4)]
    [moved] = add(rows, published("a", name="else", folder="/elsewhere"), None, 2.0)
    assert (moved.name, moved.folder, moved.share) == ("m-a", "/elsewhere", 0.4)
    [moved] = add(rows, published("a"), 0.1, 2.0)
    assert moved.share == 0.1


def test_what_collides_is_refused() -> None:
    rows = [published("a")]
    with pytest.raises(RequestError, match="is taken by version a"):
        add(rows, published("b", name="m-a"), 0.0, 2.0)
    with pytest.raises(RequestError, match="a folder of its own"):
        add(rows, published("b", folder="/loras/a"), 0.0, 2.0)
    rows = changed(rows, roll_back(rows, "a", 2.0))
    assert rows[0].state is WeightsState.DRAINING
    assert roll_back(rows, "m-a", 3.0) == []
    for change in (
        lambda: set_share(rows, "a", 0.5, 3.0),
        lambda: add(rows, published("a"), None, 3.0),
    ):
        with pytest.raises(RequestError, match="is being rolled back") as caught:
            change()
        assert caught.value.status == 409
    with pytest.raises(RequestError, match="published: a") as caught:
        find(rows, "b")
    assert caught.value.status == 404


def test_leases_are_counted_until_they_are_released() -> None:
    weights = Weights()
    weights.use([published("a", 1.0, promoted_at=1.0)])
    assert weights.lease("m", {"m"}, "t", "").version == "base", "not served yet"
    weights.mark("a", ready=True)
    lease = weights.lease("", {"m"}, "t", "")
    named = weights.lease("m-a", {"m"}, "t", "")
    assert (lease.version, lease.name, named.version, named.name) == ("a", "m-a", "a", None)
    assert weights.running["a"] == 2
    named.release()
    named.release()
    assert weights.running["a"] == 1
    assert weights.instead_of(named) is None, "the client named it"
    other = weights.instead_of(lease)
    assert other is not None
    assert (other.version, weights.running["a"], weights.lost.is_set()) == ("base", 0, True)
    assert weights.instead_of(other) is None
    unknown = weights.lease("foreign", {"m"}, "t", "")
    assert (unknown.version, unknown.name) == (None, None)
