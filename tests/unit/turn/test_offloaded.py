"""What grows with a request leaves the event loop where the request is large."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from entrogate.turn.link import link
from entrogate.types import TurnHead
from entrogate.wire import history
from entrogate.wire.body import to_json
from entrogate.wire.history import CallHistory
from entrogate.wire.request import parse_chat


class _Empty:
    async def heads_of_calls(self, call_ids: Sequence[str]) -> list[TurnHead]:
        return []

    async def head_of_fingerprint(self, fingerprint: bytes) -> TurnHead | None:
        return None

    async def head_of_trajectory(self, trajectory_id: str) -> TurnHead | None:
        return None

    async def is_erased(self, trajectory_id: str) -> bool:
        return False


@pytest.mark.parametrize(("size", "away"), [(10, False), (300_000, True)])
def test_the_history_is_hashed_off_the_loop_where_the_body_is_large(
    monkeypatch: pytest.MonkeyPatch, size: int, away: bool
) -> None:
    threads: list[int] = []
    add = history.Fingerprint.add

    def seen(self: history.Fingerprint, message: history.Json) -> None:
        threads.append(threading.get_ident())
        add(self, message)

    monkeypatch.setattr(history.Fingerprint, "add", seen)
    said = [("user", "x" * size), ("assistant", "a"), ("user", "b")]
    messages = [{"role": role, "content": text} for role, text in said]
    request = parse_chat(to_json({"model": "m", "messages": messages}))
    asyncio.run(link(_Empty(), request, {}, CallHistory()))
    assert {thread != threading.get_ident() for thread in threads} == {away}
