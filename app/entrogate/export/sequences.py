# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""Stored trajectories to rows of an export: one token sequence a branch, nothing retokenised."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from entrogate.access import qualified
from entrogate.export.schema import SCHEMA_VERSION
from entrogate.export.tables import Row
from entrogate.model_hashes import ModelHashes
from entrogate.store.codec import load_spans, unpack_floats, unpack_ints
from entrogate.store.read.settled import AnyRow, StoredTrajectory
from entrogate.store.read.trajectory import prompts_of
from entrogate.types import EntropyChange, Estimator, FloatArray, IntArray, Span, SpanKind
from entrogate.wire.body import from_json, to_json

IGNORED = -100  # what a label of a token that is not trained on says


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """What the rows of one trajectory have in common."""

    stored: StoredTrajectory
    group_id: str
    followers: dict[str, str]
    toolsets: dict[bytes, str]
    hashes: ModelHashes | None


@dataclass(slots=True)
class _Tokens:
    """The columns of a sequence, grown turn by turn."""

    input_ids: list[Any] = field(default_factory=list[Any])
    loss_mask: list[Any] = field(default_factory=list[Any])
    old_logprobs: list[Any] = field(default_factory=list[Any])
    entropy: list[Any] = field(default_factory=list[Any])
    tail_mass: list[Any] = field(default_factory=list[Any])
    margin: list[Any] = field(default_factory=list[Any])
    segment_id: list[Any] = field(default_factory=list[Any])
    token_kind: list[Any] = field(default_factory=list[Any])
    length: int = 0

    def read(self, token_ids: IntArray, kind: SpanKind) -> None:
        """Tokens that the model was given."""
        n = len(token_ids)
        unknown = np.full(n, np.nan, dtype=np.float32)
        self._add(
            token_ids,
            np.zeros(n, dtype=np.int8),
            np.zeros(n, dtype=np.float32),
            (unknown, unknown, unknown),
            np.full(n, -1, dtype=np.int16),
            np.full(n, kind, dtype=np.int8),
        )

    def sample(self, turn: AnyRow, spans: tuple[Span, ...], number: int) -> None:
        """Tokens that the model sampled in one turn."""
        token_ids = unpack_ints(turn.token_ids)
        n = len(token_ids)
        mask = np.ones(n, dtype=np.int8)
        for start, stop in orjson.loads(turn.altered):
            mask[start:stop] = 0
        kinds = np.full(n, SpanKind.CONTROL, dtype=np.int8)
        for span in spans:
            kinds[span.start : span.stop] = span.kind
        entropy = unpack_floats(turn.entropy_lower)
        if turn.entropy_upper is not None:
            entropy = (entropy + unpack_floats(turn.entropy_upper)) / np.float32(2)
        self._add(
            token_ids,
            mask,
            unpack_floats(turn.logprobs) * mask,
            (entropy, unpack_floats(turn.tail_mass), unpack_floats(turn.margin)),
            np.full(n, number, dtype=np.int16),
            kinds,
        )

    def _add(  # noqa: PLR0917
        self,
        token_ids: IntArray,
        mask: Any,
        logprobs: FloatArray,
        measured: tuple[FloatArray, FloatArray, FloatArray],
        segments: Any,
        kinds: Any,
    ) -> None:
        self.input_ids.append(token_ids)
        self.loss_mask.append(mask)
        self.old_logprobs.append(logprobs)
        for column, values in zip(
            (self.entropy, self.tail_mass, self.margin), measured, strict=True
        ):
            column.append(values)
        self.segment_id.append(segments)
        self.token_kind.append(kinds)
        self.length += len(token_ids)

    def columns(self) -> Row:
        joined: Row = {
            name: np.concatenate(getattr(self, name)) for name in self.__slots__ if name != "length"
        }
        labels = np.where(joined["loss_mask"], joined["input_ids"], IGNORED).astype(np.int32)
        return {**joined, "labels": labels}


