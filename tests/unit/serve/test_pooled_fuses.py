"""Fuses of a policy whose tools share one promise: one that always loses more is no reason."""

from __future__ import annotations

from dataclasses import replace

from entrogate.gate.policy import parse_policy
from entrogate.serve.fuses import Standing, standings_of
from entrogate.store.read.fuses import Audited, Audits, Fuse, FuseState

TEXT = (
    "schema_version: 1\nname: own\nmode: enforce\ndefaults: {threshold: 1.0}\n"
    "tools:\n  often:\n  seldom:\naudit: {share: 0.1, max_loss: 0.1, delta: 0.1"
)


def _audited(tool: str, sequence: int, *, lost: bool | None) -> Audited:
    return Audited(tool=tool, sequence=sequence, created_at=float(sequence), lost=lost)


def _stand(audits: Audits, *, pooled: bool) -> dict[str, Standing]:
    policy = parse_policy(TEXT + (", pooled: true}" if pooled else "}"), "own")
    assert policy.audit is not None
    return {each.fuse.tool: each for each in standings_of(policy, policy.audit, audits)}


def _blown(audits: Audits, *, pooled: bool) -> set[str]:
    found = _stand(audits, pooled=pooled)
    return {tool for tool, each in found.items() if each.fuse.state is FuseState.BLOWN}


# One in ten is of the tool that loses half of the time: 5 % of all are lost, below the limit.
STEADY = tuple(
    _audited("seldom" if at % 10 == 0 else "often", at, lost=at % 20 == 0) for at in range(1, 401)
)
AUDITS = Audits(fuses={}, audited=STEADY, now=1000.0)


def test_a_tool_above_the_limit_does_not_blow_where_all_together_are_below_it():
    assert _blown(AUDITS, pooled=False) == {"seldom"}
    assert _blown(AUDITS, pooled=True) == set()
    for standing in _stand(AUDITS, pooled=True).values():
        assert (standing.fuse.n, standing.fuse.losses) == (400, 20)


def test_all_blow_together_and_one_that_is_armed_counts_from_then_on():
    losing = tuple(_audited("often", at, lost=at % 3 == 0) for at in range(401, 501))
    both = replace(AUDITS, audited=STEADY + losing)
    assert _blown(both, pooled=True) == {"often", "seldom"}

    armed = Fuse(
        policy_version="v",
        tool="often",
        state=FuseState.ARMED,
        armed_at=501.0,
        armed_sequence=500,
        changed_at=501.0,
        n=0,
        losses=0,
        lower=None,
        upper=None,
    )
    after = replace(both, fuses={"often": armed})
    assert _blown(after, pooled=True) == {"seldom"}
    assert _stand(after, pooled=True)["often"].fuse.n == 0


def test_a_turn_that_calls_two_tools_is_one_audit():
    twice = tuple(
        _audited(tool, at, lost=None if at == 3 else False)
        for at in (1, 2, 3)
        for tool in ("often", "seldom")
    )
    found = _stand(replace(AUDITS, audited=twice), pooled=True)["often"]
    assert (found.fuse.n, found.waiting) == (2, 1)
