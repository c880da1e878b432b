"""A gateway under load for a long time: its memory, open files, sockets and tasks.

``python -m tests.chaos.soak --minutes 30``, in front of the scripted upstream: many more turns than
a real model could answer on a small machine, so that what leaks shows. Old trajectories are pruned
meanwhile. The gateway remembers fewer turns than by default, so that its cache is full early on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from entrogate_lab.bench.processes import child, free_port
from tests.chaos.stack import Gateway, Gateways
from tests.integration.harness import (
    CHAT,
    SURE,
    UNSURE,
    ask,
    calling,
    follow_up,
    message_of,
    policy_file,
)

SAMPLE_SECONDS = 10.0
PRUNE_SECONDS = 60.0
HEADS = "2000"


async def converse(http: httpx.AsyncClient, client: int, until: float) -> int:
    """Agents that finish, feed back, break off and ask for what they have no right to; turns."""
    turns = 0
    while time.monotonic() < until:
        name = f"Ada {client} {turns}"
        body = ask(
            calling(name, confidence=UNSURE),
            calling(name, confidence=SURE),
            {"reasoning": "Now it is clear to me", "content": "Berlin."},
        )
        first = await http.post(CHAT, json=body)
        body = follow_up(body, message_of(first), "lives in Berlin")
        async with http.stream("POST", CHAT, json={**body, "stream": True}) as answer:
            if turns % 7 == 0:
                await anext(answer.aiter_bytes())  # and goes away
            else:
                await answer.aread()
        feedback = {"response_id": first.json()["id"], "score": 1.0}
        assert (await http.post("/v1/feedback", json=feedback)).status_code == 200
        assert (await http.post(CHAT, json={"messages": 7})).status_code == 400
        assert (await http.get("/v1/trajectories?limit=5")).status_code == 200
        turns += 2
    return turns


async def sample(gateway: Gateway) -> dict[str, Any]:
    return {
        "resident_mib": round(gateway.resident_bytes() / 2**20, 1),
        "open_files": gateway.open_files(),
        "tasks": await gateway.metric("entrogate_tasks"),
        "turns": await gateway.metric("entrogate_turns_total"),
        "gaps": await gateway.metric("entrogate_capture_gaps_total"),
        "malformed": await gateway.metric("entrogate_capture_malformed_total"),
    }


async def prune(store_url: str, every_seconds: float) -> None:
    command = ("-m", "entrogate", "prune", "--older-than", "1m", "--store", store_url)
    while True:
        await asyncio.sleep(every_seconds)
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=-3)
        assert await process.wait() == 0


async def soak(
    folder: Path,
    store_url: str,
    *,
    minutes: float,
    clients: int,
    engine: bool = True,
    say: Any = print,
) -> list[dict[str, Any]]:
    """What was seen every ten seconds; the last one is taken after the load has ended.

    ``engine``: turns are captured exactly, by the upstream's engine side.
    """
    port = free_port()
    captures = f"ipc://{folder}/captures" if engine else "off"
    upstream = child(
        (
            "entrogate_lab.bench.upstream",
            *("--port", str(port), *(("--captures", captures) if engine else ())),
        ),
        url=f"http://127.0.0.1:{port}",
        ready="/health",
        log=folder / "upstream.log",
    )
    policy = policy_file(folder, defaults={"threshold": 1.5, "on_repeat": "replay"})
    with upstream:
        async with Gateways(folder).running(
            upstream__url=f"http://127.0.0.1:{port}",
            upstream__capture=captures,
            store__url=store_url,
            store__head_cache=HEADS,
            gate__policy=policy,
        ) as gateway:
            begun = time.monotonic()
            until = begun + minutes * 60
            samples: list[dict[str, Any]] = []
            pruning = asyncio.create_task(prune(store_url, min(PRUNE_SECONDS, minutes * 15)))
            # Shorter than the server's: a client without CPU must not meet a connection that ends.
            limits = httpx.Limits(keepalive_expiry=2.0)
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=limits) as http:
                agents = [asyncio.create_task(converse(http, n, until)) for n in range(clients)]
                while time.monotonic() < until:
                    await asyncio.sleep(min(SAMPLE_SECONDS, minutes * 6))
                    seen = {"minute": round((time.monotonic() - begun) / 60, 2)}
                    samples.append(seen | await sample(gateway))
                    say(json.dumps(samples[-1]), flush=True)
                    for agent in agents:
                        if agent.done():
                            agent.result()
                await asyncio.gather(*agents)
            pruning.cancel()
            await asyncio.gather(pruning, return_exceptions=True)
            await gateway.drained()
            await asyncio.sleep(1.0)
            samples.append({"minute": None} | await sample(gateway))
            return samples


def verdict(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean memory around minute 5 (or a sixth of the run) and in the last minute; the extremes."""
    under_load = samples[:-1]
    length = under_load[-1]["minute"]
    early = [s for s in under_load if length / 6 <= s["minute"] <= length / 6 + length / 30]
    late = [s for s in under_load if s["minute"] >= length - length / 30]
    mean = [sum(s["resident_mib"] for s in part) / len(part) for part in (early, late)]
    return {
        "minutes": length,
        "turns": under_load[-1]["turns"],
        "gaps": under_load[-1]["gaps"],
        "malformed": under_load[-1]["malformed"],
        "resident_mib_early": round(mean[0], 1),
        "resident_mib_late": round(mean[1], 1),
        "growth": round(mean[1] / mean[0] - 1, 4),
        "open_files": [min(s["open_files"] for s in early), max(s["open_files"] for s in late)],
        "tasks": [max(s["tasks"] for s in early), max(s["tasks"] for s in late)],
        "after": samples[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--store", help="default: an SQLite file in a temporary folder")
    parser.add_argument("--log-probs", action="store_true", help="capture by log-probs instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="entrogate-soak-") as name:
        url = options.store or f"sqlite:///{name}/store.db"
        samples = asyncio.run(
            soak(
                Path(name),
                url,
                minutes=options.minutes,
                clients=options.clients,
                engine=not options.log_probs,
            )
        )
    print(json.dumps(verdict(samples)))


if __name__ == "__main__":
    main()
