"""What a long trajectory, or much feedback, may cost where shadows are scored and graded."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson
import pytest

from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import TOOLS, ask, calling, message_of
from tests.integration.shadowed import busy, start_shadowing, turns_of
from tests.unit.store.made import allowed_call, shadow, turn

BLOCK = 2**17


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store.open(StoreSettings(url=store_url))
    await opened.start()
    yield opened
    await opened.aclose()


async def chain(store: Store, n: int) -> None:
    """One trajectory of ``n`` turns that call, each with a shadow and a question of `BLOCK`."""
    head, last = None, None
    for number in range(n):
        said = orjson.dumps([{"role": "user", "content": f"{number} " + "x" * BLOCK}])
        last = turn(
            "long",
            parent=last,
            head=head,
            calls=allowed_call(),
            new_messages=said,
            n_messages=2 * number + 2,
        )
        (head,) = await store.commit_turns([last])
        await store.shadows.add(shadow(last))


async def peak_of(work: Callable[[], Awaitable[object]]) -> int:
    """The most bytes that Python held at a time while this ran."""
    tracemalloc.start()
    try:
        await work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_what_a_grader_is_told_of_a_long_trajectory_is_not_held_at_once(
    store: Store,
) -> None:
    """All of it grows with the square of the turns."""
    n = 40
    await chain(store, n)
    await store.add_feedback(trajectory_id="long", score=1.0)

    async def grade() -> None:
        told = await store.shadows.to_grade("long")
        assert [len(each.asked()["messages"]) for each in told] == [2 * i + 1 for i in range(n)]

    assert await peak_of(grade) < 5 * n * BLOCK  # all at once: n * n / 2 of them


async def test_what_waits_does_not_keep_the_requests(
    start: Start, upstream: ScriptedUpstream
) -> None:
    """The tokens say it all; else each of many keeps as much as a body may have."""
    gateway = await start_shadowing(start, shadow={"busy_turns": 1})
    n, large = 40, "x" * BLOCK
    tools = [{**each, "function": {**each["function"], "description": large}} for each in TOOLS]
    async with busy(gateway, upstream):
        tracemalloc.start()
        try:
            for _ in range(n):
                answer = await gateway.chat(
                    ask(calling("Ada", masked="Berlin"), tools=False) | {"tools": tools},
                )
                assert message_of(answer)["tool_calls"]
            upstream.stats.bodies.clear()
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert await gateway.metric("entrogate_shadows_waiting") == n
    assert held < n * BLOCK
    (turn,) = await turns_of(gateway, answer)
    assert turn["shadow"]["content"].strip() == "Berlin"


async def test_only_the_feedback_that_counts_is_read(store: Store) -> None:
    await chain(store, 1)
    gold = ["x" * BLOCK]
    n = 60
    for _ in range(n):
        await store.add_feedback(trajectory_id="long", answer="y", gold=gold)

    async def tell() -> None:
        await store.add_feedback(trajectory_id="long", score=1.0)

    assert await peak_of(tell) < n * BLOCK / 2
