"""Logging in to the viewer: sessions, their cookies and their ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.integration.conftest import Start
from tests.integration.harness import Running
from tests.integration.keyed import KEYS, Keys, bearer, gateway
from tests.integration.viewing import recorded

__all__ = ["gateway"]


async def test_a_session_is_a_key_and_sees_its_tenant(gateway: Running, store_url: str) -> None:
    keys = Keys(gateway, store_url)
    one = await keys.make("infer", "feedback", "read", tenant="one")
    two = await keys.make("read", tenant="two")
    id_ = await recorded(gateway, **bearer(one))
    answer = await gateway.client.get(f"/ui/trajectories/{id_}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/login")
    refused = await gateway.client.post("/ui/login", data={"key": "wrong"})
    assert refused.status_code == 401
    for key, status in ((one, 200), (two, 404)):
        gateway.client.cookies.clear()
        entered = await gateway.client.post("/ui/login", data={"key": f" {key} "})
        assert entered.status_code == 303
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert (await gateway.client.get(f"/ui/trajectories/{id_}")).status_code == status
        assert (id_ in (await gateway.client.get("/ui/trajectories")).text) == (status == 200)
        shown = (await gateway.client.get("/ui")).text
        assert ("Nothing is recorded yet" in shown) == (status == 404)
        # A cookie is for pages alone: it opens no API to a form of another site.
        assert (await gateway.client.get("/v1/trajectories")).status_code == 401


async def logged_in(gateway: Running, key: str, **headers: str) -> str:
    """Log in; the cookie's value."""
    gateway.client.cookies.clear()
    entered = await gateway.client.post("/ui/login", data={"key": key}, headers=headers)
    assert entered.status_code == 303
    assert (await gateway.client.get("/ui")).status_code == 200
    return gateway.client.cookies["entrogate_session"]


async def test_a_long_cookie_holds_nobody_up(gateway: Running) -> None:
    """Anybody can send one: with Python's own reader, each of these takes many seconds."""
    long = 'entrogate_session="' + "\\" * 60_000 + '"'
    async with asyncio.timeout(60):
        for _ in range(5):
            assert (await gateway.client.get("/ui", headers={"cookie": long})).status_code == 200


async def test_a_session_ends(gateway: Running, store_url: str) -> None:
    keys = Keys(gateway, store_url)
    first, second = await keys.make("read"), await keys.make("read")
    session = await logged_in(gateway, first)
    assert first not in session
    assert "Log out" in (await gateway.client.get("/ui")).text
    left = await gateway.client.post("/ui/logout")
    assert (left.status_code, left.headers["location"]) == (303, "/ui/login")
    assert "entrogate_session" not in gateway.client.cookies
    for cookie in (session, session[:-1], session[:-1] + "é", "a.b.c.d", "....", ""):
        raw = [(b"cookie", f"entrogate_session={cookie}".encode())]
        assert (await gateway.client.get("/ui", headers=raw)).status_code == 303, cookie
    session = await logged_in(gateway, second)
    forged = session.replace(session.split(".")[0], "key_none")
    later = ".".join([session.split(".")[0], "99999999999", *session.split(".")[2:]])
    for cookie in (forged, later):
        headers = {"cookie": f"entrogate_session={cookie}"}
        gateway.client.cookies.clear()
        assert (await gateway.client.get("/ui", headers=headers)).status_code == 303
    await logged_in(gateway, second)
    await keys.revoke(second)
    assert (await gateway.client.get("/ui")).status_code == 303


async def test_a_session_has_a_time(
    start: Start, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start(access={**KEYS, "session_seconds": 60})
    key = await Keys(gateway, store_url).make("read")
    entered = await gateway.client.post("/ui/login", data={"key": key})
    assert "Max-Age=60;" in entered.headers["set-cookie"].replace("max-age", "Max-Age")
    assert "secure" not in entered.headers["set-cookie"].lower()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 61)
    cookie = {"cookie": f"entrogate_session={gateway.client.cookies['entrogate_session']}"}
    assert (await gateway.client.get("/ui", headers=cookie)).status_code == 303


async def test_behind_a_proxy_with_tls_the_cookie_is_secure(
    gateway: Running, store_url: str
) -> None:
    key = await Keys(gateway, store_url).make("read")
    entered = await gateway.client.post(
        "/ui/login", data={"key": key}, headers={"x-forwarded-proto": "https"}
    )
    assert "secure" in entered.headers["set-cookie"].lower()


async def test_sessions_of_replicas(start: Start, folder: Path) -> None:
    """Those that share a key, or a secret, know each other's."""
    stores = ({"url": f"sqlite:///{folder}/{number}.db"} for number in range(9))
    cookie: dict[str, str] = {}
    for shared in ({}, {"session_secret": "s" * 32}):
        access = {"key": "a-static-secret-1", **shared}
        one, two = [await start(access=access, store=next(stores)) for _ in range(2)]
        cookie = {"cookie": f"entrogate_session={await logged_in(one, 'a-static-secret-1')}"}
        assert (await two.client.get("/ui", headers=cookie)).status_code == 200
    access = {"key": "a-static-secret-1", "session_secret": "t" * 32}
    other = await start(access=access, store=next(stores))
    assert (await other.client.get("/ui", headers=cookie)).status_code == 303


async def test_a_key_that_opens_no_page_logs_nobody_in(gateway: Running, store_url: str) -> None:
    key = await Keys(gateway, store_url).make("infer")
    entered = await gateway.client.post("/ui/login", data={"key": key})
    assert entered.status_code == 403
    assert "set-cookie" not in entered.headers
    assert "scope" in entered.text
