"""Every fault of tests/chaos, for a few seconds: nothing that was acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import COMPILER, SCENARIOS
from tests.chaos.measuring import Setup
from tests.chaos.stack import Gateways
from tests.e2e.conftest import FULL
from tests.postgres import Server

LASTS_SECONDS = 3.0
CLIENTS = 4


@pytest.mark.parametrize("name", SCENARIOS)
async def test_nothing_acknowledged_is_lost(
    name: str, vllm: str, postgres_server: Server, tmp_path: Path
) -> None:
    if name.startswith("postgres") and postgres_server.cluster is None:
        pytest.skip("the server named in ENTROGATE_TEST_POSTGRES is not ours to stop")
    if name == "managed_vllm" and not FULL:
        pytest.skip(
            "starts vLLM twice: E2E_FULL=1 (tests/unit/upstream/test_managed.py has the rest)"
        )
    if name == "clock_jumps" and COMPILER is None:
        pytest.skip("install a C compiler")
    setup = Setup(
        vllm=vllm,
        postgres=postgres_server,
        gateways=Gateways(tmp_path),
        clients=CLIENTS,
        seconds=LASTS_SECONDS,
    )
    for result in await SCENARIOS[name](setup):
        assert result.acknowledged >= 2 * CLIENTS
        assert result.lost == 0, result
        assert result.stray == 0, result
        # What is refused is told so: the gateway is gone, or vLLM behind it is.
        assert set(result.statuses) <= {None, 502, 503, 504}, result
        if name not in ("managed_vllm", "replica_killed"):
            assert result.broken == 0, result
        if name.startswith(("postgres", "sqlite", "disk", "clients", "clock")):
            assert result.refused == 0, result
