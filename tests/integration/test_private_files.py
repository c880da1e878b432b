"""What holds prompts is readable by its owner alone, whatever the umask; one gateway a file."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from entrogate.cli import run as entrogate
from entrogate.errors import StoreError
from entrogate.private import make_file, make_folder
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.cli import store as store_command
from entrogate.train.run_record import write_record
from tests.unit.store.made import turn

ROOT = Path(__file__).parents[2]


@pytest.fixture(
    params=[0o000, 0o022, 0o277], ids=["umask000", "umask022", "umask277"], autouse=True
)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def fill(url: str) -> Store:
    opened = Store.open(StoreSettings(url=url))
    await opened.start()
    await opened.commit_turns([turn("t")])
    await opened.add_feedback(trajectory_id="t", score=1.0)
    return opened


async def test_a_database_and_the_files_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    opened = await fill(f"sqlite:///{file}")
    beside = [tmp_path / f"store.db{end}" for end in ("", "-wal", "-shm")]
    assert [mode(path) for path in beside] == [0o600] * 3
    copy = tmp_path / "copy.db"
    done = CliRunner().invoke(store_command, ["backup", str(copy), "--store", f"sqlite:///{file}"])
    assert done.exit_code == 0
    assert mode(copy) == 0o600
    await opened.aclose()
    assert (
        CliRunner()
        .invoke(store_command, ["upgrade", "--store", f"sqlite:///{tmp_path}/new.db"])
        .exit_code
        == 0
    )
    assert mode(tmp_path / "new.db") == 0o600


async def test_a_database_that_others_can_read_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "store.db"
    await (await fill(f"sqlite:///{file}")).aclose()
    assert "open_to_others" not in caplog.text
    file.chmod(0o644)
    await (await fill(f"sqlite:///{file}")).aclose()
    assert f"store.open_to_others {file} can be read by others (mode 0644)" in caplog.text
    assert mode(file) == 0o644  # whoever opened it may have had a reason
    status = CliRunner().invoke(store_command, ["status", "--store", f"sqlite:///{file}"]).output
    assert f"warning: {file} can be read by others (mode 0644); `chmod 600` closes it" in status


def test_a_data_set_and_what_is_made_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pyarrow")
    url = f"sqlite:///{tmp_path}/store.db"

    async def once() -> None:
        await (await fill(url)).aclose()

    asyncio.run(once())
    time.sleep(1.1)
    data = tmp_path / "deep" / "data"
    assert entrogate(["export", "--store", url, "--to", str(data), "--settle", "1"]) == 0
    assert entrogate(["label", str(data), "--to", str(tmp_path / "labelled")]) == 0
    lines = tmp_path / "rows.jsonl"
    assert entrogate(["convert", str(data), "--format", "jsonl", "--to", str(lines)]) == 0
    assert mode(lines) == 0o600
    for root in (data.parent, tmp_path / "labelled"):
        found = [root, *root.rglob("*")]
        assert len(found) >= 8
        for path in found:
            assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert "open_to_others" not in caplog.text
    data.chmod(0o755)
    assert entrogate(["export", "--store", url, "--to", str(data), "--settle", "1"]) == 0
    assert f"export.open_to_others {data} can be read by others (mode 0755)" in caplog.text


def test_the_record_of_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_record(tmp_path / "run", {"settings": {}}, None)
    assert mode(tmp_path / "run") == 0o700
    assert mode(tmp_path / "run" / "record.json") == 0o600


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o750)
    make_folder(tmp_path / "shared" / "a" / "b")
    assert mode(tmp_path / "shared") == 0o750
    assert mode(tmp_path / "shared" / "a" / "b") == 0o700
    assert make_file(tmp_path / "file")
    assert not make_file(tmp_path / "file")


HOLDS = """
import asyncio, sys, time
from entrogate.settings import StoreSettings
from entrogate.store import Store
async def main():
    store = Store.open(StoreSettings(url=sys.argv[1]), alone=True)
    await store.start()
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_second_gateway_of_one_file_is_refused(tmp_path: Path) -> None:
    """By any name of the file, and only while the first one lives: also after kill -9."""
    url = f"sqlite:///{tmp_path}/store.db"
    (tmp_path / "link.db").symlink_to(tmp_path / "store.db")
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDS, url],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'app'}"},
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"ready\n"
    for name in (url, f"sqlite:///{tmp_path}/link.db"):
        with pytest.raises(StoreError) as refused:
            Store.open(StoreSettings(url=name), alone=True)
        said = str(refused.value)
        assert f"another gateway (process {first.pid}) uses {tmp_path}/store.db; " in said
        assert "\n" not in said
    Store.open(StoreSettings(url=url), read_only=True)._database.close()
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    again = Store.open(StoreSettings(url=url), alone=True)
    assert mode(tmp_path / "store.db-gateway") == 0o600
    await again.aclose()
    await Store.open(StoreSettings(url=url), alone=True).aclose()


async def test_gateways_share_a_postgres(postgres_url: str) -> None:
    first, second = (Store.open(StoreSettings(url=postgres_url), alone=True) for _ in range(2))
    await first.aclose()
    await second.aclose()
