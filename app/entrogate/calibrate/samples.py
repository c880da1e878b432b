"""The samples that a store holds, and what was left out of them and why."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from entrogate.calibrate.paired import CallTurn, Sample, Shadow
from entrogate.calibrate.rules import loosest
from entrogate.entropy.statistics import draft_stats
from entrogate.errors import ConfigError
from entrogate.gate.decide import decide_turn
from entrogate.gate.features import from_json
from entrogate.gate.schema import Policy
from entrogate.label.shadows import RIGHT
from entrogate.store.read.paired import PairedTrajectory, StoredCallTurn, StoredShadow
from entrogate.types import Action, Estimator, Features, Mode, SegmentStats

_GAP = "capture_gap"


class LeftOut(StrEnum):
    """Why a stored trajectory is no sample; the first reason that holds."""

    OTHER_MODEL = "other_model"  # not the model, weights, … that were asked for
    NO_OUTCOME = "no_outcome"  # no feedback
    CONTRADICTORY = "contradictory_outcomes"  # feedback calls it right and wrong
    INCOMPLETE = "incomplete"  # a turn of it was not recorded
    MIXED_WEIGHTS = "mixed_weights"  # several weights or models answered it
    MIXED_ESTIMATORS = "mixed_estimators"  # not all entropies of it were measured alike
    NOT_OBSERVED = "not_observed"  # a call was decided in another mode than observe
    CAPTURE_GAP = "capture_gap"  # a turn with calls has no complete capture
    BAD_FEATURES = "bad_features"  # unreadable, or not a number where one has to be
    NOT_GATED = "not_gated"  # none of its calls could be suppressed
    SHADOW_MISSING = "shadow_missing"  # a call that could be suppressed has no shadow
    SHADOW_UNJUDGED = "shadow_unjudged"  # or one that nobody has scored
    SAME_TASK = "same_task"  # another trajectory of its task was drawn


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Origin:
    """What answered, and how it was measured: thresholds are for one of these alone.

    ``tokenizer`` is "" where unknown.
    """

    model: str
    weights: str
    tokenizer: str
    estimator: Estimator

    def __str__(self) -> str:
        return (
            f"model {self.model}, weights {self.weights}, tokenizer {self.tokenizer or '?'},"
            f" estimator {self.estimator}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """Which of several origins is meant; None: any."""

    model: str | None = None
    weights: str | None = None
    tokenizer: str | None = None
    estimator: Estimator | None = None

    def takes(self, origin: Origin) -> bool:
        """Whether ``origin`` is among those that are meant."""
        pairs = (
            (self.model, origin.model),
            (self.weights, origin.weights),
            (self.tokenizer, origin.tokenizer),
            (self.estimator, origin.estimator),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The samples of one model, and what the rest was. ``origin`` is None where there are none."""

    samples: list[Sample]
    origin: Origin | None
    left_out: Counter[LeftOut] = field(default_factory=Counter[LeftOut])
    judged_by: Counter[str] = field(default_factory=Counter[str])  # shadows
    others: frozenset[Origin] = frozenset()  # of those that were not asked for
    ungated: frozenset[str] = frozenset()  # tools called where no call could be suppressed

    @property
    def data_hash(self) -> str:
        """Hash of what was learnt from: ids, outcomes and scores."""
        digest = hashlib.blake2b(digest_size=16)
        for sample in sorted(self.samples, key=lambda each: each.trajectory_id):
            scores = [
                None if turn.shadow is None else (turn.shadow.score, turn.shadow.called)
                for turn in sample.turns
            ]
            digest.update(repr((sample.trajectory_id, sample.outcome, scores)).encode())
        return digest.hexdigest()


def read_log(
    stored: Iterable[PairedTrajectory],
    base: Policy,
    *,
    draft_tokens: int,
    picked: Picked | None = None,
) -> Log:
    """The samples among ``stored`` for a calibration of ``base``.

    Drafts are measured anew on the first ``draft_tokens`` tokens of each shadow. Raises ConfigError
    where samples come from several models, weights, tokenizers or estimators: the list, and how to
    pick one.
    """
    reader = _Reader(base, draft_tokens, picked or Picked())
    groups: dict[Origin, list[Sample]] = {}
    for trajectory in stored:
        found = reader.sample(trajectory)
        if isinstance(found, LeftOut):
            reader.leave_out(trajectory, found)
        else:
            groups.setdefault(reader.origin(trajectory), []).append(found)
    if len(groups) > 1:
        raise ConfigError(_mixed(groups))
    origin = next(iter(groups), None)
    return Log(
        samples=groups[origin] if origin is not None else [],
        origin=origin,
        left_out=reader.left_out,
        judged_by=reader.judged_by,
        others=frozenset(reader.others),
        ungated=frozenset(reader.ungated),
    )


def _mixed(groups: dict[Origin, list[Sample]]) -> str:
    listed = "; ".join(f"{origin}: {len(groups[origin])}" for origin in sorted(groups))
    return (
        f"the log has trajectories of {len(groups)} models, weights, tokenizers or estimators, but "
        "a threshold belongs to one: pick one with --model, --weights, --tokenizer or --estimator "
        f"({listed})"
    )


