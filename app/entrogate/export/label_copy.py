# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
"""A copy of a dataset with rewards and advantages filled in."""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from entrogate.errors import ExportError
from entrogate.export.card import card_of
from entrogate.export.counts import counts_of
from entrogate.export.dataset import Dataset
from entrogate.export.erasing import kept_entries
from entrogate.export.judgements import (
    JUDGED_COLUMNS,
    Judgements,
    Valued,
    credited,
    dense_of_calls,
)
from entrogate.export.tables import Row, iter_rows, part_rows, to_table
from entrogate.label.worth import Labelling


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReport:
    """``labelled`` trajectories in ``groups``; the others by the reason why they teach nothing."""

    labelled: int
    groups: int
    skipped: Counter[str]


def label_dataset(source: Dataset, target: str, labelling: Labelling) -> LabelReport:
    """Write ``source`` to the folder ``target``, labelled; part by part, under the same dates.

    `reward_sparse` and `reward_dense` are filled for every row with an outcome and a complete
    trajectory, `advantages` for those of them whose group teaches something; everything else is
    null there. Memory holds one part, and the outcome and labels of every trajectory.

    Raises ExportError for a part that cannot be read or an outcome outside [0, 1].
    """
    judgements = Judgements(labelling.options)
    for rows in iter_rows(source, JUDGED_COLUMNS):
        for row in rows:
            judgements.take(row)
    for id_, judged in judgements.found.items():
        if not 0.0 <= judged.outcome <= 1.0:
            raise ExportError(f"trajectory {id_}: its outcome is {judged.outcome}; want 0 to 1")
    valued = judgements.valued(labelling)
    labels = _Labels(judgements=judgements, valued=valued, labelling=labelling)
    with Dataset.writing(target) as dataset:
        for entry in source.entries:
            rows = [labels.fill(r) for rows in part_rows(source, entry) for r in rows]
            ids, sequences = kept_entries(source, entry)
            dataset.commit(
                to_table(rows),
                day=posixpath.dirname(entry.part).removeprefix("date="),
                cursor=entry.cursor,
                wanted=entry.wanted,
                trajectory_ids=ids,
                sequences=sequences,
                counts=counts_of(rows) if source.erased else entry.counts,
            )
        dataset.write_card(card_of(dataset) | {"labelling": asdict(labelling)})
    return LabelReport(labelled=len(valued.worth), groups=valued.groups, skipped=valued.skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """What is known of the whole dataset when its rows are filled in."""

    judgements: Judgements
    valued: Valued
    labelling: Labelling

    def fill(self, row: Row) -> Row:
        """The row with its rewards and advantages."""
        judged = self.judgements.found.get(row["trajectory_id"])
        if judged is None or row["outcome"] is None:
            unknown = np.full(len(row["calls"]), np.nan, dtype=np.float32)
            return row | {"reward_sparse": None, "reward_dense": unknown, "advantages": None}
        worth = self.valued.worth.get(row["trajectory_id"])
        return row | {
            "reward_sparse": judged.sparse(self.labelling.options),
            "reward_dense": dense_of_calls(row, judged, self.labelling.options),
            "advantages": None if worth is None else credited(row, worth),
        }
