"""Shadows in the store: read back, copied and shown with their turns, and gone with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from entrogate.cli import command_line
from entrogate.errors import StoreError, UnknownRecord
from entrogate.export.dataset import Dataset
from entrogate.export.exporter import export_settled
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.erasure import ToErase
from entrogate.store.filters import EVERY
from entrogate.store.read.settled import Settling
from tests.integration.conftest import Start
from tests.integration.harness import ask, calling
from tests.integration.shadowed import settled, start_shadowing
from tests.integration.stored import trajectory_json
from tests.unit.store.made import allowed_call, capture, shadow, turn


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store.open(StoreSettings(url=store_url))
    await opened.start()
    yield opened
    await opened.aclose()


async def run(*arguments: str) -> str:
    """A command, in a thread of its own: it starts an event loop, and this one is running."""
    invoke = CliRunner().invoke
    done = await asyncio.to_thread(invoke, command_line(), arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.both_stores
@pytest.mark.parametrize("exact", [True, False])
async def test_it_is_read_back_as_it_was(store: Store, exact: bool) -> None:
    made = turn("one", calls=allowed_call())
    await store.commit_turns([made])
    said = shadow(made, capture=capture(40, seed=9, exact=exact), called=True, content="ü" * 9000)
    await store.shadows.add(said)
    (read,) = (await trajectory_json(store, "one", tokens=True))["turns"]
    found, tokens = read["shadow"], read["shadow"]["tokens"]
    for name in ("way", "content", "called", "finish_reason", "n_kept", "model", "capture_gap"):
        assert found[name] == getattr(said, name)
    assert (found["purpose"], found["n_tokens"], found["estimator"]) == (
        "sample",
        40,
        "exact" if exact else "topk",
    )
    for name in (
        "token_ids",
        "logprobs",
        "entropy_lower",
        "entropy_upper",
        "margin",
        "p_tool_call",
    ):
        values = np.array(tokens[name], dtype=np.float64)
        assert np.array_equal(values, getattr(said.capture, name).astype(float), equal_nan=True)
    (plain,) = (await trajectory_json(store, "one"))["turns"]
    assert "tokens" not in plain["shadow"]


@pytest.mark.both_stores
async def test_one_for_a_turn_that_is_stored(store: Store) -> None:
    made = turn("one", calls=allowed_call())
    with pytest.raises(UnknownRecord):
        await store.shadows.add(shadow(made))
    await store.commit_turns([made])
    await store.shadows.add(shadow(made))
    with pytest.raises(StoreError):
        await store.shadows.add(shadow(made, content="other"))
    (read,) = (await trajectory_json(store, "one"))["turns"]
    assert read["shadow"]["content"] == "Es ist Köln."
    await store.admin.erase(ToErase.trajectory("one"), actor="me")
    with pytest.raises(UnknownRecord):
        await store.shadows.add(shadow(made))
    assert not await store.shadows.grade(made.turn_id, 1.0)


async def test_the_commands_and_a_copy_have_it(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    made = turn("one", calls=allowed_call())
    await store.commit_turns([made])
    await store.shadows.add(shadow(made))
    await store.add_feedback(trajectory_id="one", answer="so", gold="Köln")
    await run("store", "backup", str(tmp_path / "copy.db"), "--store", store_url)
    for url in (store_url, f"sqlite:///{tmp_path}/copy.db"):
        shown = await run("trajectories", "show", "one", "--store", url)
        (line,) = [line for line in shown.splitlines() if "without the call" in line]
        assert "Es ist Köln." in line
        assert "score 0.500 by gold" in line  # 1 of 3 words, and the only one


async def test_an_export_goes_on_beside_it(store: Store, store_url: str, tmp_path: Path) -> None:
    """Datasets do not hold shadows, and one that comes late changes no trajectory."""
    made = turn("one", calls=allowed_call())
    await store.commit_turns([made])
    await store.add_feedback(trajectory_id="one", score=1)
    before = (await store.get_trajectory("one")).sequence
    await store.shadows.add(shadow(made))
    assert (await store.get_trajectory("one")).sequence == before
    settling = Settling(quiet=1.0, patience=1.0)
    later = time.time() + 60

    def export() -> int:
        with Dataset.writing(str(tmp_path / "data")) as dataset:
            done = export_settled(store, dataset, settling=settling, wanted=EVERY, now=later)
        return done.trajectories

    assert await asyncio.to_thread(export) == 1


async def test_the_viewer_shows_it(start: Start) -> None:
    gateway = await start_shadowing(start)
    step = calling("Ada", masked="I say <Berlin> without asking.")
    answer = await gateway.chat(ask(step))
    await settled(gateway)
    id_ = answer.headers["x-entrogate-trajectory-id"]
    page = await gateway.client.get(f"/ui/trajectories/{id_}")
    assert "Without the call the model would have said:" in page.text
    assert "I say &lt;Berlin&gt; without asking." in page.text
