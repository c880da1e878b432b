"""What the report shows of the recorded trajectories, read through the gateway's own API."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from entrogate.errors import UpstreamProtocol, UpstreamUnavailable

_AT_ONCE = 8
_Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTurn:
    """One turn of the shown trajectory; positions count the sampled tokens of the turn."""

    entropy_lower: tuple[float | None, ...]
    entropy_upper: tuple[float | None, ...]
    reasoning: tuple[tuple[int, int], ...]
    text: str
    calls: tuple[str, ...]
    results: tuple[str, ...]  # that this turn received


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trajectory to look at."""

    trajectory_id: str
    question: str
    gold: str
    answer: str | None
    estimator: str
    turns: tuple[TraceTurn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The entropy change of one call group: the midpoint of ΔH in nats, and how the task ended."""

    delta: float
    reduced: bool | None
    correct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibits:
    """``unlabelled`` counts the call groups without ΔH, by the reason."""

    trace: Trace | None
    changes: tuple[Change, ...]
    unlabelled: dict[str, int]


async def collect(base_url: str, records: Sequence[_Json], *, api_key: str | None) -> Exhibits:
    """Fetch the trajectories of ``records`` (those of mode `observe`) from ``base_url`` (no /v1).

    Raises UpstreamUnavailable or UpstreamProtocol.
    """
    wanted = [record for record in records if record["trajectory_id"]]
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limit = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(
        base_url=base_url, headers=headers, trust_env=False, timeout=60
    ) as client:

        async def fetch(trajectory_id: str, tokens: bool = False) -> _Json:
            async with limit:
                return await _get(client, trajectory_id, tokens)

        details = await asyncio.gather(*(fetch(record["trajectory_id"]) for record in wanted))
        changes, unlabelled = changes_of(wanted, details)
        chosen = choose(wanted, details)
        trace = None
        if chosen is not None:
            trace = trace_of(chosen, await fetch(chosen["trajectory_id"], tokens=True))
    return Exhibits(trace=trace, changes=changes, unlabelled=unlabelled)


async def _get(client: httpx.AsyncClient, trajectory_id: str, tokens: bool) -> _Json:
    path = f"/v1/trajectories/{trajectory_id}"
    try:
        response = await client.get(path, params={"tokens": str(tokens).lower()})
    except httpx.HTTPError as error:
        raise UpstreamUnavailable(f"no answer from {client.base_url}{path}: {error}") from error
    if response.status_code != 200:
        raise UpstreamProtocol(f"{client.base_url}{path} answered {response.status_code}")
    return response.json()


def changes_of(
    records: Sequence[_Json], details: Sequence[_Json]
) -> tuple[tuple[Change, ...], dict[str, int]]:
    """Every known ΔH with the outcome of its task, and how many are unknown for which reason."""
    changes: list[Change] = []
    unlabelled: dict[str, int] = {}
    for record, detail in zip(records, details, strict=True):
        for turn in detail["turns"]:
            change = turn["change"]
            if change is None:
                continue
            reason, delta = change["null_reason"], change["delta"]
            if delta is None or reason is not None:
                unlabelled[str(reason)] = unlabelled.get(str(reason), 0) + 1
            if delta is not None:
                changes.append(
                    Change(
                        delta=(delta["lower"] + delta["upper"]) / 2,
                        reduced=change["reduced"],
                        correct=record["correct"],
                    )
                )
    return tuple(changes), unlabelled


def choose(records: Sequence[_Json], details: Sequence[_Json]) -> _Json | None:
    """The first task that shows most: solved, 2 to 4 calls, at least one needed and one not."""

    def score(pair: tuple[_Json, _Json]) -> int:
        record, detail = pair
        needless = sum(call["needless"] for call in record["calls"])
        return (
            4 * bool(detail["complete"])
            + 2 * (2 <= len(record["calls"]) <= 4)
            + (0 < needless < len(record["calls"]))
            + bool(record["correct"])
        )

    pairs = [pair for pair in zip(records, details, strict=True) if pair[0]["calls"]]
    return max(pairs, key=score)[0] if pairs else None


def trace_of(record: _Json, detail: _Json) -> Trace:
    """The trajectory of ``record`` as the report shows it; ``detail`` has the token arrays."""
    turns = detail["turns"]
    return Trace(
        trajectory_id=detail["id"],
        question=record["question"],
        gold=record["gold"],
        answer=record["answer"],
        estimator=str(turns[0]["estimator"]) if turns else "unknown",
        turns=tuple(_turn(turn) for turn in turns),
    )


def _turn(turn: _Json) -> TraceTurn:
    message: _Json = turn["response"] or {}
    tokens: _Json = turn["tokens"]
    said = str(message.get("reasoning") or message.get("reasoning_content") or "")
    content = str(message.get("content") or "")
    return TraceTurn(
        entropy_lower=tuple(tokens["entropy_lower"] or ()),
        entropy_upper=tuple(tokens["entropy_upper"] or ()),
        reasoning=tuple(
            (span["start"], span["stop"]) for span in turn["spans"] if span["kind"] == "reasoning"
        ),
        text=" → ".join(part.strip() for part in (said, content) if part.strip()),
        calls=tuple(f"{call['name']} {call['arguments']}" for call in turn["calls"]),
        results=tuple(str(result["content"]) for result in turn["results"]),
    )
