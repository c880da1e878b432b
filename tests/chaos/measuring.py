"""What a fault costs: it is done in the middle of a load, and the load goes on.

A request is *acknowledged* when its client has the last byte. It is *lost* when it was acknowledged
and is not in the store afterwards. *Recovered* is the time from the fault until every client has an
answer to a request that it sent later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.load import Load, Outcome
from tests.chaos.stack import Gateway, Gateways, stored_responses
from tests.postgres import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a fault cost."""

    fault: str
    in_flight: int  # requests at the moment of the fault
    broken: int  # answers that ended early
    refused: int  # requests that got an error or no connection; they were sent again
    acknowledged: int  # in the whole run
    lost: int
    recovered_seconds: float
    statuses: tuple[int | None, ...]  # of the refused ones
    stray: int  # conversations that fell apart
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Setup:
    """What the faults are done to."""

    vllm: str  # URL of a vLLM that serves the bundled model
    postgres: Server
    gateways: Gateways
    clients: int = 8
    seconds: float = 5.0  # how long a fault lasts that can be long or short
    notes: list[str] = field(default_factory=list[str])


Fault = Callable[[], Awaitable[None]]


Scenario = Callable[[Setup], Coroutine[Any, Any, Sequence[Result]]]


async def measure(
    name: str,
    load: Load,
    fault: Fault,
    *,
    store_url: str,
    gateways: Sequence[Gateway],
    note: Callable[[], str] = str,
) -> Result:
    """Do the fault in the middle of the load; the load goes on for a while."""
    await load.until_answered(0.0)
    before = len(load.requests)
    moment = time.monotonic()
    in_flight = len(load.sent)
    await fault()
    recovered = await load.until_answered(moment)
    failed = [each for each in load.requests[before:] if each.outcome is not Outcome.ANSWERED]
    for gateway in gateways:
        await gateway.drained()
    acknowledged = {each.response_id for each in load.requests if each.response_id}
    stored = await asyncio.to_thread(stored_responses, store_url)
    refused = [each for each in failed if each.outcome is Outcome.REFUSED]
    return Result(
        fault=name,
        in_flight=in_flight,
        broken=len(failed) - len(refused),
        refused=len(refused),
        acknowledged=len(acknowledged),
        lost=len(acknowledged - stored),
        recovered_seconds=round(recovered, 1),
        statuses=tuple(sorted({each.status for each in refused}, key=str)),
        stray=load.stray,
        note=note(),
    )


@asynccontextmanager
async def replicas(
    setup: Setup, *, patience: float = 10.0
) -> AsyncIterator[tuple[str, list[Gateway]]]:
    """Two gateways on a new Postgres database: its URL, and them."""
    url = await asyncio.to_thread(setup.postgres.create_database)
    settings = {
        "upstream__url": setup.vllm,
        "store__url": url,
        "store__patience_seconds": str(patience),
    }
    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(setup.gateways.running(**settings)) for _ in range(2)
        ]
        yield url, gateways
    await asyncio.to_thread(setup.postgres.drop_database, url)


def sqlite_url(setup: Setup, name: str) -> str:
    return f"sqlite:///{setup.gateways.folder / name}.db"
