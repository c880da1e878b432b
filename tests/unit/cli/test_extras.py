"""The command that installs an extra fits the way that the gateway was installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrogate.extras import command_for, install_command


@pytest.mark.parametrize(
    ("extra", "from_index", "elsewhere", "in_clone"),
    [
        ("calibrate", "entrogate[calibrate]", ".[calibrate]", "[calibrate]"),
        ("entrogate-lab", "entrogate-lab", "./app/entrogate_lab", "/app/entrogate_lab"),
        (
            "entrogate-lab[experiment]",
            "entrogate-lab[experiment]",
            "./app/entrogate_lab[experiment]",
            "/app/entrogate_lab[experiment]",
        ),
    ],
)
def test_by_where_it_came_from(
    extra: str, from_index: str, elsewhere: str, in_clone: str, tmp_path: Path
) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").write_text("")
    assert command_for(extra, None) == f"pip install '{from_index}'"
    assert command_for(extra, clone.as_uri()) == f"pip install '{clone}{in_clone}'"
    for gone in ("", "file:///no/such/folder", "https://example.org/entrogate.whl"):
        assert command_for(extra, gone) == f"pip install '{elsewhere}' in a clone"


def test_of_this_install() -> None:
    assert "[calibrate]'" in install_command("calibrate")
