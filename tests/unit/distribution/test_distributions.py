"""What is shipped: two wheels, and tested versions that fit the bounds."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
LAB = ROOT / "app" / "entrogate_lab"
# The extras that constraints/gateway.txt covers beside the gateway itself.
LIGHT = ("postgres", "export", "otel")


def wheel(project: Path, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=project,
        check=True,
        capture_output=True,
    )
    (made,) = folder.glob("*.whl")
    return made


def test_the_gateway_is_small_and_without_the_lab(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    made = wheel(ROOT, tmp_path)
    names = zipfile.ZipFile(made).namelist()
    assert made.stat().st_size < 1_000_000
    assert {name.split("/")[0] for name in names} == {"entrogate", made.name[:15] + ".dist-info"}
    assert "entrogate/policies/balanced.yaml" in names
    assert not any(name.endswith(".safetensors") for name in names)


def test_the_lab_has_its_model(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    names = zipfile.ZipFile(wheel(LAB, tmp_path)).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"entrogate_lab"}
    assert "entrogate_lab/almanac/model/model.safetensors" in names
    assert "entrogate_lab/bench/upstream.py" in names
    assert "entrogate_lab/pyproject.toml" not in names


def test_constraints_fit_the_bounds() -> None:
    """`scripts/constraints --check` asks the index as well; this needs no network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in LIGHT:
        wanted += project["optional-dependencies"][extra]
    lines = (ROOT / "constraints" / "gateway.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in pinned}
    assert len(versions) == len(pinned)
    for line in wanted:
        requirement = Requirement(line)
        pin = versions[canonicalize_name(requirement.name)]
        assert pin.startswith("==")
        assert requirement.specifier.contains(pin.removeprefix("==")), line
