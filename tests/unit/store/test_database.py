"""Opening a database and what is left of it when that fails; erasing from one that has moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrogate.errors import StoreError
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.administration import erase_now
from entrogate.store.admin.erasure import ToErase
from entrogate.store.database import Database
from tests.unit.store.made import turn


def test_what_cannot_be_made_leaves_no_claim(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    folder = str(tmp_path)
    folder += "/s/.." * ((4090 - len(folder)) // 5)  # opens, and a file in it has too long a path
    name = "a" * 40 + ".db"
    with pytest.raises(StoreError, match="cannot create") as kept:  # its frames are kept as well
        Database(StoreSettings(url=f"sqlite:///{folder}/{name}"), alone=True)
    Database(StoreSettings(url=f"sqlite:///{tmp_path}/{name}"), alone=True).close()
    assert kept.value


async def test_an_erasure_is_done_though_the_log_cannot_be_emptied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.db"
    settings = StoreSettings(url=f"sqlite:///{file}")
    store = Store.open(settings)
    await store.start()
    await store.commit_turns([turn("t"), turn("u")])
    file.rename(tmp_path / "moved.db")
    file.mkdir()  # what is open stays open, and nothing can be opened any more
    done = await store.admin.erase(ToErase(trajectory_id="t"), actor="me")
    assert done.trajectories == 1
    assert "erase.log_in_use" in caplog.text
    await store.aclose()
    file.rmdir()
    (tmp_path / "moved.db").rename(file)
    database = Database(settings)
    file.rename(tmp_path / "moved.db")
    file.mkdir()
    caplog.clear()
    assert erase_now(database, ToErase(trajectory_id="u"), actor="me").trajectories == 1
    assert "erase.log_in_use" in caplog.text
    database.close()
