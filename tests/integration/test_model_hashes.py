"""An export says which tokenizer its rows come from, as the store noted it when they were made."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from entrogate.cli import run
from entrogate.model_hashes import CONVERSATION, PROBE, ModelHashes, hash_of_ids, hashes_of
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate_lab.almanac import __file__ as almanac
from tests.integration.harness import Running
from tests.unit.store.made import turn

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq

MODEL = Path(almanac).parent / "model"
Start = Callable[..., Awaitable[Running]]
QUESTION = {"model": "scripted", "messages": [{"role": "user", "content": "Who?"}]}


def exported(url: str, out: Path, *more: str) -> list[dict[str, Any]]:
    command = ["export", "--store", url, "--to", str(out), "--settle", "1", "--patience", "1"]
    assert run([*command, "--incomplete", *more]) == 0
    parts = sorted(out.glob("date=*/*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


async def test_what_the_server_makes_of_a_text_is_noted_and_exported(
    start: Start, store_url: str, tmp_path: Path
) -> None:
    """The server's folder is not at hand here: hashes come from what it tokenizes and renders."""
    gateway = await start()
    answered = await gateway.client.post("/v1/chat/completions", json=QUESTION)
    assert answered.status_code == 200, answered.text
    texts = []
    for body in (
        {"prompt": PROBE, "add_special_tokens": False},
        {"messages": CONVERSATION, "add_generation_prompt": True},
    ):
        said = await gateway.client.post("/tokenize", json={"model": QUESTION["model"], **body})
        texts.append(hash_of_ids(said.json()["tokens"]))
    await asyncio.sleep(1.1)
    (row,) = await asyncio.to_thread(exported, store_url, tmp_path / "out")
    assert (row["tokenizer_hash"], row["chat_template_hash"]) == tuple(texts)
    assert texts[0] != texts[1]
    named = await asyncio.to_thread(
        exported, store_url, tmp_path / "named", "--model-folder", str(MODEL)
    )
    assert named[0]["tokenizer_hash"] == hashes_of(MODEL).tokenizer  # what is named goes first


async def test_the_trainer_refuses_them_for_another_model(
    start: Start, store_url: str, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    from entrogate.train.data import DataError, DataReport
    from entrogate.train.run import _check_tokenizer

    gateway = await start()
    await gateway.client.post("/v1/chat/completions", json=QUESTION)
    await asyncio.sleep(1.1)
    (row,) = await asyncio.to_thread(exported, store_url, tmp_path / "out")
    with pytest.raises(DataError, match="train the model that sampled them"):
        _check_tokenizer(str(MODEL), DataReport(tokenizer_hashes={row["tokenizer_hash"]}))


def test_a_trainer_finds_the_hash_that_a_server_gives(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("accelerate")
    from transformers import AutoTokenizer

    from entrogate.train.data import DataError, DataReport
    from entrogate.train.run import _check_tokenizer

    # As vLLM does it: not through `tokenizers` alone.
    theirs: Any = AutoTokenizer.from_pretrained(str(MODEL))
    served = hash_of_ids(theirs.encode(PROBE, add_special_tokens=False))
    _check_tokenizer(str(MODEL), DataReport(tokenizer_hashes={served, hashes_of(MODEL).tokenizer}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, tmp_path / name)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"<think>"', '"<mull>"'))
    with pytest.raises(DataError, match="the data come from tokenizer probe-"):
        _check_tokenizer(str(tmp_path), DataReport(tokenizer_hashes={served}))


@pytest.mark.both_stores
async def test_each_trajectory_has_the_hashes_of_its_time(store_url: str, tmp_path: Path) -> None:
    store = Store.open(StoreSettings(url=store_url))
    await store.start()
    await store.commit_turns([turn("before", model="m")])
    for name in ("one", "two", "two"):
        await store.remember_model(["m", "alias"], ModelHashes(tokenizer=name, chat_template="c"))
        await store.commit_turns([turn(f"{name}{time.monotonic()}", model="m")])
    await store.commit_turns([turn("lora", model="m-lora")])
    await store.remember_model(["another"], ModelHashes(tokenizer="three"))
    await store.commit_turns([turn("unsure", model="m-lora")])
    await store.aclose()
    time.sleep(1.1)
    rows = await asyncio.to_thread(exported, store_url, tmp_path / "out")
    assert [row["tokenizer_hash"] for row in rows] == ["", "one", "two", "two", "two", ""]
