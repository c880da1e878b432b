"""Finding the programs that check what is deployed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
PROMETHEUS = DOCKER / "prometheus"
_PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "docker-compose": "docker-compose",
    "kubectl": "kubernetes-client",
}


def program(name: str, variable: str) -> str:
    """The path of ``name``; without it the test is skipped, or fails where ``variable`` is 1."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} is not installed (Debian: apt-get install {_PACKAGES[name]})"
        if os.environ.get(variable) == "1":
            pytest.fail(f"{message}, and {variable} is 1")
        pytest.skip(message)
    return found


def check(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What a command that must succeed says."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
