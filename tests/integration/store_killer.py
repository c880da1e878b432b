"""Commit turns in child processes and kill each at a random moment; print what was acknowledged.

Run as a script: ``store_killer.py URL DURABILITY ROUNDS SEED``. It forks, so that a round costs
milliseconds and not an interpreter's start; it has no threads of its own.
"""

import asyncio
import os
import random
import select
import signal
import sys
import time
from dataclasses import replace

from entrogate.settings import StoreSettings
from entrogate.store import Store
from tests.unit.store.made import allowed_call, sequence, turn

AGENTS = 8


async def agent(store: Store, name: str, acks: int) -> None:
    head, last = None, None
    for _ in range(1000):
        turn_id = f"{name}-{0 if head is None else head.turn_index + 1}"
        # Ids that no other child has used: the counters start again in every fork.
        calls = tuple(replace(call, call_id=f"{turn_id}-call") for call in allowed_call())
        last = turn(name, turn_id=turn_id, parent=last, head=head, calls=calls, length=40)
        (head,) = await store.commit_turns([last])
        os.write(acks, f"{turn_id} {len(sequence(last))}\n".encode())


async def commit_forever(settings: StoreSettings, number: int, acks: int) -> None:
    store = Store.open(settings)
    await store.start()
    await asyncio.gather(*(agent(store, f"run{number}-{n}", acks) for n in range(AGENTS)))


def kill_one(settings: StoreSettings, number: int, patience_seconds: float) -> bytes:
    """Start a child, kill it some time after its first acknowledgement, return what it printed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        asyncio.run(commit_forever(settings, number, writing))
        os._exit(0)
    os.close(writing)
    select.select([reading], [], [], 60)
    time.sleep(patience_seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()


def main(url: str, durability: str, rounds: str, seed: str) -> None:
    settings = StoreSettings.model_validate({"url": url, "durability": durability})
    rng = random.Random(int(seed))
    for number in range(int(rounds)):
        sys.stdout.buffer.write(kill_one(settings, number, rng.uniform(0, 0.15)))
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
