"""The line that `entrogate serve` prints when it listens."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


def started(folder: Path, *arguments: str) -> str:
    """The first line of a gateway that is ended again at once."""
    command = [sys.executable, "-m", "entrogate", "serve", "--upstream", "http://127.0.0.1:1"]
    command += ["--port", "0", "--store", f"sqlite:///{folder / 'store.db'}", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    return line


def test_policy_mode_and_trial_are_named(tmp_path: Path) -> None:
    assert started(tmp_path, "--policy", "balanced").endswith("(policy balanced, mode enforce)\n")
    trial = ("--trial-policy", "balanced", "--trial-share", "0.1")
    assert started(tmp_path, *trial).endswith(
        "(policy observe, mode observe; on trial for 0.1 of new trajectories: policy balanced,"
        " mode enforce)\n"
    )
