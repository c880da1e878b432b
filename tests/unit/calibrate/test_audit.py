"""The audit that a calibrated policy gets: its limit is for trajectories with a skip."""

from __future__ import annotations

from dataclasses import replace

import pytest

from entrogate.calibrate.policy_file import audit_of
from entrogate.calibrate.result import Calibrated, Options, Share, Total
from entrogate.gate.schema import Policy
from tests.unit.calibrate.world import POLICY, policy

TOTAL = Total(
    n=200,
    losses=3,
    upper=0.04,
    gains=9,
    called_again=0,
    skipped=80,
    right_before=150,
    right_after=156,
    calls=400,
    saved=Share(value=0.4, lower=0.3, upper=0.5),
)


def calibrated(total: Total | None, text: str = POLICY) -> Calibrated:
    by: Policy | None = None if total is None else policy(text)
    options = Options(max_loss=0.05, delta=0.2)
    return Calibrated(options=options, n=400, rows=(), policy=by, total=total, certified_on=200)


@pytest.mark.parametrize(
    ("skipped", "limit"),
    [(80, 0.125), (200, 0.05), (60, 0.1667), (11, 0.5), (1, 0.5)],
)
def test_the_limit_is_the_promise_over_the_share_with_a_skip(skipped: int, limit: float) -> None:
    audit = audit_of(calibrated(replace(TOTAL, skipped=skipped)))
    assert audit is not None
    assert (audit.max_loss, audit.delta, audit.share) == (limit, 0.2, 0.05)
    assert audit.pooled  # the promise is not one for each tool


def test_the_share_of_an_audit_that_was_there_stays() -> None:
    text = POLICY + "audit: {share: 0.2, max_loss: 0.9, delta: 0.01}\n"
    audit = audit_of(calibrated(TOTAL, text))
    assert audit is not None
    assert (audit.share, audit.max_loss, audit.delta) == (0.2, 0.125, 0.2)


def test_nothing_to_audit() -> None:
    assert audit_of(calibrated(None)) is None
    assert audit_of(calibrated(replace(TOTAL, skipped=0))) is None


def test_thresholds_of_single_tools_have_fuses_of_their_own() -> None:
    found = replace(calibrated(TOTAL), options=Options(per_tool=True))
    audit = audit_of(found)
    assert audit is not None
    assert not audit.pooled
