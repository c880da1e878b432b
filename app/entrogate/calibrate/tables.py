"""A calibration as lines for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entrogate.calibrate.result import Calibrated, Judged, Row, Share, Total
from entrogate.calibrate.samples import Log
from entrogate.gate.schema import Signal, Statistic
from entrogate.risk.auc import Auc
from entrogate.store.read.show import table

SCHEMA_VERSION = 1
_HEAD = (
    "tool", "n", "with tool", "losses", "upper bound", "allowed", "gains", "signal", "threshold",
    "calls saved [95 %]", "",
)  # fmt: skip


def lines(found: Calibrated, log: Log) -> list[str]:
    """The table, the whole policy's figures, the signals' AUC and what was left out."""
    options = found.options
    chosen_on = found.n - found.certified_on
    told = [
        str(log.origin),
        (
            f"{found.n} trajectories: signals chosen on {chosen_on}, thresholds on the other"
            f" {found.certified_on}"
        ),
        (
            f"promise: at most {options.max_loss:.3g} of trajectories are right with their calls"
            f" and wrong without, with confidence {1 - options.delta:.3g}"
        ),
        "",
        *table([_HEAD, *(_row(row) for row in found.rows)]),
    ]
    if found.total is not None:
        told += ["", "all together: " + whole_policy(found.total)]
    told += [
        "",
        "how well each signal tells right from wrong answers without the call (certifying half):",
    ]
    for row in found.rows:
        told += [] if row.tool is None else [f"{row.tool}:"]
        told += [f"  {line}" for line in table([_judged(each) for each in ranked(row.judged)])]
        told += [f"  {line}" for line in _unavailable(row, found.options.signals)]
    return [*told, *left_out(log)]


def _unavailable(row: Row, signals: Sequence[Statistic]) -> list[str]:
    """The signals that were asked for and are not in the table, with the reason."""
    judged = {each.signal.statistic for each in row.judged}
    absent = [each for each in signals if each not in judged]
    without = [each.value for each in absent if each is not Statistic.LEARNED]
    told = [f"no value in these trajectories: {', '.join(without)}"] if without else []
    if Statistic.LEARNED in absent:
        told.append(
            "learned: not fitted; it needs right and wrong shadows, in ten trajectories or more"
        )
    return told


def whole_policy(whole: Total) -> str:
    """What the whole policy does to the certifying part."""
    saved = whole.saved
    return (
        f"{whole.losses} of {whole.n} lost (at most {whole.upper:.1%}), {whole.gains} gained; "
        f"right {whole.right_before} → {whole.right_after}; {saved.value:.1%} of {whole.calls} "
        f"calls saved [{saved.lower:.1%}, {saved.upper:.1%}]; "
        f"{whole.called_again} shadows called again"
    )


def left_out(log: Log) -> list[str]:
    """What was left out of the log and why, and who judged the shadows."""
    told: list[str] = []
    if log.left_out:
        listed = ", ".join(f"{reason} {count}" for reason, count in log.left_out.most_common())
        told += ["", f"left out: {listed}"]
    if log.judged_by:
        judges = ", ".join(f"{judge} {count}" for judge, count in log.judged_by.most_common())
        told += [f"shadows judged by: {judges}"]
    return told


def verdict(row: Row) -> str:
    """Whether the row is certified, or what it would take."""
    if row.certified:
        return "certified"
    if not row.any_right:
        return "no shadow is right: nothing to save"
    if row.needs is None:
        return "loses too much at the strictest threshold"
    return f"needs about {row.needs} more"


def signal_name(signal: Signal | None) -> str:
    """How a table calls a signal."""
    if signal is None:
        return "–"
    length = f"({signal.draft_tokens})" if signal.needs_draft else ""
    return signal.statistic.value + length


def as_json(found: Calibrated, log: Log) -> dict[str, Any]:
    """All of it for other programs; the curves included."""
    whole = found.total
    return {
        "schema_version": SCHEMA_VERSION,
        "certified": found.policy is not None,
        "needs": found.needs,
        "origin": None if log.origin is None else {
            "model": log.origin.model,
            "weights": log.origin.weights,
            "tokenizer": log.origin.tokenizer or None,
            "estimator": log.origin.estimator.value,
        },
        "n": found.n,
        "certified_on": found.certified_on,
        "max_loss": found.options.max_loss,
        "delta": found.options.delta,
        "seed": found.options.seed,
        "data": log.data_hash,
        "left_out": {str(reason): count for reason, count in log.left_out.items()},
        "judged_by": dict(log.judged_by),
        "rows": [_row_json(row) for row in found.rows],
        "total": None if whole is None else {
            "n": whole.n,
            "losses": whole.losses,
            "upper": whole.upper,
            "gains": whole.gains,
            "called_again": whole.called_again,
            "right_before": whole.right_before,
            "right_after": whole.right_after,
            "calls": whole.calls,
            "saved": _share_json(whole.saved),
        },
    }  # fmt: skip


def figures(row: Row) -> tuple[str, ...]:
    """The numbers of a row as text, from its trajectories to its threshold."""
    return (
        str(row.n),
        str(row.n_with_tool),
        str(row.losses),
        f"{row.upper:.2%}",
        f"{row.max_loss:.2%}",
        str(row.gains),
        signal_name(row.signal),
        "–" if row.threshold is None else f"{row.threshold:.6g}",
    )


def saved_share(row: Row) -> str:
    """The calls saved, with the interval."""
    return f"{row.saved.value:.1%} [{row.saved.lower:.1%}, {row.saved.upper:.1%}]"


def _row(row: Row) -> tuple[str, ...]:
    saved = saved_share(row) if row.certified else "–"
    return ("(all)" if row.tool is None else row.tool, *figures(row), saved, verdict(row))


def ranked(judged: Sequence[Judged]) -> list[Judged]:
    """The best by AUC first; equal ones in their order."""
    return sorted(judged, key=lambda each: 1.0 if each.auc is None else -each.auc.value)


def _judged(judged: Judged) -> tuple[str, ...]:
    unknown = f"no value for {judged.n_unknown} turns" if judged.n_unknown else ""
    return signal_name(judged.signal), area(judged.auc), unknown


def area(found: Auc | None) -> str:
    """An AUC with its interval as text."""
    if found is None:
        return "AUC –: one class only"
    return f"AUC {found.value:.3f} [{found.lower:.3f}, {found.upper:.3f}]"


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "tool": row.tool,
        "certified": row.certified,
        "needs": row.needs,
        "any_right": row.any_right,
        "n": row.n,
        "n_with_tool": row.n_with_tool,
        "max_loss": row.max_loss,
        "delta": row.delta,
        "signal": None if row.signal is None else row.signal.model_dump(
            mode="json", exclude_unset=True
        ),
        "threshold": row.threshold,
        "losses": row.losses,
        "upper": row.upper,
        "gains": row.gains,
        "saved": _share_json(row.saved),
        "signals": [_judged_json(each) for each in row.judged],
    }  # fmt: skip


def _judged_json(judged: Judged) -> dict[str, Any]:
    found, curve = judged.auc, judged.certifying
    sign = -1.0 if judged.signal.statistic.certain_when_above else 1.0
    return {
        "statistic": judged.signal.statistic.value,
        "auc": None if found is None else {
            "value": found.value,
            "lower": found.lower,
            "upper": found.upper,
            "n_right": found.n_right,
            "n_wrong": found.n_wrong,
        },
        "unknown_turns": judged.n_unknown,
        "saved_on_choosing_part": judged.chosen_saving,
        "curve": {
            "threshold": (sign * curve.thresholds).tolist(),
            "losses": curve.losses.tolist(),
            "gains": curve.gains.tolist(),
            "saved": curve.saved.tolist(),
        },
    }  # fmt: skip


def _share_json(share: Share) -> dict[str, float]:
    return {"value": share.value, "lower": share.lower, "upper": share.upper}
