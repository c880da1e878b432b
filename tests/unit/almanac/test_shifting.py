"""When the fuse of a tool would blow, counted in audits before and after the world changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrogate.gate.policy import load_policy, parse_policy
from entrogate.gate.schema import Audit
from entrogate.risk.sequence import watch
from entrogate.store.read.fuses import Audited
from entrogate_lab.almanac.promise.collecting import PromiseError
from entrogate_lab.almanac.promise.shifting import audited_policy, watched, write_policy

AUDIT = Audit(share=0.3, max_loss=0.05, delta=0.1)


def _audits(tool: str, outcomes: str, began: float) -> list[Audited]:
    """One a second: ``.`` kept, ``L`` lost, ``?`` not judged."""
    lost = {".": False, "L": True, "?": None}
    return [
        Audited(tool=tool, sequence=at, created_at=began + at, lost=lost[each])
        for at, each in enumerate(outcomes)
    ]


def test_a_tool_that_begins_to_lose_blows_after_the_change():
    audits = _audits("lookup", "." * 40 + "?" + "L" * 20, 100.0)
    audits += _audits("search", "." * 60, 100.0)
    lookup, search = watched(AUDIT, audits, began=141.0)

    assert (lookup.audits, lookup.losses, lookup.shifted, lookup.shifted_losses) == (60, 20, 20, 20)
    assert lookup.blown_after is not None
    assert lookup.delay == lookup.blown_after - 40
    outcomes = [False] * 40 + [True] * 20
    assert watch(outcomes[: lookup.blown_after], 0.1).lower > 0.05
    assert watch(outcomes[: lookup.blown_after - 1], 0.1).lower <= 0.05
    assert (search.blown_after, search.delay, search.shifted) == (None, None, 19)
    assert search.as_json()["before_ci"][0] == 0.0


def test_a_fuse_that_blows_before_the_change_has_a_delay_below_0():
    (found,) = watched(AUDIT, _audits("read", "L" * 20, 0.0), began=1000.0)
    assert found.delay is not None
    assert found.delay < 0
    assert found.as_json()["shifted_ci"] is None


def test_only_the_share_of_the_audit_is_another(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "schema_version: 1\nname: own\nmode: enforce\ndefaults: {threshold: 1.0}\n"
        "tools:\n  a:\n  b: {threshold: null}\naudit: {share: 0.05, max_loss: 0.06, delta: 0.2}\n"
    )
    policy = audited_policy(str(own), 0.3)
    write_policy(tmp_path / "written.yaml", policy)
    again = load_policy(str(tmp_path / "written.yaml"))

    assert again.audit == Audit(share=0.3, max_loss=0.06, delta=0.2)
    assert [again.rule(tool) for tool in ("a", "b")] == [policy.rule(tool) for tool in ("a", "b")]
    assert again.rule("a") != again.rule("b")
    text = own.read_text().replace("0.05", "0.3")
    assert again.version == parse_policy(text, "own").version


def test_a_policy_without_an_audit_is_refused():
    with pytest.raises(PromiseError, match="has no audit"):
        audited_policy("balanced", 0.3)