def rows_of(
    stored: StoredTrajectory, toolsets: dict[bytes, str], hashes: ModelHashes | None = None
) -> list[Row]:
    """The rows of one trajectory, by branch. ``hashes`` go before those that the store noted."""
    branches: defaultdict[int, list[AnyRow]] = defaultdict(list)
    for turn in stored.turns:
        branches[turn.branch_index].append(turn)
    prompts = prompts_of(stored.turns)
    task = stored.trajectory.task_id or _prompt_group(prompts[stored.turns[0].id])
    context = _Context(
        stored=stored,
        group_id=qualified(stored.trajectory.tenant, task),  # tenants' tasks are not compared
        followers=_followers(stored),
        toolsets=toolsets,
        hashes=hashes,
    )
    return [
        _row(context, branches[index], prompts[branches[index][0].id]) for index in sorted(branches)
    ]


def _row(context: _Context, turns: list[AnyRow], prompt: IntArray) -> Row:
    judged = turns[-1].id in context.stored.judged
    calls = _Calls()
    for turn in _shared(context.stored, turns[0]) if judged else ():
        calls.take(context, turn, (), 0)
    tokens = _Tokens()
    tokens.read(prompt, SpanKind.PROMPT)
    for number, turn in enumerate(turns):
        if number:
            tokens.read(unpack_ints(turn.prompt_token_ids), SpanKind.RESULT)
        start, spans = tokens.length, load_spans(turn.spans)
        tokens.sample(turn, spans, number)
        calls.take(context, turn, spans, start)
    return {
        **_origin(context, turns),
        **_sampling(turns),
        **calls.columns(),
        **_outcome(context.stored, judged=judged),
        "truncated": turns[-1].finish_reason == "length",
        "complete": all(turn.capture_gap is None and turn.error is None for turn in turns),
        **tokens.columns(),
    }


@dataclass(slots=True)
class _Calls:
    """The calls of a row with their rewards, turn by turn."""

    rows: list[Row] = field(default_factory=list[Row])
    dense: list[float] = field(default_factory=list[float])

    def take(self, context: _Context, turn: AnyRow, spans: tuple[Span, ...], start: int) -> None:
        """The calls of one turn, whose tokens begin at ``start`` in the row."""
        follower = context.followers.get(turn.id)
        change = None if follower is None else context.stored.changes.get(follower)
        own = _calls(context.stored, turn, spans, start, change)
        reward = context.stored.dense.get(turn.id)
        self.rows += own
        self.dense += [np.nan if reward is None else reward] * len(own)

    def columns(self) -> Row:
        return {
            "calls": self.rows,
            "reward_dense": np.array(self.dense, dtype=np.float32),
        }


def _origin(context: _Context, turns: list[AnyRow]) -> Row:
    """Where a row comes from: trajectory, model, weights, policy, messages."""
    stored, first = context.stored, turns[0]
    hashes = _hashes_of(context, first.model)
    decided = next((c for turn in turns for c in stored.calls.get(turn.id, ())), None)
    return {
        "schema_version": SCHEMA_VERSION,
        "trajectory_id": stored.trajectory.id,
        "group_id": context.group_id,
        "task_id": stored.trajectory.task_id,
        "model_id": first.model,
        "tokenizer_hash": hashes.tokenizer,
        "chat_template_hash": hashes.chat_template,
        "weight_version": _same([turn.weight_version for turn in turns]) or "",
        "policy_name": "" if decided is None else decided.policy_name,
        "policy_version": "" if decided is None else decided.policy_version,
        "branch_index": first.branch_index,
        "created_at": stored.trajectory.created_at,
        "messages": _messages(stored, turns[-1]),
        "tools": context.toolsets.get(first.toolset_id),
    }


def _hashes_of(context: _Context, model: str) -> ModelHashes:
    """Of a name that is not noted itself (a LoRA's), what all of that server's have in common."""
    if context.hashes is not None:
        return context.hashes
    noted = context.stored.hashes
    if model in noted:
        return noted[model]
    alike = set(noted.values())
    return alike.pop() if len(alike) == 1 else ModelHashes()


