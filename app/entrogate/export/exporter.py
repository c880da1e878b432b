# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""One run of an export: what has settled since the last one, part by part."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from entrogate.export.card import card_of
from entrogate.export.counts import counts_of_trajectory
from entrogate.export.dataset import Dataset
from entrogate.export.erasing import note_erased
from entrogate.export.known import Known
from entrogate.export.sequences import rows_of
from entrogate.export.tables import Row, to_table
from entrogate.model_hashes import ModelHashes
from entrogate.store import Store, TrajectoryFilter
from entrogate.store.read.harvest import HarvestOptions
from entrogate.store.read.quiet import Sighting, Sightings, boot_id
from entrogate.store.read.settled import Changed, Settling, StoredTrajectory
from entrogate.types import Cursor

PART_TOKENS = 2_000_000
PART_TRAJECTORIES = 5_000
_SIGHTINGS = "_sightings.json"

Progress = Callable[["Summary"], None]


@dataclass(slots=True)
class Summary:
    """What a run has done so far; ``late`` changed after they had been exported, and stay out."""

    trajectories: int = 0
    rows: int = 0
    parts: int = 0
    late: int = 0


@dataclass(slots=True)
class _Part:
    """Rows that wait to be written together."""

    day: str
    wanted: str
    rows: list[Row] = field(default_factory=list[Row])
    trajectory_ids: list[str] = field(default_factory=list[str])
    sequences: list[int] = field(default_factory=list[int])
    tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])

    @property
    def full(self) -> bool:
        return self.tokens >= PART_TOKENS or len(self.trajectory_ids) >= PART_TRAJECTORIES

    def add(self, stored: StoredTrajectory, rows: list[Row]) -> None:
        self.rows += rows
        self.trajectory_ids.append(stored.listed.trajectory_id)
        self.sequences.append(stored.listed.sequence)
        self.tokens += sum(len(row["input_ids"]) for row in rows)
        self.counts.update(counts_of_trajectory(rows))


def export_settled(
    store: Store,
    dataset: Dataset,
    *,
    settling: Settling,
    wanted: TrajectoryFilter,
    hashes: ModelHashes | None = None,
    now: float | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Add to ``dataset`` every trajectory that settled since its last part, each exactly once.

    ``hashes`` name the model's tokenizer where the store does not know it, or knows better.
    Memory is bounded by one part. With ``now`` (seconds since the epoch), trajectories settle by
    that clock alone. Raises StoreError and ExportError; what was committed stays.
    """
    summary = Summary()
    known = Known(dataset)
    sightings = _read_sightings(dataset)
    before = list(sightings.seen)
    name = _name_of(wanted)

    def is_known(each: Changed) -> bool:
        if each.trajectory_id not in known:
            return False
        summary.late += known.is_later(each.trajectory_id, each.sequence)
        return True

    harvest = store.settled(
        HarvestOptions(
            settling=settling,
            wanted=wanted,
            after=dataset.cursor(name),
            now=now,
            sightings=sightings,
            skip=is_known,
        )
    )
    part: _Part | None = None
    for stored, toolsets in harvest:
        day = datetime.fromtimestamp(stored.listed.written_at, UTC).date().isoformat()
        if part is not None and (part.full or part.day != day):
            _commit(dataset, part, harvest.cursor, summary)
            part = None
            if progress is not None:
                progress(summary)
        part = part or _Part(day, name)
        part.add(stored, rows_of(stored, toolsets, hashes))
    if part is not None:
        _commit(dataset, part, harvest.cursor, summary)
    if summary.parts:
        dataset.write_card(card_of(dataset))
    note_erased(store, dataset)
    if sightings.seen != before:
        _note_sightings(dataset, sightings)
    return summary


def _read_sightings(dataset: Dataset) -> Sightings:
    """What earlier exports saw of the store in this run of the machine."""
    note = dataset.read_note(_SIGHTINGS)
    if note.get("boot_id") != boot_id():
        return Sightings()
    return Sightings([Sighting(sequence=number, uptime=at) for number, at in note["seen"]])


def _note_sightings(dataset: Dataset, sightings: Sightings) -> None:
    """For the next export in this run of the machine."""
    seen = [(each.sequence, each.uptime) for each in sightings.seen]
    dataset.write_note(_SIGHTINGS, {"boot_id": boot_id(), "seen": seen})


def _name_of(wanted: TrajectoryFilter) -> str:
    """The same for the same filter: what another one passed over was not looked at under it."""
    return hashlib.blake2b(repr(wanted).encode(), digest_size=8).hexdigest()


def _commit(dataset: Dataset, part: _Part, cursor: Cursor | None, summary: Summary) -> None:
    table = to_table(part.rows)
    dataset.commit(
        table,
        day=part.day,
        cursor=cursor,
        wanted=part.wanted,
        trajectory_ids=part.trajectory_ids,
        sequences=part.sequences,
        counts=dict(part.counts),
    )
    summary.trajectories += len(part.trajectory_ids)
    summary.rows += table.num_rows
    summary.parts += 1
