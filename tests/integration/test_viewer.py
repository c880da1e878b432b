"""The viewer: its pages over HTTP, and in a headless Chromium."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from entrogate.errors import ConfigError
from entrogate.gate.policy import parse_policy
from entrogate.serve import viewer
from entrogate.store import filters
from entrogate.ui.pages import SHOWN_CHARACTERS
from entrogate.ui.paging import pages_of
from entrogate.ui.runs import level_of
from tests.integration.conftest import Start
from tests.integration.harness import (
    CHAT,
    SURE,
    UNSURE,
    Running,
    ask,
    calling,
    follow_up,
    message_of,
)
from tests.integration.test_access import KEYS, Keys, bearer

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\u202e\x00"
TOOL = "lookup"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
POLICY = """
schema_version: 1
name: stricter
mode: enforce
defaults: {threshold: 9}
tools: {lookup: }
"""
RUN = re.compile(r'<span class="e(\w) k-(\w+)" title="([^"]*)">(.*?)</span>', re.DOTALL)


@pytest.fixture
async def gateway(start: Start) -> Running:
    return await start(access=KEYS)


async def recorded(gateway: Running, text: str = "Who?", **headers: str) -> str:
    """A trajectory of three turns with everything in it that a page can show; its id."""
    body = ask(
        calling("Ada", confidence=UNSURE),
        calling("Bo", name="search", confidence=SURE),
        {"reasoning": "Now I know it", "content": f"Berlin. {HOSTILE}"},
        text=text,
        metadata={"task_id": "task-1"},
    )
    for result in ("lives in Berlin", HOSTILE):
        answer = await gateway.client.post(CHAT, json=body, headers=headers)
        body = follow_up(body, message_of(answer), result)
    answer = await gateway.client.post(CHAT, json=body, headers=headers)
    judged = {"response_id": answer.json()["id"], "score": 0.75, "comment": HOSTILE}
    given = await gateway.client.post("/v1/feedback", json=judged, headers=headers)
    assert given.status_code == 200
    return answer.headers["x-entrogate-trajectory-id"]


def rows(page: httpx.Response) -> list[str]:
    assert page.status_code == 200, page.text
    return re.findall(r'<th scope="row"><a href="/ui/trajectories/([^"]+)"', page.text)


@pytest.mark.both_stores
@pytest.mark.parametrize("few", [filters._FEW_CALLS, 0])
async def test_lists_filter_sort_and_page(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(viewer, "PAGE", 2)
    monkeypatch.setattr(filters, "_FEW_CALLS", few)
    made = [await recorded(gateway) for _ in range(3)]
    plain = await gateway.chat(ask({"content": "Hello."}, tools=False))
    made.append(plain.headers["x-entrogate-trajectory-id"])
    seen: list[str] = []
    href = "/ui/trajectories"
    while href:
        page = await gateway.client.get(href)
        seen += rows(page)
        found = re.search(r'href="([^"]+)" rel="next"', page.text)
        href = unescape(found[1]) if found else ""
    assert seen == made[::-1]
    assert rows(await gateway.client.get("/ui/trajectories?sort=oldest")) == made[:2]
    for query, wanted in (
        ("tool=search", made[:3]),
        ("tool=send_mail", []),
        ("tool=search&decision=allow", made[:3]),
        ("decision=suppress", []),
        ("task_id=task-1", made[:3]),
        ("has_outcome=no", made[3:]),
        ("complete=yes&mode=observe", made[:3]),
    ):
        found = rows(await gateway.client.get(f"/ui/trajectories?{query}&sort=oldest"))
        assert found == wanted[:2], query
    for query in ("has_outcome=maybe", "sort=best", "colour=red", "cursor=x"):
        page = await gateway.client.get(f"/ui/trajectories?{query}")
        assert page.status_code == 400
        assert 'role="alert"' in page.text


@pytest.mark.both_stores
async def test_a_trajectory_shows_every_token_in_its_colour(gateway: Running) -> None:
    id_ = await recorded(gateway)
    page = (await gateway.client.get(f"/ui/trajectories/{id_}")).text
    stored = (await gateway.client.get(f"/v1/trajectories/{id_}?tokens=true")).json()
    sampled = re.findall(r'class="sampled".*?<pre>(.*?)</pre>', page, re.DOTALL)
    assert len(sampled) == len(stored["turns"]) == 3
    for html, turn in zip(sampled, stored["turns"], strict=True):
        runs = RUN.findall(html)
        text = unescape("".join(run[3] for run in runs))
        said = turn["response"]
        assert said["reasoning"].strip() in text
        assert (said["content"] or "").strip() in text
        levels = [level for level, _, title, _ in runs for _ in range(int(title.partition(" ")[0]))]
        assert levels == [level_of(entropy) for entropy in turn["tokens"]["entropy_upper"]]
    assert "lives in Berlin" in page
    assert "task-1" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    missing = await gateway.client.get("/ui/trajectories/traj_none")
    assert missing.status_code == 404
    assert "no trajectory" in missing.text


async def test_tokens_are_shown_by_id_where_their_texts_cannot_be_had(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = await recorded(gateway)
    gateway.gateway.client.base_url = "http://127.0.0.1:1"
    page = await gateway.client.get(f"/ui/trajectories/{id_}")
    assert page.status_code == 200
    assert "shown by their ids" in page.text
    assert "⟨" in page.text


@pytest.mark.both_stores
async def test_the_overview_counts_what_is_stored(gateway: Running) -> None:
    empty = await gateway.client.get("/ui")
    assert "Nothing is recorded yet" in empty.text
    for _ in range(2):
        await recorded(gateway)
    page = (await gateway.client.get("/ui")).text
    assert "The latest 2 trajectories" in page
    decisions = page[page.index("Decisions by tool") :]
    for tool in ("lookup", "search"):
        assert re.search(rf'<th scope="row">{tool}</th><td class="n">2</td>', decisions)
    outcome = page[page.index("Outcome against calls") :]
    assert '<th scope="row">2</th><td class="n">2</td><td class="n">0.750</td>' in outcome
    assert '<th scope="row">base</th><td class="n">6</td>' in page


@pytest.mark.both_stores
async def test_a_policy_is_tried_and_nothing_changes(gateway: Running) -> None:
    id_ = await recorded(gateway)
    before = (await gateway.client.get(f"/v1/trajectories/{id_}")).json()
    page = await gateway.client.post("/ui/policy", data={"policy": POLICY})
    assert page.status_code == 200
    assert "2 of 2 calls in 2 turns" in page.text
    assert re.search(r"lookup</th><td>allow</td><td>suppress</td><td class=\"n\">1<", page.text)
    assert f'href="/ui/trajectories/{id_}"' in page.text
    assert (await gateway.client.get(f"/v1/trajectories/{id_}")).json() == before
    assert gateway.gateway.policy.name == "observe"
    for bad in ("", "nonsense: [", "schema_version: 1\nname: x\nmode: dance"):
        page = await gateway.client.post("/ui/policy", data={"policy": bad})
        with pytest.raises(ConfigError) as said:
            parse_policy(bad, "policy", can_force=True)
        assert page.status_code == 400
        assert str(said.value) in unescape(page.text)


async def test_forms_of_other_sites_are_refused(gateway: Running) -> None:
    origin = {"origin": "https://elsewhere.example"}
    for path, form in (("/ui/policy", {"policy": POLICY}), ("/ui/login", {"key": "x"})):
        for headers in (origin, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            answer = await gateway.client.post(path, data=form, headers=headers)
            assert answer.status_code == 403


async def test_every_page_forbids_what_it_does_not_need(gateway: Running) -> None:
    id_ = await recorded(gateway)
    for path in ("/ui", "/ui/trajectories", f"/ui/trajectories/{id_}", "/ui/policy", "/ui/login"):
        headers = (await gateway.client.get(path)).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


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


async def test_a_long_trajectory_comes_in_pages(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token stands on one page, also of a turn that is longer than one."""
    id_ = await recorded(gateway)
    stored = (await gateway.client.get(f"/v1/trajectories/{id_}?tokens=true")).json()
    counts = [turn["n_tokens"] for turn in stored["turns"]]
    size = 7
    monkeypatch.setattr(viewer, "pages_of", partial(pages_of, tokens=size))
    href = f"/ui/trajectories/{id_}"
    runs: list[int] = []
    calls = 0
    while href:
        page = await gateway.client.get(href)
        assert page.status_code == 200
        on_it = [int(run[2].partition(" ")[0]) for run in RUN.findall(page.text)]
        assert sum(on_it) <= size
        runs += on_it
        calls += page.text.count("What the gate saw")
        found = re.search(r'href="(\?page=\d+)" rel="next"', page.text)
        href = f"/ui/trajectories/{id_}{found[1]}" if found else ""
    assert sum(runs) == sum(counts)
    assert calls == 2  # each stands where its turn ends
    for number in ("0", "1000", "x", "-1", "9" * 30):
        missing = await gateway.client.get(f"/ui/trajectories/{id_}?page={number}")
        assert missing.status_code == 404


