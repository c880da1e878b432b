"""Trajectories of the bundled model, sampled token by token in float64, in a real store."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import entrogate_lab.almanac
from entrogate.engine.measure import row_statistics
from entrogate.entropy.statistics import segment_stats
from entrogate.export.dataset import Dataset
from entrogate.export.exporter import export_settled
from entrogate.label.change import entropy_change
from entrogate.segments.spans import Markers, find_spans, reasoning_ranges
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.settled import Settling
from entrogate.types import Capture, Estimator, IntArray, TurnHead, TurnRecord
from entrogate_lab.almanac.tasks import Task, held_out_task
from entrogate_lab.almanac.tools import ALL_TOOLS, execute, tool_schema
from entrogate_lab.almanac.transcript import (
    CALL,
    CALLED,
    END,
    RESULT,
    RESULTED,
    START,
    THINK,
    THOUGHT,
)
from entrogate_lab.almanac.world import World, make_world
from tests.unit.store.made import calls_of, features, turn

MODEL = Path(entrogate_lab.almanac.__file__).parent / "model"
_LONGEST_TURN = 120


class Organism:
    """The bundled model in float64; samples at temperature 1."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval()
        self.tokenizer: Any = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        self.generator = torch.Generator().manual_seed(0)

    def id(self, text: str) -> int:
        """The id of a token."""
        return self.tokenizer.token_to_id(text)

    def ids(self, text: str) -> IntArray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def text(self, ids: Sequence[int] | IntArray) -> str:
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def sample(self, prompt: IntArray) -> Capture:
        """One turn, up to its end token, measured as the plugin in vLLM measures it."""
        found: list[int] = []
        measured: list[list[float]] = []
        given = torch.from_numpy(prompt).long()[None]
        cache: Any = None
        with torch.inference_mode():
            while len(found) < _LONGEST_TURN:
                out = self.model(given, past_key_values=cache, use_cache=True)
                cache, logits_BV = out.past_key_values, out.logits[:, -1]
                logprobs = logits_BV[0].log_softmax(-1)
                token = int(torch.multinomial(logprobs.exp(), 1, generator=self.generator))
                row = row_statistics(logits_BV, torch.tensor([self.id(CALL)]))
                columns = (row.entropy_B, row.margin_B, row.p_tool_call_B)
                measured.append([float(logprobs[token]), *(float(c[0]) for c in columns)])
                found.append(token)
                given = torch.tensor([[token]])
                if token == self.id(END):
                    break
        logprob, entropy, margin, p_tool_call = np.array(measured, dtype=np.float32).T
        return Capture(
            token_ids=np.array(found, dtype=np.int32),
            logprobs=logprob,
            entropy_lower=entropy,
            entropy_upper=entropy.copy(),
            margin=margin,
            tail_mass=np.zeros(len(found), dtype=np.float32),
            p_tool_call=p_tool_call,
            estimator=Estimator.EXACT,
            top_k=None,
        )


async def play(store: Store, organism: Organism, *, tasks: int, runs: int) -> None:
    """Each task ``runs`` times, its calls carried out, with a score drawn at random."""
    world, rng = make_world(0), random.Random(3)
    for index in range(tasks):
        task = held_out_task(world, 0, index)
        for run in range(runs):
            name = f"{task.id}-{run}"
            await _play(store, organism, world, task, name)
            await store.add_feedback(trajectory_id=name, score=rng.choice((0.0, 0.25, 1.0)))


async def _play(store: Store, organism: Organism, world: World, task: Task, name: str) -> None:
    names = [
        f"{tool}({', '.join(tool_schema(tool)['function']['parameters']['properties'])})"
        for tool in ALL_TOOLS
    ]
    prompt = organism.ids(
        f"{START}system\nTools: {'; '.join(names)}{END}\n"
        f"{START}user\n{task.question}{END}\n{START}assistant\n"
    )
    parent: TurnRecord | None = None
    head: TurnHead | None = None
    for _ in range(5):
        record = _turn(organism, task, name, prompt, parent, head)
        (head,) = await store.commit_turns([record])
        if not record.calls:
            return
        said = organism.text(record.capture.token_ids)
        results = [_result(world, part) for part in said.split(CALL)[1:]]
        given = "\n".join(f"{RESULT}\n{result}\n{RESULTED}" for result in results)
        follow = organism.ids(f"\n{START}user\n{given}{END}\n{START}assistant\n")
        prompt = np.concatenate([prompt, record.capture.token_ids, follow])
        parent = record


def _turn(
    organism: Organism,
    task: Task,
    name: str,
    prompt: IntArray,
    parent: TurnRecord | None,
    head: TurnHead | None,
) -> TurnRecord:
    """The record as the gateway makes it."""
    capture = organism.sample(prompt)
    ids = capture.token_ids
    markers = Markers(
        think_open=organism.id(THINK),
        think_close=organism.id(THOUGHT),
        call_open=organism.id(CALL),
        call_close=organism.id(CALLED),
        end=frozenset({organism.id(END), organism.id(START)}),
    )
    stopped = bool(ids[-1] == organism.id(END))
    opened = np.flatnonzero(ids == organism.id(CALL))
    before = find_spans(ids[: opened[0]] if len(opened) else ids, markers, stopped=False)
    segment = segment_stats(capture, reasoning_ranges(before))
    calls = calls_of(*[features("free", segment) for _ in opened]) if len(opened) else ()
    change = None
    if parent is not None:
        change = entropy_change(parent.segment, segment)
    return turn(
        name,
        parent=parent,
        head=head,
        prompt=prompt,
        capture=capture,
        length=len(ids),
        task_id=task.id,
        spans=find_spans(ids, markers, stopped=stopped),
        segment=segment,
        calls=calls,
        change=change,
        altered=(),
        params=b'{"temperature":1}',
        finish_reason="stop" if stopped else "length",
    )


def _result(world: World, call: str) -> str:
    try:
        parsed = json.loads(call.partition(CALLED)[0])
        return execute(world, parsed["name"], parsed["arguments"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return "not a call"


def exported(organism: Organism, folder: Path, *, tasks: int, runs: int) -> str:
    """Played, stored and exported to a dataset."""

    async def work() -> None:
        store = Store.open(StoreSettings(url=f"sqlite:///{folder}/store.db"))
        await store.start()
        await play(store, organism, tasks=tasks, runs=runs)
        with Dataset.writing(str(folder / "data")) as dataset:
            export_settled(
                store, dataset, settling=Settling(), wanted=TrajectoryFilter(complete=True), now=4e9
            )
        await store.aclose()

    asyncio.run(work())
    return str(folder / "data")
