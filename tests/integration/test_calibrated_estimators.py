"""A calibration holds for one way of measuring entropies: the plugin in vLLM, or log-probs."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from entrogate.cli import command_line
from entrogate.store import Store
from tests.integration.calibrating import POLICY, add, calibrate, filled
from tests.unit.calibrate.world import features, segment
from tests.unit.store.made import capture


def test_a_log_measured_in_two_ways_is_refused_until_one_is_picked(tmp_path: Path) -> None:
    sure = features(segment=segment(0.2))
    (tmp_path / "mine.yaml").write_text(POLICY, encoding="utf-8")

    async def work(store: Store) -> None:
        for number in range(30):
            await add(store, f"topk{number}", sure)
            await add(store, f"exact{number}", sure, draft=capture(7, exact=True))
        await add(store, "mixed", sure, draft=capture(7), capture=capture(6, exact=True))

    url = filled(tmp_path, work)

    refused = CliRunner().invoke(command_line(), ["calibrate", "--store", url])
    assert "--estimator (model almanac, weights base" in str(refused.exception)
    assert "estimator exact: 30; model almanac, weights base" in str(refused.exception)
    picked = json.loads(calibrate(tmp_path, url, "--estimator", "exact", "--json").stdout)
    assert (picked["n"], picked["origin"]["estimator"]) == (30, "exact")
    assert picked["left_out"] == {"other_model": 30, "mixed_estimators": 1}
