"""Child processes of ours: started behind a guard, drained, ended with all that they started.

The guard (`upstream.child`) ends the process when we end, however we end. Who runs one decides when
it is started again, and asks `Backoff` how long to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO

_DRAIN_SECONDS = 5.0
_LONGEST_BACKOFF_SECONDS = 60.0
_STABLE_SECONDS = 600.0  # it ran for so long, and earlier failures are forgiven


class Backoff:
    """How often a process has failed in a row, and how long to wait before the next start.

    ``first_seconds``, then twice as long each time, 60 seconds at most.
    """

    def __init__(self, first_seconds: float) -> None:
        self.failures = 0
        self._first_seconds = first_seconds

    def failed(self, ran_seconds: float = 0.0) -> float:
        """It has failed after ``ran_seconds``: the seconds to wait."""
        self.failures = 1 if ran_seconds > _STABLE_SECONDS else self.failures + 1
        doubled = self._first_seconds * 2.0 ** min(self.failures - 1, 32)
        return min(doubled, _LONGEST_BACKOFF_SECONDS)


class GuardedProcess:
    """One run of a command in a process group of its own."""

    def __init__(
        self, process: asyncio.subprocess.Process, grace_seconds: float, said: IO[bytes] | None
    ) -> None:
        self._process = process
        self._grace_seconds = grace_seconds
        self._said = said

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        grace_seconds: float,
        log: IO[bytes] | None = None,
    ) -> GuardedProcess:
        """Start ``command``; ``grace_seconds`` pass between asking it to end and making it.

        It writes to ``log``; without one its stderr is for `follow`. Raises OSError where no
        process can be made.
        """
        said, written = None, log
        if log is None:
            # Not asyncio's own pipe: with that, `wait` waits for grandchildren that hold it, too.
            reading, writing = os.pipe()
            said, written = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
        guard = [sys.executable, "-m", "entrogate.upstream.child", str(grace_seconds)]
        try:
            process = await asyncio.create_subprocess_exec(
                *guard,
                *command,
                stdin=asyncio.subprocess.PIPE,  # closed with us: that is how the guard knows
                stdout=asyncio.subprocess.DEVNULL if log is None else log,
                stderr=written,
                env=dict(environment),
                start_new_session=True,
            )
        except BaseException:
            if said is not None:
                said.close()
            raise
        finally:
            if log is None and written is not None:
                written.close()
        return cls(process, grace_seconds, said)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        return await self._process.wait()

    async def end(self) -> None:
        """End it and everything in its group; also what a process that has died left behind.

        Cancelled meanwhile, it waits no longer and kills at once. Safe to call twice.
        """
        process = self._process
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), self._grace_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.stdin is not None:
                process.stdin.close()
        await process.wait()

    async def follow(self, on_line: Callable[[str], None]) -> int:
        """Hand on each line of its stderr until it ends; then end its group. The exit code."""
        listening = asyncio.create_task(self._listen(on_line))
        try:
            return await self.wait()
        finally:
            await self.end()
            # A grandchild in a session of its own may hold the pipe forever.
            await asyncio.wait((listening,), timeout=_DRAIN_SECONDS)
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def _listen(self, on_line: Callable[[str], None]) -> None:
        said = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(said), self._said
        )
        try:
            while True:
                try:
                    line = await said.readline()
                except ValueError:  # a line beyond all measure; the reader has dropped it
                    continue
                if not line:
                    return
                on_line(line.decode(errors="replace").rstrip())
        finally:
            transport.close()


def exit_text(code: int) -> str:
    """What an exit code means, as the end of a sentence."""
    number = code - 128 if code > 128 else -code
    if number in {s.value for s in signal.Signals}:
        return f"was ended by {signal.Signals(number).name}"
    return f"exited with code {code}"
