"""Work that nobody waits for: bounded, in order, and never the end of anything."""

from __future__ import annotations

import asyncio

import pytest

from entrogate.serve.backlog import Backlog


class Works:
    """Notes what it is given, and ends when it is let."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.go = asyncio.Event()

    async def __call__(self, piece: int) -> None:
        self.begun.append(piece)
        await self.go.wait()
        if piece < 0:
            raise ValueError("a bad piece")
        self.ended.append(piece)


async def until_idle(backlog: Backlog[int]) -> None:
    async with asyncio.timeout(10):
        while not backlog.idle:
            await asyncio.sleep(0)


async def test_some_at_a_time_and_all_in_order() -> None:
    works = Works()
    backlog = Backlog(works, concurrency=2, limit=10)
    async with backlog.running():
        for piece in range(5):
            assert backlog.put(piece) is None
        await asyncio.sleep(0)
        assert (works.begun, backlog.waiting) == ([0, 1], 3)
        works.go.set()
        await until_idle(backlog)
    assert works.ended == [0, 1, 2, 3, 4]


async def test_what_has_no_room_comes_back() -> None:
    works = Works()
    backlog = Backlog(works, concurrency=1, limit=2)
    async with backlog.running():
        assert [backlog.put(piece) for piece in range(4)] == [None, None, None, 3]
        assert backlog.put(7, first=True) == 2  # the last one makes room
        works.go.set()
        await until_idle(backlog)
    assert works.ended == [0, 7, 1]


async def test_it_waits_until_it_may_start() -> None:
    works, open_ = Works(), False
    works.go.set()
    backlog = Backlog(works, concurrency=1, limit=9, may_start=lambda: open_)
    async with backlog.running():
        backlog.put(1)
        await asyncio.sleep(0.01)
        assert works.begun == []
        open_ = True
        backlog.pump()
        await until_idle(backlog)
    assert works.ended == [1]


async def test_a_failure_is_logged_and_the_next_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    works = Works()
    works.go.set()
    backlog = Backlog(works, concurrency=1, limit=9)
    async with backlog.running():
        backlog.put(-1)
        backlog.put(1)
        await until_idle(backlog)
    assert works.ended == [1]
    assert "a bad piece" in caplog.text


async def test_outside_running_nothing_is_taken_and_what_is_left_is_given_up() -> None:
    works = Works()
    backlog = Backlog(works, concurrency=1, limit=9)
    assert backlog.put(1) == 1
    async with backlog.running():
        backlog.put(2)
        backlog.put(3)
        await asyncio.sleep(0)
    assert (works.begun, works.ended, backlog.idle) == ([2], [], True)
    assert backlog.put(4) == 4
