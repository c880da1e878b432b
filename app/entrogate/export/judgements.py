"""Exported rows to the worth of their trajectories, and from there to the tokens.

What trains and what writes labelled copies share this; rows are fed one at a time, so neither has
to hold a dataset for it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from entrogate.export.tables import Row
from entrogate.label.rewards import RewardOptions
from entrogate.label.worth import Judged, Labelling, Worth, group_worth

JUDGED_COLUMNS = ("trajectory_id", "group_id", "outcome", "complete", "calls")
"""What `Judgements.take` reads of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """``worth`` by trajectory id, group by group; ``skipped``: the other trajectories by reason."""

    worth: dict[str, Worth]
    skipped: Counter[str]
    groups: int


@dataclass(slots=True)
class Judgements:
    """Outcomes and labels by trajectory. A trajectory with a gap in its capture has none."""

    options: RewardOptions = field(default_factory=RewardOptions)
    found: dict[str, Judged] = field(default_factory=dict[str, Judged])
    _left_out: dict[str, str] = field(default_factory=dict[str, str])

    def take(self, row: Row) -> None:
        """Learn from one row; the rows of a trajectory may come in any order."""
        id_ = row["trajectory_id"]
        if not row["complete"]:
            self._left_out[id_] = "incomplete capture"
            self.found.pop(id_, None)
        elif row["outcome"] is None:
            self._left_out.setdefault(id_, "no outcome")
        elif self._left_out.get(id_) != "incomplete capture":
            judged = self.found.setdefault(id_, Judged(row["group_id"], row["outcome"]))
            for call in row["calls"]:
                if call["decision"] != "suppress" and call["null_reason"] != "no_call":
                    label = self.options.label(call["reduced"], call["delta_h"])
                    judged.labels[call["parallel_group"]] = label

    def valued(self, labelling: Labelling) -> Valued:
        """Each trajectory against those of its group; what teaches nothing is skipped."""
        skipped = Counter(reason for id_, reason in self._left_out.items() if id_ not in self.found)
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for id_, judged in self.found.items():
            groups[judged.group_id].append(id_)
        worth: dict[str, Worth] = {}
        for ids in groups.values():
            own = group_worth([self.found[id_] for id_ in ids], labelling)
            if own is None:
                reason = "group of one" if len(ids) < 2 else "group with equal rewards"
                skipped[reason] += len(ids)
            else:
                worth |= zip(ids, own, strict=True)
        return Valued(worth=worth, skipped=skipped, groups=len(groups))


def credited(row: Row, worth: Worth) -> NDArray[np.float32]:
    """Advantages [T] of a row: those of a call to the tokens of the turn that made it."""
    mask = row["loss_mask"].astype(bool)
    segment_ids = row["segment_id"]
    advantages = np.where(mask, np.float32(worth.rest), np.float32(0))
    for call in row["calls"]:
        advantage = worth.by_turn.get(call["parallel_group"])
        if advantage is not None and call["end"] > call["start"]:
            of_turn = mask & (segment_ids == segment_ids[call["start"]])
            advantages[of_turn] = advantage
    return advantages


def dense_of_calls(row: Row, judged: Judged, options: RewardOptions) -> NDArray[np.float32]:
    """The dense reward of each of a row's calls; NaN where it is not known, or no tool ran."""
    by_turn = dict(zip(sorted(judged.labels), judged.dense(options), strict=True))
    found = [by_turn.get(call["parallel_group"]) for call in row["calls"]]
    return np.array([np.nan if r is None else r for r in found], dtype=np.float32)


def sampling_temperature(row: Row) -> float | None:
    """At which temperature ``old_logprobs`` are comparable: 1 where they are raw or it was 0.

    None where the turns of the row differ.
    """
    temperature = row["temperature"]
    if temperature is None:
        return None
    return temperature if row["logprobs_mode"] == "sampled" and temperature > 0 else 1.0
