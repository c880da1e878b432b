"""``python -m tests.integration.golden record [GROUP …]``: write the recordings anew."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.integration.golden.cases import GROUPS
from tests.integration.golden.recorder import file_of, recording


async def _record(names: list[str]) -> None:
    for name in names or list(GROUPS):
        with tempfile.TemporaryDirectory() as folder:
            file_of(name).write_text(await recording(name, Path(folder)), encoding="utf-8")
        sys.stdout.write(f"{file_of(name).name}\n")


if __name__ == "__main__":
    if sys.argv[1:2] != ["record"] or not set(sys.argv[2:]) <= set(GROUPS):
        sys.exit(f"usage: python -m tests.integration.golden record [{' | '.join(GROUPS)}]")
    asyncio.run(_record(sys.argv[2:]))
