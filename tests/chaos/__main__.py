"""``python -m tests.chaos``: every fault at full size, as the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests import postgres
from tests.chaos.faults import SCENARIOS
from tests.chaos.measuring import Result, Setup
from tests.chaos.stack import Gateways
from tests.e2e.conftest import serve_vllm

HEAD = (
    "| fault | in flight | broken off | refused | acknowledged | lost | recovered after | |\n"
    "|---|---|---|---|---|---|---|---|"
)


def row(result: Result) -> str:
    cells = (
        result.fault,
        result.in_flight,
        result.broken,
        result.refused,
        result.acknowledged,
        result.lost,
        f"{result.recovered_seconds:.1f} s",
        result.note,
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long faults last")
    options = parser.parse_args()
    names: Sequence[str] = options.names or tuple(SCENARIOS)
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory(prefix="entrogate-chaos-") as name,
        postgres.server() as server,
        serve_vllm(f"ipc://{name}/captures", Path(name) / "vllm.log") as vllm,
    ):
        assert server is not None, postgres.MISSING
        for scenario in names:
            folder = Path(name) / scenario
            folder.mkdir()
            setup = Setup(
                vllm=vllm,
                postgres=server,
                gateways=Gateways(folder),
                clients=options.clients,
                seconds=options.seconds,
            )
            for result in asyncio.run(SCENARIOS[scenario](setup)):
                results.append(result)
                print(row(result), file=sys.stderr, flush=True)
    print(HEAD)
    for result in results:
        print(row(result))
    return 1 if any(result.lost or result.stray for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
