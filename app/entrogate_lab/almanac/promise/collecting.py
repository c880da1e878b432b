"""Runs on a real server: what was observed with shadows, and what enforcing a policy really does.

What a run leaves in its folder:

    FOLDER/run.json            model, world, tasks, policy, mode
    FOLDER/records.json        every task's run (`evaluate.TaskRecord`)
    FOLDER/summary.json        accuracy, calls, tokens
    FOLDER/trajectories.db     the gateway's store, shadows included
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from entrogate.errors import EntrogateError
from entrogate_lab.almanac.evaluate import evaluate
from entrogate_lab.almanac.serving import STORE, serving

RUN, RECORDS, SUMMARY = "run.json", "records.json", "summary.json"
_NAME = "almanac"
# Everything is recorded here and no client waits for a shadow, so none is to be dropped.
OBSERVED_WITH_SHADOWS = {
    "ENTROGATE_SHADOW__SHARE": "1",
    "ENTROGATE_SHADOW__QUEUE_LIMIT": "1000000",
    "ENTROGATE_SHADOW__CONCURRENCY": "8",
    "ENTROGATE_SHADOW__BUSY_TURNS": "64",
}
_QUIET_SECONDS, _LONGEST_SECONDS = 60.0, 3600.0

Say = Callable[[str], None]


class PromiseError(EntrogateError):
    """An experiment cannot be made as asked; the message is one line for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is run: ``tasks`` tasks of ``seed`` by the model in a folder, under a policy."""

    model: str
    world_seed: int
    tasks: int
    seed: int
    policy: str
    mode: str
    concurrency: int = 16


def world_seed_of(model: Path) -> int:
    """The seed of the world that a model was built for. Raises PromiseError for another folder."""
    about = model / "almanac.json"
    try:
        return int(json.loads(about.read_text())["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromiseError(f"{model} is no Almanac model: {error}") from error


def run(wanted: Run, folder: Path, *, shadows: bool, say: Say) -> dict[str, Any]:
    """Do it, on a vLLM and a gateway of its own; the summary. A finished run is not done again."""
    known = read_run(folder) if (folder / SUMMARY).is_file() else None
    if known is not None:
        if known != wanted:
            raise PromiseError(f"{folder} holds another run: {asdict(known)}")
        return cast("dict[str, Any]", json.loads((folder / SUMMARY).read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / RUN, asdict(wanted))
    say(f"{wanted.tasks} tasks in mode {wanted.mode} under {wanted.policy} (logs in {folder}/)")
    settings = OBSERVED_WITH_SHADOWS if shadows else {}
    with _served(wanted, folder, settings, say) as url:
        told = _Told(say)
        result = asyncio.run(
            evaluate(
                f"{url}/v1",
                model=_NAME,
                tasks=wanted.tasks,
                seed=wanted.seed,
                modes=(wanted.mode,),
                concurrency=wanted.concurrency,
                world_seed=wanted.world_seed,
                feedback=True,
                progress=told.evaluating,
            )
        )
        if shadows:
            _until_shadowed(folder / STORE, told)
    _write(folder / RECORDS, result["records"][wanted.mode])
    summary = cast("dict[str, Any]", result["modes"][wanted.mode])
    _write(folder / SUMMARY, summary)
    return summary


def read_run(folder: Path) -> Run:
    """What the run in ``folder`` was. Raises PromiseError where there is none."""
    try:
        return Run(**json.loads((folder / RUN).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise PromiseError(f"{folder} holds no run of `promise`: {error}") from error


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Every task's run in ``folder``, in the order of the tasks."""
    try:
        return cast("list[dict[str, Any]]", json.loads((folder / RECORDS).read_text()))
    except (OSError, ValueError) as error:
        raise PromiseError(f"{folder} holds no finished run: {error}") from error


def _served(wanted: Run, folder: Path, settings: Mapping[str, str], say: Say) -> Any:
    said = [0.0]

    def waiting(seconds: float, line: str) -> None:
        if seconds - said[0] >= 15.0:
            said[0] = seconds
            say(f"  {seconds:4.0f} s  {line[:90]}")

    return serving(
        Path(wanted.model),
        name=_NAME,
        policy=wanted.policy,
        folder=folder,
        waiting=waiting,
        settings=settings,
    )


def _until_shadowed(store: Path, told: _Told) -> None:
    """Wait until every turn with a call has its shadow, or none has come for a while."""
    begun = changed = time.monotonic()
    last = -1
    while time.monotonic() - begun < _LONGEST_SECONDS:
        have, turns = _shadowed(store)
        told.every(f"{have} of {turns} shadows")
        if have >= turns:
            return
        if have != last:
            last, changed = have, time.monotonic()
        elif time.monotonic() - changed > _QUIET_SECONDS:
            told.say(f"{turns - have} of {turns} turns have no shadow")
            return
        time.sleep(1.0)


def _shadowed(store: Path) -> tuple[int, int]:
    database = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=30.0)
    try:
        have = database.execute("SELECT count(*) FROM shadows").fetchone()[0]
        turns = database.execute("SELECT count(*) FROM turns WHERE has_calls").fetchone()[0]
    finally:
        database.close()
    return int(have), int(turns)


class _Told:
    """Progress, a line now and then."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self._next = 0.0

    def evaluating(self, mode: str, done: int, total: int) -> None:
        self.every(f"{mode}: {done}/{total} tasks", last=done == total)

    def every(self, text: str, *, last: bool = False) -> None:
        now = time.monotonic()
        if last or now >= self._next:
            self._next = now + 15.0
            self.say(f"  {text}")


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