async def test_long_texts_are_cut(gateway: Running) -> None:
    long = "z" * (SHOWN_CHARACTERS + 5)
    answer = await gateway.chat(ask({"content": "Hi."}, text=long, tools=False))
    id_ = answer.headers["x-entrogate-trajectory-id"]
    page = (await gateway.client.get(f"/ui/trajectories/{id_}")).text
    assert "more characters" in page
    assert page.count("z") < SHOWN_CHARACTERS + 100


# -- sessions -------------------------------------------------------------------------------------


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
    async with asyncio.timeout(20):
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


async def test_the_page_of_the_api_loads_nothing_from_elsewhere(gateway: Running) -> None:
    page = await gateway.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    assert all(each.startswith(("/", "#")) and not each.startswith("//") for each in loaded)
    document = (await gateway.client.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page.text
    for gone in ("/redoc", "/docs/oauth2-redirect"):
        assert (await gateway.client.get(gone)).status_code == 404


async def test_the_bare_address_leads_to_the_pages(gateway: Running) -> None:
    answer = await gateway.client.get("/", follow_redirects=True)
    assert answer.status_code == 200
    assert str(answer.url).endswith("/ui")


# -- in a browser ---------------------------------------------------------------------------------


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        required = os.environ.get("ENTROGATE_REQUIRE_CHROMIUM") == "1"
        (pytest.fail if required else pytest.skip)("install the package chromium")
    async with async_playwright() as playwright:
        options: dict[str, Any] = {"executable_path": CHROMIUM}
        if os.geteuid() == 0:
            options["args"] = ["--no-sandbox"]
        opened = await playwright.chromium.launch(**options)
        yield opened
        await opened.close()


def watched(page: Page) -> list[str]:
    """What goes wrong on it: errors, violations of the policy, scripts that ran."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    return said


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_are_accessible_and_run_nothing_hostile(
    gateway: Running, browser: Browser, scheme: Any
) -> None:
    id_ = await recorded(gateway, text=HOSTILE)
    page = await browser.new_page(color_scheme=scheme)
    said = watched(page)
    for path in ("/ui", "/ui/trajectories", f"/ui/trajectories/{id_}", "/ui/policy", "/ui/login"):
        await page.goto(gateway.url + path)
        found = await Axe().run(page)
        assert found.violations_count == 0, (path, found.generate_report())
    assert said == []
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


async def test_the_keyboard_is_enough(gateway: Running, browser: Browser) -> None:
    id_ = await recorded(gateway)
    page = await browser.new_page()
    said = watched(page)
    await page.goto(f"{gateway.url}/ui/trajectories")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    await page.get_by_label("Tool").focus()
    await page.keyboard.type("search")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**tool=search**")
    await page.get_by_role("link", name=id_).focus()
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/ui/trajectories/{id_}")
    await page.get_by_text("What the gate saw").first.focus()
    await page.keyboard.press("Enter")
    assert await page.get_by_text('"segment"').first.is_visible()
    assert await page.get_by_text("lives in Berlin").first.is_visible()
    assert said == []


async def test_forms_are_sent(gateway: Running, browser: Browser, store_url: str) -> None:
    """As a browser does it, which says where a form comes from."""
    keys = Keys(gateway, store_url)
    key = await keys.make("infer", "feedback", "read", tenant="one")
    id_ = await recorded(gateway, **bearer(key))
    page = await browser.new_page()
    await page.goto(f"{gateway.url}/ui/trajectories/{id_}")
    await page.wait_for_url("**/ui/login")
    await page.get_by_label("API key").fill("eg_wrong")
    await page.get_by_role("button", name="Log in").click()
    await page.get_by_role("alert").wait_for()
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url("**/ui")
    said = watched(page)
    await page.goto(f"{gateway.url}/ui/trajectories/{id_}")
    assert await page.get_by_role("heading", name=id_).is_visible()
    await page.get_by_role("link", name="Policy preview").click()
    await page.get_by_label("Policy").fill(POLICY)
    await page.get_by_role("button", name="Preview").click()
    assert "2 of 2 calls in 2 turns" in await page.get_by_role("status").inner_text()
    assert said == []


async def test_light_and_dark_are_remembered(gateway: Running, browser: Browser) -> None:
    page = await browser.new_page(color_scheme="light")
    await page.goto(f"{gateway.url}/ui")
    await page.get_by_role("button", name="Dark").click()
    await page.goto(f"{gateway.url}/ui/trajectories")
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground != "rgb(255, 255, 255)"
    assert await page.get_by_role("button", name="Light").is_visible()
