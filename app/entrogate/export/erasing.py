# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Erased trajectories in a dataset: noted at once, so that our readers skip them; then rewritten.

A part is rewritten as it was written: staged, its manifest entry replaced (the commit), renamed
over the old one. Whoever dies in between leaves what the next writer finishes or throws away.
"""

from __future__ import annotations

from dataclasses import dataclass

from entrogate.access import digest_of_trajectory
from entrogate.export.card import card_of
from entrogate.export.counts import counts_of
from entrogate.export.dataset import ERASED, Dataset, Entry
from entrogate.export.tables import part_rows, to_table
from entrogate.store import Store


@dataclass(slots=True)
class Taken:
    """What was taken out of a dataset."""

    trajectories: int = 0
    rows: int = 0
    parts: int = 0  # rewritten


def note_erased(store: Store, dataset: Dataset) -> int:
    """Note which trajectories of ``dataset`` the store has erased; how many. Raises StoreError."""
    tombstones = store.erased()
    held = frozenset(
        digest
        for entry in (dataset.entries if tombstones else ())
        for id_ in dataset.trajectory_ids(entry)
        if (digest := digest_of_trajectory(id_)) in tombstones
    )
    if held != dataset.erased:
        dataset.erased = held
        dataset.write_note(ERASED, {"digests": sorted(held)})
    return len(held)


def take_out(dataset: Dataset) -> Taken:
    """Rewrite the parts that hold a trajectory noted as erased, one at a time, without it.

    Numbers, dates and the place to go on stay: what was exported is not exported again. Raises
    ExportError; the parts that were rewritten by then stay so.
    """
    taken = Taken()
    for entry in list(dataset.entries):
        ids, kept = dataset.trajectory_ids(entry), dataset.kept(entry)
        if len(kept) == len(ids):
            continue
        rows = [row for rows in part_rows(dataset, entry) for row in rows]
        dataset.replace(
            entry,
            to_table(rows),
            trajectory_ids=[id_ for id_, _ in kept],
            sequences=[sequence for _, sequence in kept],
            counts=counts_of(rows),
        )
        taken.trajectories += len(ids) - len(kept)
        taken.rows += entry.rows - len(rows)
        taken.parts += 1
    if taken.parts:
        dataset.write_card(_card(dataset))
    if dataset.erased:
        dataset.erased = frozenset()
        dataset.write_note(ERASED, {"digests": []})
    return taken


def _card(dataset: Dataset) -> dict[str, object]:
    """A labelled copy says in its card how it was labelled."""
    labelling = dataset.read_card().get("labelling")
    card: dict[str, object] = card_of(dataset)
    return card if labelling is None else card | {"labelling": labelling}


def kept_entries(dataset: Dataset, entry: Entry) -> tuple[list[str], list[int]]:
    """Ids and commits of what a part holds and nobody has erased."""
    kept = dataset.kept(entry)
    return [id_ for id_, _ in kept], [sequence for _, sequence in kept]
