"""`entrogate policy evaluate`: what a policy that never ran would have done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import orjson

from entrogate.calibrate.by_weights import METRICS
from entrogate.calibrate.evaluate import evaluate
from entrogate.calibrate.evaluated import (
    LEAST_EFFECTIVE,
    Explored,
    Observed,
    OfModel,
    Options,
    Report,
)
from entrogate.gate.policy import load_policy, parse_policy
from entrogate.gate.schema import Policy
from entrogate.ranges import FiniteRange
from entrogate.risk.offpolicy import Estimate
from entrogate.store.options import opened, store_option
from entrogate.store.read.show import table
from entrogate.store.store import Store
from entrogate.types import Mode

NOTHING = 3
"""Exit status where no log could answer."""

_SHARES = {
    "lost": "right as observed, wrong under the policy",
    "gained": "wrong as observed, right under the policy",
    "called_again": "ended by a shadow that calls again",
}


@click.command("evaluate")
@click.argument("policy_file", metavar="POLICY")
@store_option
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.ENFORCE.value,
    show_default=True,
    help="Mode in which to evaluate the policy, whatever its file says.",
)
@click.option("--model", help="Only trajectories answered by this model.")
@click.option("--weights", help="Only trajectories answered by these weights.")
@click.option(
    "--confidence",
    type=FiniteRange(0.5, 0.9999),
    default=0.95,
    show_default=True,
    help="Confidence level of the intervals.",
)
@click.option(
    "--least",
    type=FiniteRange(2.0),
    default=LEAST_EFFECTIVE,
    show_default=True,
    help="Smallest effective sample size that gives an estimate.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the figures to this file.",
)
def evaluate_command(
    policy_file: str,
    url: str,
    *,
    mode: str,
    model: str | None,
    weights: str | None,
    confidence: float,
    least: float,
    json_file: Path | None,
) -> None:
    """Estimate what POLICY (a bundled name or a YAML file) would have done to recorded traffic.

    Uses importance weights for trajectories recorded in mode explore, and paired comparison for
    observed ones with shadows. Exit status 3: neither gives an estimate; the output says what is
    missing.
    """
    policy = load_policy(policy_file, can_force=True)
    options = Options(
        mode=Mode(mode),
        confidence=confidence,
        least_effective=least,
        model=model,
        weights=weights,
    )
    with opened(url) as store:
        report = evaluate(store.iter_logged(), policy, options, _Stored(store))
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2) + b"\n")
    for line in report_lines(report):
        click.echo(line)
    if not report.answered:
        raise SystemExit(NOTHING)


class _Stored:
    """The policies of a store by their version, each read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Policy | None] = {}

    def __call__(self, version: str) -> Policy | None:
        if version not in self._known:
            text = self._store.policy_text(version)
            label = f"stored policy {version}"
            self._known[version] = (
                None if text is None else parse_policy(text, label, can_force=True)
            )
        return self._known[version]


def report_lines(report: Report) -> Iterable[str]:
    """The report for a terminal."""
    percent = f"{100 * report.confidence:g} %"
    yield f"policy {report.policy} {report.version} in mode {report.mode}; {percent} intervals"
    for each in report.models:
        yield from _model_lines(each)
    if not report.models:
        yield ""
        yield (
            "no explored trajectories and no observed ones with shadows: record some in mode"
            " explore, or with --shadow-share"
        )
    if report.left_out:
        yield ""
        listed = ", ".join(
            f"{count} {reason.value}" for reason, count in report.left_out.most_common()
        )
        yield f"trajectories left out: {listed}"


def _model_lines(found: OfModel) -> Iterable[str]:
    yield ""
    yield f"model {found.model}, weights {found.weights or 'unknown'}"
    if found.explored is not None:
        yield from _explored_lines(found.explored)
    if found.observed is not None:
        yield from _observed_lines(found.observed)


def _explored_lines(found: Explored) -> Iterable[str]:
    yield (
        f"from {found.n} explored trajectories with {found.support.n} decisions,"
        f" weighted; effective sample size {found.effective:.1f},"
        f" mean weight {found.mean_weight.value:.2f}"
    )
    if found.refused is not None:
        yield f"  no estimate: {found.refused}"
    else:
        rows = [["per trajectory", "as logged", "policy", "self-normalised", "per decision"]]
        for metric in METRICS:
            if metric in found.estimates:
                own = found.estimates[metric]
                each = (own.logged, own.doubly_robust, own.self_normalised, own.per_decision)
                rows.append([metric, *(shown(metric, estimate) for estimate in each)])
        yield from _indented(table(rows))
    yield from (f"  note: {warning}" for warning in found.warnings)


def _observed_lines(found: Observed) -> Iterable[str]:
    yield f"from {found.n} observed trajectories with calls and shadows, paired"
    if found.refused is not None:
        yield f"  no estimate: {found.refused}"
    else:
        rows = [["per trajectory", "as observed", "policy", "difference"]]
        for metric, own in found.compared.items():
            each = (own.observed, own.policy, own.difference)
            rows.append([metric, *(shown(metric, estimate) for estimate in each)])
        yield from _indented(table(rows))
        shares = [[_SHARES[name], shown("outcome", own)] for name, own in found.shares.items()]
        yield from _indented(table(shares))
    yield from (f"  note: {warning}" for warning in found.warnings)


def _indented(lines: Iterable[str]) -> Sequence[str]:
    return [f"  {line}" for line in lines]


def shown(metric: str, estimate: Estimate) -> str:
    """A value with its interval, in as many digits as the metric deserves."""
    if metric == "outcome":
        value, lower, upper = (
            100 * number for number in (estimate.value, estimate.lower, estimate.upper)
        )
        return f"{value:.1f} % [{lower:.1f}, {upper:.1f}]"
    digits = 1 if metric == "tokens" else 2
    return f"{estimate.value:.{digits}f} [{estimate.lower:.{digits}f}, {estimate.upper:.{digits}f}]"