def _sampling(turns: list[AnyRow]) -> Row:
    """How the tokens of a row were sampled and measured."""
    params = [orjson.loads(turn.params) for turn in turns]
    exact = all(turn.estimator == Estimator.EXACT for turn in turns)
    return {
        "temperature": _same([_number(p.get("temperature"), 1.0) for p in params]),
        "top_p": _same([_number(p.get("top_p"), 1.0) for p in params]),
        "top_k": _same([int(_number(p.get("top_k"), 0)) for p in params]),
        "logprobs_mode": "sampled" if exact else "raw",
        "entropy_kind": "exact" if exact else "topk",
        "entropy_k": None if exact else _same([turn.top_k for turn in turns]),
    }


def _outcome(stored: StoredTrajectory, *, judged: bool) -> Row:
    """What is known of how it went; rewards of what the outcome does not speak of are null."""
    rewards = stored.rewards
    return {
        "outcome": stored.trajectory.outcome if judged else None,
        "outcome_source": stored.outcome_source if judged else None,
        "reward_sparse": rewards.sparse if judged and rewards is not None else None,
        "advantages": None,
        "n_calls": stored.trajectory.n_calls if rewards is None else rewards.n_groups,
        "n_reducing": None if rewards is None else rewards.n_reduced,
        "n_null": None if rewards is None else rewards.n_groups - rewards.n_labelled,
    }


def _shared(stored: StoredTrajectory, first: AnyRow) -> list[AnyRow]:
    """The turns of the judged path before the row's ``first``: sampled in the row it forked from,
    but the outcome speaks of their calls, too."""
    by_id = {turn.id: turn for turn in stored.turns}
    return [by_id[id_] for id_ in stored.judged[: stored.judged.index(first.id)]]


def _followers(stored: StoredTrajectory) -> dict[str, str]:
    """The turn that carries the label of each turn's calls: on the judged path, else the last."""
    found: dict[str, str] = {}
    for turn in stored.turns:
        if turn.parent_id is not None:
            found[turn.parent_id] = turn.id
    found.update(zip(stored.judged, stored.judged[1:], strict=False))
    return found


def _calls(
    stored: StoredTrajectory,
    turn: AnyRow,
    spans: tuple[Span, ...],
    start: int,
    change: EntropyChange | None,
) -> list[Row]:
    rows = stored.calls.get(turn.id, [])
    places = [(span.start, span.stop) for span in spans if span.kind is SpanKind.CALL]
    if len(places) != len(rows):  # several calls in one span, or a call that was never sampled
        whole = (min(p[0] for p in places), max(p[1] for p in places)) if places else (0, 0)
        places = [whole] * len(rows)
    return [
        {
            "call_id": row.id,
            "parallel_group": turn.turn_index,
            "name": row.name,
            "arguments": row.arguments,
            "ok": row.id in stored.answered,
            "start": start + begin,
            "end": start + end,
            **_label(change),
            "decision": row.applied,
            "propensity": row.propensity,
            "reason": row.reason,
        }
        for row, (begin, end) in zip(rows, places, strict=True)
    ]


def _label(change: EntropyChange | None) -> Row:
    if change is None:
        nothing = dict.fromkeys(("h_before", "h_after", "delta_h", "delta_h_norm", "reduced"))
        return {**nothing, "null_reason": "no_later_turn"}
    return {
        "h_before": None if change.before is None else change.before.midpoint,
        "h_after": None if change.after is None else change.after.midpoint,
        "delta_h": None if change.delta is None else change.delta.midpoint,
        "delta_h_norm": change.delta_normalised,
        "reduced": change.reduced,
        "null_reason": change.null_reason,
    }


def _messages(stored: StoredTrajectory, last: AnyRow) -> str:
    """The conversation up to and with ``last``, as JSON."""
    by_id = {turn.id: turn for turn in stored.turns}
    path = [last]
    while (parent := by_id.get(path[-1].parent_id)) is not None:
        path.append(parent)
    messages: list[Any] = []
    for turn in reversed(path):
        said = from_json(turn.new_messages)
        if turn.n_messages != len(messages) + len(said) + 1:
            messages = []  # the client rewrote the history: the turn brought all of it
        messages += [*said, from_json(turn.response)]
    return to_json(messages).decode()


def _prompt_group(prompt: IntArray) -> str:
    return f"prompt:{hashlib.blake2b(prompt.tobytes(), digest_size=12).hexdigest()}"


def _same(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def _number(value: Any, default: float) -> float:
    return default if value is None else float(value)