class _Reader:
    """Turns stored trajectories into samples, or into the reason why they are none."""

    def __init__(self, base: Policy, draft_tokens: int, picked: Picked) -> None:
        self._loosest = loosest(base)
        self._draft_tokens = draft_tokens
        self._picked = picked
        self.left_out: Counter[LeftOut] = Counter()
        self.judged_by: Counter[str] = Counter()
        self.others: set[Origin] = set()
        self.ungated: set[str] = set()

    def leave_out(self, trajectory: PairedTrajectory, reason: LeftOut) -> None:
        """Count it, and keep what a message about the reason needs."""
        self.left_out[reason] += 1
        if reason is LeftOut.OTHER_MODEL:
            self.others.add(self.origin(trajectory))
        elif reason is LeftOut.NOT_GATED:
            self.ungated.update(call.name for turn in trajectory.turns for call in turn.calls)

    @staticmethod
    def origin(trajectory: PairedTrajectory) -> Origin:
        """What answered the first turn with calls."""
        first = trajectory.turns[0]
        return Origin(
            model=first.model,
            weights=first.weight_version,
            tokenizer=trajectory.tokenizer,
            estimator=first.estimator,
        )

    def sample(self, trajectory: PairedTrajectory) -> Sample | LeftOut:
        """The sample that a trajectory is, or why it is none."""
        try:
            return self._sample(trajectory)
        except (ValueError, TypeError, RecursionError):  # numbers that are none, or out of range
            return LeftOut.BAD_FEATURES

    def _sample(self, trajectory: PairedTrajectory) -> Sample | LeftOut:
        if trajectory.fault is not None:
            return LeftOut.BAD_FEATURES
        reason = self._unfit(trajectory)
        if reason is not None:
            return reason
        made: list[CallTurn] = []
        for turn in trajectory.turns:
            found = self._turn(turn)
            if isinstance(found, LeftOut):
                return found
            made.append(found)
        if all(turn.shadow is None for turn in made):
            return LeftOut.NOT_GATED
        self.judged_by.update(turn.shadow.judged_by for turn in made if turn.shadow is not None)
        return Sample(
            trajectory_id=trajectory.trajectory_id,
            task_id=trajectory.task_id,
            outcome=trajectory.scores[-1],
            turns=tuple(made),
        )

    def _unfit(self, trajectory: PairedTrajectory) -> LeftOut | None:
        turns = trajectory.turns
        if not turns:
            return LeftOut.NOT_GATED
        if not self._picked.takes(self.origin(trajectory)):
            return LeftOut.OTHER_MODEL
        if trajectory.outcome is None:
            return LeftOut.NO_OUTCOME
        if len({score >= RIGHT for score in trajectory.scores}) > 1:
            return LeftOut.CONTRADICTORY
        incomplete = trajectory.incomplete_reason or _GAP
        if not incomplete.startswith(_GAP):  # a gap counts where it is in a turn with calls
            return LeftOut.INCOMPLETE
        if len({(turn.model, turn.weight_version) for turn in turns}) > 1:
            return LeftOut.MIXED_WEIGHTS
        decided = [call for turn in turns for call in turn.calls]
        if any(c.mode != Mode.OBSERVE or c.applied != Action.ALLOW for c in decided):
            return LeftOut.NOT_OBSERVED
        return _unmeasured(turns)

    def _turn(self, turn: StoredCallTurn) -> CallTurn | LeftOut:
        try:
            seen = tuple(from_json(call.features) for call in turn.calls)
        except ValueError:
            return LeftOut.BAD_FEATURES
        if any(_unusable(features) for features in seen):
            return LeftOut.BAD_FEATURES
        stored = turn.shadow
        if decide_turn(self._loosest, Mode.ENFORCE, seen)[0].action is not Action.SUPPRESS:
            return CallTurn(features=seen, shadow=None)
        if stored is None:
            return LeftOut.SHADOW_MISSING
        if stored.score is None and not stored.called:
            return LeftOut.SHADOW_UNJUDGED
        draft = self._draft(stored)
        return CallTurn(
            features=tuple(replace(features, draft=draft) for features in seen),
            shadow=Shadow(
                score=stored.score or 0.0,
                called=stored.called,
                judged_by=stored.judged_by or "called_again",
            ),
        )

    def _draft(self, stored: StoredShadow) -> SegmentStats | None:
        if stored.capture is None:
            return None
        return draft_stats(stored.capture, self._draft_tokens, ended=stored.ended)


def _unmeasured(turns: Sequence[StoredCallTurn]) -> LeftOut | None:
    """Why the entropies of these turns and of their shadows are none to learn from."""
    if any(turn.capture_gap for turn in turns):
        return LeftOut.CAPTURE_GAP
    beside = (turn.shadow.capture for turn in turns if turn.shadow is not None)
    estimators = {capture.estimator for capture in beside if capture is not None}
    estimators |= {turn.estimator for turn in turns}
    return LeftOut.MIXED_ESTIMATORS if len(estimators) > 1 else None


def _unusable(features: Features) -> bool:
    """Is something not a number that has to be one? A margin may be unknown."""
    numbers: list[object] = [features.draw]
    numbers += [] if features.delta is None else [features.delta]
    for segment in (features.segment, features.draft):
        if segment is not None:
            numbers += _numbers(segment)
    # What was stored as null is no number either, whatever the type says.
    return any(not isinstance(each, int | float) or math.isnan(each) for each in numbers)


def _numbers(segment: SegmentStats) -> Sequence[object]:
    intervals = [segment.mean, segment.max, segment.tail_mean, segment.last_window]
    intervals += [] if segment.sum is None else [segment.sum]
    known = [] if segment.logprob_sum is None else [segment.logprob_sum]
    return [*(end for each in intervals for end in (each.lower, each.upper)), *known]
