"""The simulation of the fuse, small."""

import json
from pathlib import Path

from click.testing import CliRunner

from entrogate_lab.bench.cli import bench


def test_it_tells_false_alarms_and_delays(tmp_path: Path) -> None:
    file = tmp_path / "fuse.json"
    asked = ["fuse", "--streams", "40", "--length", "1001", "--json", str(file)]
    done = CliRunner().invoke(bench, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert [each["rates"] for each in found["false_alarms"]] == [
        "at the limit",
        "below it",
        "coming and going",
    ]
    assert all(each["alarms"] <= 8 for each in found["false_alarms"])
    soon = found["delays"][0]
    assert 5 < soon["median"] < soon["nine_tenths"] < 400
    assert "not found in 0 streams" in done.output


def test_levels_outside_the_unit_interval_are_refused() -> None:
    for option in ("--delta", "--max-loss"):
        for value in ("0", "1", "2", "half"):
            done = CliRunner().invoke(bench, ["fuse", option, value])
            assert done.exit_code == 2
            assert option in done.output
