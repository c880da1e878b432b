"""What an export costs: time, memory and disk, over a store of synthetic trajectories."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrogate.errors import EntrogateError
from entrogate.export.dataset import Dataset
from entrogate.export.known import Known
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate_lab.bench.synthetic import fill

_MIB = 2**20
# The kernel's own count since the process began; that of wait4 includes the process it came from.
_MEASURED = """
import re, sys, time
from pathlib import Path
from entrogate.cli import run
code = run(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(peak[1], time.process_time())
sys.exit(code)
"""


def measure(trajectories: int, *, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Fill a store, export it in a process of its own, and again: nothing new.

    Peak memory is the largest resident set of that process; ``imports_mib`` is that of one which
    only opens store and target.
    """
    with tempfile.TemporaryDirectory(prefix="entrogate-bench-") as folder:
        database, data = Path(folder) / "store.db", Path(folder) / "data"
        url = f"sqlite:///{database}"
        began = time.perf_counter()
        asyncio.run(_filled(url, trajectories, seed))
        say(f"stored {trajectories} trajectories in {time.perf_counter() - began:.0f} s")
        time.sleep(1.1)  # the last of them settles
        command = ["export", "--store", url, "--to", str(data), "--settle", "1", "--patience", "1"]
        imports = _run([*command, "--check"])
        first, again = _run(command), _run(command)
        dataset = Dataset.reading(str(data))
        rows = sum(entry.rows for entry in dataset.entries)
        exported = len(Known(dataset))
        if exported != trajectories:
            raise EntrogateError(f"{exported} of {trajectories} trajectories were exported")
        return {
            "trajectories": trajectories,
            "rows": rows,
            "parts": len(dataset.entries),
            "store_mib": database.stat().st_size / _MIB,
            "dataset_mib": sum(f.stat().st_size for f in data.rglob("*") if f.is_file()) / _MIB,
            "seconds": first.seconds,
            "cpu_seconds": first.cpu_seconds,
            "rows_per_second": rows / first.seconds,
            "peak_mib": first.peak_mib,
            "imports_mib": imports.peak_mib,
            "nothing_new_seconds": again.seconds,
            "nothing_new_peak_mib": again.peak_mib,
        }


def table(result: dict[str, Any]) -> str:
    """The figures as lines of text."""
    return (
        f"{result['rows']} rows in {result['parts']} parts: {result['seconds']:.1f} s "
        f"({result['cpu_seconds']:.1f} s of CPU), {result['rows_per_second']:.0f} rows/s\n"
        f"peak memory {result['peak_mib']:.0f} MiB, of which {result['imports_mib']:.0f} MiB "
        "without any data\n"
        f"store {result['store_mib']:.0f} MiB, dataset {result['dataset_mib']:.0f} MiB\n"
        f"again, with nothing new: {result['nothing_new_seconds']:.1f} s, peak "
        f"{result['nothing_new_peak_mib']:.0f} MiB"
    )


async def _filled(url: str, trajectories: int, seed: int) -> None:
    store = Store.open(StoreSettings(url=url))
    await store.start()
    try:
        await fill(store, trajectories, seed=seed)
    finally:
        await store.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """What a process took; ``peak_mib`` is its largest resident set."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def _run(arguments: list[str]) -> _Cost:
    """The cost of `entrogate ARGUMENTS`; EntrogateError when it fails."""
    command = [sys.executable, "-c", _MEASURED, *arguments]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as measured:
        began = time.perf_counter()
        code = subprocess.run(command, stdout=measured, stderr=said, check=False).returncode
        seconds = time.perf_counter() - began
        if code:
            said.seek(0)
            raise EntrogateError(f"the export failed: {said.read().decode(errors='replace')}")
        measured.seek(0)
        kibibytes, cpu_seconds = measured.read().split()
    return _Cost(seconds=seconds, cpu_seconds=float(cpu_seconds), peak_mib=int(kibibytes) / 1024)
