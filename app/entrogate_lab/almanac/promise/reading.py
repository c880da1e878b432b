"""The samples of a collected run."""

from __future__ import annotations

from pathlib import Path

from entrogate.calibrate.paired import Sample
from entrogate.calibrate.samples import Log, read_log
from entrogate.gate.schema import Policy
from entrogate.store.options import opened
from entrogate_lab.almanac.promise.collecting import PromiseError
from entrogate_lab.almanac.serving import STORE

DRAFT_TOKENS = 8


def read_samples(folder: Path, base: Policy) -> list[Sample]:
    """Every sample of the run in ``folder`` for a calibration of ``base``.

    Raises PromiseError where there are none, and says what was left out and why.
    """
    log = read_run_log(folder, base)
    if not log.samples:
        causes = ", ".join(f"{cause.value} {count}" for cause, count in log.left_out.items())
        raise PromiseError(f"{folder} holds no sample ({causes or 'no trajectories with calls'})")
    return log.samples


def read_run_log(folder: Path, base: Policy) -> Log:
    """The samples of the run in ``folder``, and what was left out."""
    store = folder / STORE
    if not store.is_file():
        raise PromiseError(f"{folder} holds no store: run `promise collect --out {folder}` first")
    with opened(f"sqlite:///{store.resolve()}") as found:
        return read_log(found.iter_paired(), base, draft_tokens=DRAFT_TOKENS)
