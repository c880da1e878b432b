"""`entrogate demo` as a newcomer runs it: vLLM, gateway, agent, report."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from entrogate_lab.almanac.demo import BUNDLED_MODEL
from tests.e2e.conftest import FULL

TASKS = 100 if FULL else 24


def running(marker: str) -> list[str]:
    """Command lines of the processes that have ``marker`` in theirs or in their environment."""
    found: list[str] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in words:
            found.append(words[:100].replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None and not os.environ.get("CI"),
    reason="vLLM is not installed here",
)
@pytest.mark.skipif(not BUNDLED_MODEL.is_dir(), reason="the bundled model has not been built")
def test_demo(tmp_path: Path) -> None:
    folder, file = tmp_path / "report", tmp_path / "out.json"
    options = ["--tasks", str(TASKS), "--report", str(folder), "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "entrogate", "demo", *options],
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(file.read_text())
    observe, enforce = result["modes"]["observe"], result["modes"]["enforce"]
    assert observe["tasks"] == enforce["tasks"] == TASKS
    assert enforce["calls_per_task"] < observe["calls_per_task"]
    assert observe["wasted_tokens"] == 0
    assert re.search(r"^calls per task +\d", done.stdout, re.MULTILINE)
    report = json.loads((folder / "report.json").read_text())
    assert report["policy"] == "balanced"
    assert report["trajectory_shown"]
    groups = report["entropy_change"]["groups"]
    assert groups["reduced"]["solved"] > 0
    assert (folder / "index.html").read_text().count("<svg") == 4
    assert running(str(folder)) == []
