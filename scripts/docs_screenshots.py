"""The pictures of docs/viewer.md: pages of a running gateway, as Chromium shows them.

entrogate serve --model almanac --policy balanced --allow-mode-header
entrogate almanac eval --base-url http://127.0.0.1:8400/v1 --tasks 100 \\
    --modes observe,enforce --feedback
python scripts/docs_screenshots.py http://127.0.0.1:8400
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
POLICY = (ROOT / "policies" / "balanced.yaml").read_text(encoding="utf-8")


def main(url: str) -> None:
    """Write one PNG for each page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )

        def page(scheme: Any, height: int) -> Page:
            return browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": height})

        shown = page("light", 1040)
        shown.goto(f"{url}/ui")
        save(shown, "viewer-overview")
        shown = page("light", 900)
        shown.goto(f"{url}/ui/trajectories/{telling(url)}")
        save(shown, "viewer-trajectory", full=True)
        shown = page("dark", 560)
        shown.goto(f"{url}/ui/trajectories?decision=suppress")
        save(shown, "viewer-list")
        shown = page("dark", 1000)
        shown.goto(f"{url}/ui/policy")
        shown.get_by_label("Policy").fill(POLICY.replace("threshold: 1.5", "threshold: 3.0"))
        shown.get_by_role("button", name="Preview").click()
        shown.get_by_role("status").wait_for()
        save(shown, "viewer-policy")
        browser.close()


def telling(url: str) -> str:
    """A right answer in three turns, with a call that was made, one replayed and one suppressed."""
    found = httpx.get(f"{url}/v1/trajectories", params={"limit": 1000, "mode": "enforce"})
    for each in found.json()["data"]:
        counts = (each["n_turns"], each["n_calls"], each["n_suppressed"], each["n_replayed"])
        if counts == (3, 3, 1, 1) and each["outcome"] == 1.0:
            return each["id"]
    raise SystemExit("no trajectory that shows everything: run more tasks")


def save(page: Page, name: str, *, full: bool = False) -> None:
    """With few colours: a picture of a page needs no more."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
