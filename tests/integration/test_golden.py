"""What clients, the upstream and the store see is what was recorded (`golden/*.txt`).

A change that is meant: ``python -m tests.integration.golden record`` and read the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.golden.cases import GROUPS
from tests.integration.golden.recorder import difference, recording

_SHOWN = 150  # lines of a difference; the rest by recording anew


@pytest.mark.parametrize("group", GROUPS)
async def test_golden(group: str, tmp_path: Path) -> None:
    found = difference(group, await recording(group, tmp_path)).splitlines()
    assert not found, "\n".join(found[:_SHOWN])
