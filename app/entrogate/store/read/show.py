"""Trajectories as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from entrogate.store.read.rows import Bounds, ListedTrajectory, Shadow, Trajectory, Turn

_TEXT_LIMIT = 2000


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of left-aligned columns; the first row is the heading."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def list_lines(items: Sequence[ListedTrajectory]) -> Iterator[str]:
    """One line a trajectory; no prompt text."""
    rows = [["id", "created", "task", "model", "turns", "calls", "suppressed", "outcome", ""]]
    rows += [_list_row(item) for item in items]
    return table(rows)


def _list_row(item: ListedTrajectory) -> list[str]:
    return [
        item.id,
        time_text(item.created_at),
        item.task_id or "-",
        item.model,
        str(item.n_turns),
        str(item.n_calls),
        str(item.n_suppressed),
        _number(item.outcome),
        "" if item.complete else "incomplete",
    ]


def show_lines(trajectory: Trajectory) -> Iterator[str]:
    """One trajectory turn by turn, messages included."""
    yield f"trajectory {trajectory.id}"
    yield f"  created    {time_text(trajectory.created_at)}"
    facts = {
        "task": trajectory.task_id,
        "model": trajectory.model,
        "mode": trajectory.mode,
        "incomplete_reason": trajectory.incomplete_reason,
        "metadata": trajectory.metadata,
    }
    for name, value in facts.items():
        if value:
            yield f"  {name:<10} {value}"
    yield f"  outcome    {_number(trajectory.outcome)}"
    rewards = trajectory.rewards
    if rewards:
        yield (
            f"  sparse     {_number(rewards.sparse)}"
            f"   ({rewards.n_reduced} of {rewards.n_labelled} known groups reduced entropy,"
            f" {rewards.n_groups} groups)"
        )
    for turn in trajectory.turns:
        yield ""
        yield from _turn_lines(turn)
    for given in trajectory.feedback:
        yield ""
        yield f"feedback {_number(given.score)} on {given.target} {given.target_id}"
        if given.comment:
            yield f"  {given.comment}"


def _turn_lines(turn: Turn) -> Iterator[str]:
    notes = [f"branch {turn.branch_index}"]
    notes += ["internal"] if turn.replayed else []
    notes += [f"capture gap: {turn.capture_gap}"] if turn.capture_gap else []
    notes += [f"error: {turn.error}"] if turn.error else []
    yield (
        f"turn {turn.turn_index}  ({', '.join(notes)})  {turn.n_prompt_tokens} + "
        f"{turn.n_tokens} tokens, {turn.duration_seconds:.2f} s, {turn.finish_reason}"
    )
    change = turn.change
    if change is not None:
        delta = _interval(change.delta) if change.delta else f"null ({change.null_reason})"
        yield f"  entropy change {delta}"
    for message in turn.messages:
        yield f"  {message.get('role', '?')}: {_content(message)}"
    segment = turn.segment
    if segment is not None:
        yield (
            f"  segment of {segment.n_tokens} tokens ({segment.estimator}): mean "
            f"{_interval(segment.mean)}, max {_interval(segment.max)} nats"
        )
    yield f"  assistant: {_content(turn.response)}"
    for call in turn.calls:
        decision = call.decision
        applied = "" if decision.applied == decision.action else f" -> {decision.applied}"
        yield (
            f"  call {call.name}({call.arguments})  {decision.action}{applied} "
            f"[{decision.reason}, propensity {decision.propensity:.3g}, "
            f"mode {decision.mode}, policy {decision.policy_name}]"
        )
    if turn.shadow is not None:
        yield _shadow_line(turn.shadow)
    if turn.dense_reward is not None:
        yield f"  dense reward {_number(turn.dense_reward)}"


def _shadow_line(shadow: Shadow) -> str:
    notes = [shadow.purpose, f"{shadow.n_tokens} tokens", shadow.finish_reason or "no end"]
    notes += ["called again"] if shadow.called else []
    notes += [f"capture gap: {shadow.capture_gap}"] if shadow.capture_gap else []
    score = (
        f"score {_number(shadow.score)} by {shadow.judged_by}" if shadow.judged_by else "unscored"
    )
    return f"  without the call: {_cut(shadow.content)}  [{score}; {', '.join(notes)}]"


def time_text(seconds: float) -> str:
    """UTC to the second, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _content(message: dict[str, Any]) -> str:
    parts = [message.get(name) for name in ("reasoning", "reasoning_content", "content")]
    said = [part if isinstance(part, str) else json.dumps(part) for part in parts if part]
    return _cut(" | ".join(said))


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}… ({len(text)} characters)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: Bounds) -> str:
    lower, upper = bounds.lower, bounds.upper
    return f"{lower:.3f}" if lower == upper else f"[{lower:.3f}, {upper:.3f}]"
