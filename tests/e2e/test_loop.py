"""The loop on a real vLLM: killed while it trains, it goes on and publishes. E2E_FULL=1 only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import FULL

pytestmark = pytest.mark.skipif(not FULL, reason="needs E2E_FULL=1")
START_SECONDS = 600


def test_a_killed_loop_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "loop"
    command = [sys.executable, "-m", "entrogate", "almanac", "loop", "--out", str(out)]
    command += ["--rounds", "1", "--tasks", "8", "--repeats", "4", "--eval-tasks", "8"]
    process = subprocess.Popen(command, start_new_session=True)
    until = time.monotonic() + START_SECONDS
    while not (out / "round-1" / "lora" / "record.json").is_file():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    collected = (out / "round-1" / "collected").stat().st_mtime_ns
    base = (out / "evaluation-0.json").read_bytes()
    assert not (out / "round-1" / "published.json").exists()

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "round-1" / "collected").stat().st_mtime_ns == collected, "not done again"
    assert (out / "evaluation-0.json").read_bytes() == base
    began = json.loads((out / "round-1" / "began.json").read_text())
    assert began == {"version": "base"}
    published = json.loads((out / "round-1" / "published.json").read_text())
    assert published["name"].startswith("almanac-")
    assert len(done.stdout.splitlines()) == 3  # a head, the base and one round
