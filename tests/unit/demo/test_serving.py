"""What the demo says of a gateway that does not become ready."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from entrogate.errors import UpstreamTimeout, UpstreamUnavailable
from entrogate_lab.almanac import serving

NOWHERE = "http://127.0.0.1:1"
PROGRESS = "   1 s  \n   2 s  Loading weights\n   3 s  Loading weights\n"


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def wait(process: subprocess.Popen[bytes], log: Path, limit: float) -> list[str]:
    told: list[str] = []
    serving._until_ready(  # pyright: ignore[reportPrivateUsage]
        process, NOWHERE, log, lambda _, line: told.append(line), limit=limit
    )
    return told


def test_a_vllm_that_still_starts_is_named_with_its_log(
    sleeping: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (tmp_path / "gateway.log").write_text(PROGRESS)
    (tmp_path / "vllm.log").write_text("compiling the graph\n")

    with pytest.raises(UpstreamTimeout) as caught:
        wait(sleeping, tmp_path / "gateway.log", -1.0)

    said = str(caught.value)
    assert "\n" not in said
    assert f"vLLM was still starting (log: {tmp_path}/vllm.log; its last line: compiling" in said
    assert "ENTROGATE_MANAGED__STARTUP_TIMEOUT_SECONDS" in said


def test_a_gateway_that_ended_is_quoted_without_the_progress_before(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    process.wait()
    (tmp_path / "gateway.log").write_text(f"{PROGRESS}error: vllm went away\n")

    with pytest.raises(UpstreamUnavailable, match="ended with exit code 1") as caught:
        wait(process, tmp_path / "gateway.log", 60.0)

    assert str(caught.value).splitlines()[1:] == ["  error: vllm went away"]


@pytest.mark.parametrize(
    ("line", "shown"), [("   2 s", ""), ("  12 s  Loading", "Loading"), ("Loading", "Loading")]
)
def test_a_progress_line_has_no_clock_of_its_own(
    sleeping: subprocess.Popen[bytes], tmp_path: Path, line: str, shown: str
) -> None:
    (tmp_path / "gateway.log").write_text(f"{line}\n")
    told: list[str] = []

    def once(_: float, text: str) -> None:
        told.append(text)
        sleeping.kill()

    with pytest.raises(UpstreamUnavailable):
        serving._until_ready(  # pyright: ignore[reportPrivateUsage]
            sleeping, NOWHERE, tmp_path / "gateway.log", once, limit=60.0
        )

    assert told == [shown]
