"""The viewer in a real browser: accessible, usable by keyboard, and hostile texts run nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from tests.integration.harness import Running
from tests.integration.keyed import Keys, bearer, gateway
from tests.integration.viewing import HOSTILE, POLICY, recorded

__all__ = ["gateway"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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
    assert "2 of 2 decisions in 2 turns" in await page.get_by_role("status").inner_text()
    assert said == []


async def test_light_and_dark_are_remembered(gateway: Running, browser: Browser) -> None:
    page = await browser.new_page(color_scheme="light")
    await page.goto(f"{gateway.url}/ui")
    await page.get_by_role("button", name="Dark").click()
    await page.goto(f"{gateway.url}/ui/trajectories")
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground != "rgb(255, 255, 255)"
    assert await page.get_by_role("button", name="Light").is_visible()
