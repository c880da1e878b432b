"""The Triton kernel in Triton's interpreter, against the torch version and float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import entrogate

pytest.importorskip("torch")
pytest.importorskip("triton")

CHECK = Path(__file__).with_name("kernel_check.py")


def test_the_kernel_in_the_interpreter() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    source = Path(entrogate.__file__).parent.parent
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, str(CHECK), "cpu"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rows agree" in done.stdout
