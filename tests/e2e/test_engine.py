"""The plugin inside a real vLLM: captures that match, calls that are never sampled, forced ones."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import httpx
import pytest

from tests.e2e.conftest import FULL, StartGateway, chat_body, tasks
from tests.e2e.test_gate import ALWAYS, trajectory
from tests.integration.harness import CHAT

STREAMS = 200 if FULL else 48
STREAM_TOKENS = 60
TASKS = 10
ANSWERS = "vllm:request_success_total"


@pytest.fixture
def estimator() -> str:
    return "exact"


def test_ready_says_what_is_active(start: StartGateway) -> None:
    gateway = start()
    upstream = httpx.get(f"{gateway.url}/ready").json()["upstream"]
    assert upstream["estimator"] == "exact"
    assert upstream["gate_points"] == ["engine", "gateway"]


def test_a_channel_that_nobody_serves_leaves_the_log_probs(start: StartGateway) -> None:
    secret = {"upstream__capture_secret": "nobody shares this secret"}
    gateway = start(upstream__capture="tcp://127.0.0.1:9", **secret)
    upstream = httpx.get(f"{gateway.url}/ready", timeout=30).json()["upstream"]
    assert upstream["estimator"] == "topk"
    with gateway.client() as client:
        response = client.post(CHAT, json=chat_body(tasks(1)[0]))
    name = response.headers["x-entrogate-trajectory-id"]
    assert trajectory(gateway, name)["turns"][0]["capture_gap"] is None


def test_suppressed_calls_cost_nothing(vllm: str, start: StartGateway) -> None:
    gateway = start(ALWAYS)
    suppressed = 0
    with gateway.client() as client:
        before = counted(vllm, ANSWERS)
        for task in tasks(TASKS):
            body = chat_body(task, return_token_ids=True)
            answer = client.post(CHAT, json=body)
            assert answer.status_code == 200, answer.text
            (turn,) = trajectory(gateway, answer.headers["x-entrogate-trajectory-id"])["turns"]
            assert turn["wasted_tokens"] == 0
            assert turn["capture_gap"] is None
            assert turn["tokens"]["token_ids"] == answer.json()["choices"][0]["token_ids"]
            assert turn["tokens"]["prompt_token_ids"] == answer.json()["prompt_token_ids"]
            suppressed += bool(turn["calls"])
        assert counted(vllm, ANSWERS) - before == TASKS, "one request upstream for each turn"
    assert suppressed >= TASKS // 2


NAME = f"{'0' * 16}/1"
KILLERS: list[dict[str, Any]] = [
    {"entrogate": f"{NAME}/32", "entrogate_choice": "abc"},
    {"entrogate": "x/y/99999999"},
    {"entrogate": f"{NAME}/99999999"},
    {"entrogate": f"{NAME}/9999999"},  # admission does not know the vocabulary
    {"entrogate": f"{NAME}/32", "entrogate_gate": [3, 99999999, 6, 7, 0, 0.0, 0, 0, 0, 0.0, -1, 0]},
    {
        "entrogate": f"{NAME}/9999999",
        "entrogate_gate": [3, 9999999, 6, 7, 0, 0.0, 0, 0, 0, 0.0, -1, 0],
    },
    {"entrogate": f"{NAME}/32", "entrogate_gate": ["a"] * 10},
    {"entrogate": 1.5, "entrogate_gate": []},
]


def test_no_argument_ends_the_engine(vllm: str) -> None:
    """Sent to vLLM itself: at worst a request is refused, and the next one is answered."""
    completion = {"model": "almanac", "prompt": "a", "max_tokens": 3}
    for arguments in KILLERS:
        for path, body in ((CHAT, chat_body(tasks(1)[0])), ("/v1/completions", completion)):
            request = {**body, "max_tokens": 3, "vllm_xargs": arguments}
            answer = httpx.post(vllm + path, json=request, timeout=60)
            assert answer.status_code in {200, 400}, (arguments, answer.text)
    answer = httpx.post(f"{vllm}/v1/completions", json=completion, timeout=60)
    assert answer.status_code == 200, answer.text


def counted(vllm: str, metric: str) -> float:
    """By vLLM itself, over all labels."""
    text = httpx.get(f"{vllm}/metrics").text
    rows = [r for r in text.splitlines() if r.startswith(metric)]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


def test_an_uncertain_answer_becomes_a_call(vllm: str, start: StartGateway) -> None:
    """Where the model would answer, it calls instead; at any entropy, to have it happen here.

    A bias against the tool-call token has it answer. After a result nothing is forced.
    """
    force = {"force": {"tool": "lookup", "threshold": 0.0}, "tools": {}}
    gateway = start({**force, "signal": {"min_tokens": 1}}, gate__allow_mode_header="true")
    marker = {"prompt": "<tool_call>", "add_special_tokens": False}
    (call_id,) = httpx.post(f"{vllm}/tokenize", json=marker).json()["tokens"]
    forced = 0
    with gateway.client() as client:
        for task in [t for t in tasks(60) if t.domain == "facts" and len(t.hops) == 1][:TASKS]:
            body = chat_body(task, logit_bias={str(call_id): -20.0})
            answers: list[httpx.Response] = []
            for mode in ("observe", "enforce"):
                answers.append(client.post(CHAT, json=body, headers={"x-entrogate-mode": mode}))
                assert answers[-1].status_code == 200, answers[-1].text
            finishes = [answer.json()["choices"][0]["finish_reason"] for answer in answers]
            if finishes[0] != "stop":
                continue
            assert finishes[1] == "tool_calls"
            name = answers[1].headers["x-entrogate-trajectory-id"]
            (turn,) = trajectory(gateway, name)["turns"]
            (call,) = turn["calls"]
            assert call["decision"]["action"] == "force"
            assert call["decision"]["reason"] == "uncertain_answer"
            assert turn["altered"]
            forced += 1
            message = answers[1].json()["choices"][0]["message"]
            result = {
                "role": "tool",
                "tool_call_id": message["tool_calls"][0]["id"],
                "content": f"found: {task.gold}",
            }
            body["messages"] += [message, result]
            after = client.post(CHAT, json=body, headers={"x-entrogate-mode": "enforce"})
            assert after.json()["choices"][0]["finish_reason"] == "stop"
    assert forced >= TASKS // 2


def test_many_streams_with_aborts_and_choices(vllm: str, start: StartGateway) -> None:
    """Every capture is complete or marked, and none holds the tokens of another request."""
    gateway = start(gate__allow_mode_header="true")
    rng = random.Random(0)
    plans = [(index, rng.random() < 0.2, rng.choice((1, 1, 3))) for index in range(STREAMS)]

    async def run() -> list[tuple[str, dict[int, list[int]] | None]]:
        async with aiohttp.ClientSession() as session:
            return list(await asyncio.gather(*(one(session, *plan) for plan in plans)))

    async def one(
        session: aiohttp.ClientSession, index: int, aborts: bool, n: int
    ) -> tuple[str, dict[int, list[int]] | None]:
        task = held[index % len(held)]
        body = chat_body(task, temperature=1.0, n=n, max_tokens=STREAM_TOKENS)
        body |= {"ignore_eos": index % 4 != 0, "return_token_ids": True}
        body["stream"] = aborts
        async with session.post(gateway.url + CHAT, json=body) as response:
            assert response.status == 200
            name = response.headers["x-entrogate-trajectory-id"]
            if aborts:
                await response.content.readany()
                response.close()
                return name, None
            answer = await response.json()
            return name, {c["index"]: c["token_ids"] for c in answer["choices"]}

    held = tasks(32)
    answers = asyncio.run(run())
    complete = 0
    for name, choices in answers:
        found = trajectory(gateway, name)
        for turn in found.get("turns", ()):
            if choices is None:
                assert turn["capture_gap"] is not None or turn["finish_reason"] is not None
                continue
            assert turn["capture_gap"] is None
            assert turn["tokens"]["token_ids"] == choices[turn["choice_index"]]
            complete += 1
    assert complete == sum(len(choices) for _, choices in answers if choices is not None)
