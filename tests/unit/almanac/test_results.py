"""The figures of an experiment, against values worked out by hand and by brute force."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")

from entrogate_lab.almanac.evidence import Calls, LabelledCall, evidence
from entrogate_lab.almanac.results import Cell, Rounds, summarise


def cell(calls: list[int], f1: list[float]) -> Cell:
    return Cell(
        accuracy=np.array([value == 1 for value in f1], dtype=np.float64),
        f1=np.array(f1),
        calls_per_task=np.array(calls, dtype=np.float64),
        oracle_calls=np.ones(len(calls)),
    )


@pytest.fixture
def rounds() -> Rounds:
    by_method = {
        "base": ([4, 2], [1.0, 0.0]),
        "outcome": ([2, 2], [1.0, 0.0]),
        "otc": ([1, 1], [1.0, 0.5]),
        "sparse": ([0, 1], [1.0, 0.0]),
        "dense": ([3, 3], [1.0, 0.5]),
    }
    found: Rounds = {}
    for method, (calls, f1) in by_method.items():
        number = 0 if method == "base" else 1
        for gate in ("", "+gate"):
            seeds = {seed: cell(calls, f1) for seed in (0, 1)}
            found[number, method + gate] = seeds
    return found


def test_headlines_are_against_the_mean_of_the_baselines(rounds: Rounds) -> None:
    found = summarise(rounds)["headlines"]
    # Calls: base 3, outcome 2, otc 1, so 2 on average; sparse 0.5. F1: 0.5, 0.5, 0.75; dense 0.75.
    assert found["sparse_call_reduction"] == 0.75
    assert found["dense_gain"] == pytest.approx(0.75 / ((0.5 + 0.5 + 0.75) / 3) - 1, abs=1e-4)
    # The fixture's gate changes nothing; the fewest calls that suffice are 1 of 2.
    assert found["sparse_call_reduction_gated"] == 0.75
    assert found["call_reduction_at_oracle"] == 0.5
    low, high = found["sparse_call_reduction_ci"]
    # A resample draws one of the two tasks twice, or both.
    assert low == pytest.approx(1 - 1 / ((2 + 2 + 1) / 3))
    assert high == 1.0


def test_figures_of_a_method(rounds: Rounds) -> None:
    found = summarise(rounds)
    sparse = found["methods"]["sparse"]
    assert sparse["calls_per_task"] == 0.5
    assert sparse["accuracy"] == 0.5
    assert sparse["ci"]["accuracy"] == [0.0, 1.0]
    assert sparse["without_calls"] == {"share": 0.5, "accuracy": 1.0}
    assert found["methods"]["base"]["without_calls"] == {"share": 0.0, "accuracy": None}
    assert [row["method"] for row in found["by_round"]] == [
        "base", "dense", "otc", "outcome", "sparse",
    ]  # fmt: skip
    assert found["seeds"] == [0, 1]
    # Task by task: calls 0 and 1 against 2 and 2, the same answers.
    against = found["against_outcome"]["sparse"]
    assert (against["calls_per_task"], against["calls_per_task_ci"]) == (-1.5, [-2.0, -1.0])
    assert (against["accuracy"], against["accuracy_ci"]) == (0.0, [0.0, 0.0])
    assert json.loads(json.dumps(found)) == found


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    calls = [
        LabelledCall(
            trajectory=f"t{number // 3}",
            domain=("facts", "sums")[number % 2],
            delta=float(np.round(rng.normal(), 1)),
            reduced=bool(rng.random() < 0.5),
            needed=bool(rng.random() < 0.4),
            solved=bool(rng.random() < 0.6),
        )
        for number in range(60)
    ]
    found = evidence(Calls(calls, Counter({"no_next": 2})))
    good = [c.delta for c in calls if c.needed]
    bad = [c.delta for c in calls if not c.needed]
    order = [1.0 if g < b else 0.5 if g == b else 0.0 for g, b in itertools.product(good, bad)]
    needed = found["all"]["needed"]
    assert needed["auc"] == pytest.approx(np.mean(order), abs=1e-3)
    assert needed["auc_ci"][0] <= needed["auc"] <= needed["auc_ci"][1]
    assert needed["reduced_and_good"] == sum(c.reduced and c.needed for c in calls)
    assert found["facts"]["calls"] + found["sums"]["calls"] == 60
    assert found["unlabelled"] == {"no_next": 2}
    by_nats = {row["nats"]: row for row in found["all"]["at_least"]}
    assert by_nats[0.0]["of_needed"] == pytest.approx(np.mean(np.array(good) < 0), abs=1e-3)
    assert by_nats[0.2]["of_needless"] == pytest.approx(np.mean(np.array(bad) <= -0.2), abs=1e-3)


def test_the_page_keeps_what_stands_around_its_marks(rounds: Rounds, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from entrogate_lab.almanac.results_page import BEGIN, END, write

    found = summarise(rounds)
    for row in found["by_round"]:
        row["entropy"] = 0.5
    call = LabelledCall(
        trajectory="t", domain="facts", delta=-1.0, reduced=True, needed=True, solved=True
    )
    other = LabelledCall(
        trajectory="u", domain="facts", delta=1.0, reduced=False, needed=False, solved=False
    )
    found["entropy_change"] = evidence(Calls([call, other], Counter()))
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    write(found, tmp_path)
    text = page.read_text()
    assert text.startswith("# Results\n\nBefore.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert "| sparse | 50.0% [0.0%, 100.0%] |" in text
    assert json.loads((tmp_path / "results.json").read_text())["methods"]
    first = (tmp_path / "images" / "results-methods.svg").read_bytes()
    write(found, tmp_path)
    assert (tmp_path / "images" / "results-methods.svg").read_bytes() == first
    assert page.read_text() == text
