"""Child processes against real ones: nothing that they start is left behind."""

import asyncio
import os
import sys
from pathlib import Path

from entrogate.upstream.supervised import Backoff, GuardedProcess, exit_text
from tests.unit.upstream.test_managed import gone, until

# Starts a grandchild that ignores SIGTERM, writes its pid, says lines, and then sleeps or ends.
PARENT = """
import subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
process = subprocess.Popen([sys.executable, "-c", child])
open(sys.argv[1], "w").write(str(process.pid))
for number in range(int(sys.argv[2])):
    print("line", number, file=sys.stderr)
print("x" * 200_000, file=sys.stderr, flush=True)
time.sleep(float(sys.argv[3]))
sys.exit(3)
"""


async def started(pid: Path, *, lines: int = 0, seconds: float = 120.0, grace: float = 5.0):
    return await GuardedProcess.start(
        [sys.executable, "-c", PARENT, str(pid), str(lines), str(seconds)],
        environment=os.environ,
        grace_seconds=grace,
    )


async def grandchild(pid: Path) -> int:
    await until(lambda: pid.exists() and pid.read_text() != "")
    return int(pid.read_text())


async def test_its_lines_are_read_and_the_grandchildren_end_with_it(tmp_path: Path) -> None:
    said: list[str] = []
    process = await started(tmp_path / "pid", lines=1000, seconds=0.0)
    assert await process.follow(said.append) == 3
    assert said[:1000] == [f"line {number}" for number in range(1000)]
    left = await grandchild(tmp_path / "pid")
    await until(lambda: gone(left))


async def test_following_that_is_cancelled_leaves_nothing_running(tmp_path: Path) -> None:
    process = await started(tmp_path / "pid", grace=0.2)
    following = asyncio.create_task(process.follow(lambda _: None))
    left = await grandchild(tmp_path / "pid")
    following.cancel()
    await asyncio.wait((following,))
    await until(lambda: gone(left))
    assert process.exit_code is not None


async def test_ending_that_is_cancelled_kills_at_once(tmp_path: Path) -> None:
    process = await started(tmp_path / "pid", grace=600.0)
    left = await grandchild(tmp_path / "pid")
    following = asyncio.create_task(process.follow(lambda _: None))
    await asyncio.sleep(0)
    following.cancel()
    ending = asyncio.create_task(process.end())
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait((ending,))
    await until(lambda: gone(left))
    await asyncio.wait((following,))


def test_the_waits_double_up_to_a_minute_and_long_runs_are_forgiven() -> None:
    backoff = Backoff(1.0)
    assert [backoff.failed() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.failures == 8
    assert backoff.failed(601.0) == 1
    for _ in range(5000):
        assert backoff.failed() <= 60


def test_exit_codes_are_said() -> None:
    assert exit_text(3) == "exited with code 3"
    assert exit_text(137) == exit_text(-9) == "was ended by SIGKILL"
