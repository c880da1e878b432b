"""What `entrogate calibrate` says where there is nothing to calibrate on, or nothing to save."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrogate.errors import ConfigError
from entrogate.store import Store
from tests.integration.calibrating import POLICY, add, calibrate, filled
from tests.unit.calibrate.world import features, segment

LEARNED = ("--signals", "entropy_max,p_tool_call,learned")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(POLICY, encoding="utf-8")
    return tmp_path


async def ten(store: Store) -> None:
    for number in range(10):
        await add(store, f"t{number}", features(segment=segment(0.1 * number)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "nope"), "nothing matches --model nope; there are: almanac;"),
        (("--estimator", "exact"), "nothing matches --estimator exact; there are: topk;"),
        (
            ("--model", "nope", "--weights", "w"),
            "nothing matches --model nope --weights w; there are: model almanac, weights base",
        ),
        (("--tenant", "nobody"), "no trajectory with a tool call matches --tenant;"),
        (("--since", "2999-01-01"), "no trajectory with a tool call matches --since;"),
    ],
)
def test_a_filter_that_matches_nothing_is_named(
    folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = calibrate(folder, filled(folder, ten), *arguments)

    assert done.exit_code == 3
    assert said in done.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("{lookup: }", "'mine' names none of the tools called (search): give one that does with"),
        ("{search: {side_effects: true}}", "'mine' gates none of the tools called (search)"),
    ],
)
def test_a_base_policy_without_the_tools_is_named(folder: Path, tools: str, said: str) -> None:
    text = POLICY.replace("{search: , mail: {side_effects: true}}", tools)
    (folder / "mine.yaml").write_text(text, encoding="utf-8")

    done = calibrate(folder, filled(folder, ten))

    assert done.exit_code == 3
    assert said in done.stderr.splitlines()[0]


def test_an_empty_store_is_told_apart(folder: Path) -> None:
    async def nothing(_store: Store) -> None: ...

    done = calibrate(folder, filled(folder, nothing))

    assert "no trajectory with a tool call is stored;" in done.stderr.splitlines()[0]


def test_where_no_shadow_is_right_no_number_of_trajectories_is_named(folder: Path) -> None:
    async def work(store: Store) -> None:
        for number in range(40):
            seen = features(segment=segment(0.1 * number))
            await add(store, f"t{number}", seen, right_alone=False)

    done = calibrate(folder, filled(folder, work), *LEARNED)

    assert done.exit_code == 3
    assert "no shadow is right: nothing to save" in done.output
    assert "more" not in done.stderr


def test_a_signal_that_could_not_be_tried_is_named(folder: Path) -> None:
    async def work(store: Store) -> None:
        for number in range(40):
            await add(store, f"t{number}", features(segment=segment(0.1 * number)))

    done = calibrate(folder, filled(folder, work), *LEARNED)

    assert "learned: not fitted; it needs right and wrong shadows" in done.output


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_a_file_is_not_overwritten_unasked(folder: Path, option: str) -> None:
    url, mine = filled(folder, ten), folder / "mine.yaml"

    with pytest.raises(ConfigError, match=r"mine\.yaml exists already: .* --overwrite"):
        calibrate(folder, url, option, str(mine))

    assert mine.read_text(encoding="utf-8") == POLICY
    assert calibrate(folder, url, option, str(mine), "--overwrite").exit_code == 3


def test_without_scikit_learn_the_way_on_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrogate.calibrate.cli.find_spec", lambda _: None)
    url = filled(folder, ten)

    with pytest.raises(ConfigError, match=r"needs scikit-learn: pip .*: --signals all,-learned"):
        calibrate(folder, url, "--signals", "all")
    assert calibrate(folder, url, "--signals", "all,-learned").exit_code == 3
