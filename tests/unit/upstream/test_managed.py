"""ManagedVllm against a script that plays the server: real processes, real sockets."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from entrogate.errors import ConfigError, UpstreamTimeout, UpstreamUnavailable
from entrogate.settings import ManagedSettings
from entrogate.upstream.managed import ManagedState, ManagedVllm

PLAYER = Path(__file__).with_name("playing_server.py")
Make = Callable[..., ManagedVllm]


def playing(*options: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, str(PLAYER), str(port), *options]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[ManagedVllm] = []

    def _make(*options: str, grace: float = 5.0, **settings: object) -> ManagedVllm:
        settings = {"model": "org/name", "log_file": tmp_path / "vllm.log", **settings}
        made.append(
            ManagedVllm(
                ManagedSettings.model_validate(settings),
                command=playing(*options),
                backoff_seconds=0.01,
                stop_grace_seconds=grace,
            )
        )
        return made[-1]

    yield _make
    for managed in made:
        await managed.stop()


async def answering_pid(managed: ManagedVllm) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        return int((await client.get(managed.url)).text)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_starts_answers_and_stops(make: Make) -> None:
    managed = make()
    assert managed.state is ManagedState.STOPPED
    await managed.start()
    assert managed.state is ManagedState.READY
    pid = await answering_pid(managed)
    assert managed.last_log_lines() == ["loading the model"]
    await managed.stop()
    assert managed.state is ManagedState.STOPPED
    await until(lambda: gone(pid))
    await managed.stop()


async def test_early_exit_quotes_the_last_lines(make: Make) -> None:
    managed = make("--die-before-ready")
    with pytest.raises(UpstreamUnavailable) as caught:
        await managed.start()
    assert "exited with code 3" in str(caught.value)
    assert "ValueError: no such architecture" in str(caught.value)
    assert str(managed.log_file) in str(caught.value)
    assert managed.state is ManagedState.FAILED


async def test_a_server_that_never_answers_times_out_and_is_ended(
    make: Make, tmp_path: Path
) -> None:
    managed = make("--deaf", "--child", str(tmp_path / "pid"), startup_timeout_seconds=6.5)
    told: list[tuple[float, str]] = []
    with pytest.raises(UpstreamTimeout, match=r"not ready after 6\.5 s"):
        await managed.start(lambda seconds, line: told.append((seconds, line)))
    assert told
    assert told[-1][1] == "loading the model"
    await until(lambda: gone(int((tmp_path / "pid").read_text())))


async def test_a_cancelled_start_leaves_nothing_running(make: Make, tmp_path: Path) -> None:
    managed = make("--deaf", "--child", str(tmp_path / "pid"))
    start = asyncio.create_task(managed.start())
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await until(lambda: gone(int((tmp_path / "pid").read_text())))


async def test_restarts_on_the_same_port_after_a_crash(make: Make, tmp_path: Path) -> None:
    crash, child = tmp_path / "crash", tmp_path / "pid"
    managed = make("--crash-on", str(crash), "--child", str(child))
    await managed.start()
    first, orphan = await answering_pid(managed), int(child.read_text())
    crash.touch()
    await until(lambda: managed.restarts == 1 and managed.state is ManagedState.READY)
    assert await answering_pid(managed) != first
    await until(lambda: gone(orphan))  # what the crashed server had started


async def test_a_killed_server_is_restarted(make: Make) -> None:
    managed = make()
    await managed.start()
    os.kill(await answering_pid(managed), signal.SIGKILL)
    await until(lambda: managed.restarts == 1 and managed.state is ManagedState.READY)


async def test_gives_up_after_the_restart_limit(make: Make, tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    managed = make("--crash-on", str(crash), restart_limit=2)
    await managed.start()
    for restart in (1, 2):
        crash.touch()
        await until(lambda n=restart: managed.restarts == n and not crash.exists())
        await until(lambda: managed.state is ManagedState.READY)
    crash.touch()
    await until(lambda: managed.state is ManagedState.FAILED)
    assert managed.restarts == 2


async def test_stop_makes_a_stubborn_server_end(make: Make) -> None:
    managed = make("--stubborn", grace=0.3)
    await managed.start()
    pid = await answering_pid(managed)
    await managed.stop()
    await until(lambda: gone(pid))


async def test_the_server_is_not_in_our_process_group(make: Make) -> None:
    managed = make()
    await managed.start()
    assert os.getpgid(await answering_pid(managed)) != os.getpgid(0)


STARTER = """
import asyncio, sys
from pathlib import Path
from entrogate.settings import ManagedSettings
from entrogate.upstream.managed import ManagedVllm

async def main():
    managed = ManagedVllm(
        ManagedSettings(model="org/name", log_file=Path(sys.argv[1])),
        command=lambda port: [sys.executable, sys.argv[2], str(port), "--child", sys.argv[3]],
    )
    await managed.start()
    print(managed.url, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_nothing_outlives_a_starter_killed_with_sigkill(tmp_path: Path) -> None:
    child = tmp_path / "pid"
    arguments = [str(tmp_path / "log"), str(PLAYER), str(child)]
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, *arguments], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        async with httpx.AsyncClient(trust_env=False) as client:
            server = int((await client.get(url)).text)
        starter.kill()
    await until(lambda: gone(server) and gone(int(child.read_text())))


def test_a_taken_port_is_refused_with_a_way_out(make: Make) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"is taken.*ENTROGATE_MANAGED__PORT"):
            make(port=other.getsockname()[1])


async def test_an_unwritable_log_file_is_a_config_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    managed = make(log_file=tmp_path / "file" / "vllm.log")
    with pytest.raises(ConfigError, match="cannot write vLLM's log"):
        await managed.start()


def test_vocab_size_is_read_from_the_models_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 1234}}))
    settings = ManagedSettings(model=str(tmp_path))
    assert ManagedVllm(settings, command=playing()).vocab_size == 1234


def test_no_model_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="--model"):
        ManagedVllm(ManagedSettings())
