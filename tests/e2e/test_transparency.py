"""Observing, the gateway answers as bare vLLM does, byte for byte but for ids and the time."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai

from tests.e2e.conftest import FULL, NAME, StartGateway, chat_body, tasks
from tests.e2e.same import assert_same_answers
from tests.integration.harness import CHAT, same_bytes

PROMPTS = 120 if FULL else 16


def test_observe_equals_bare_vllm(vllm: str, start: StartGateway) -> None:
    gateway = start()
    cases = [
        chat_body(task, tools=tools, stream=stream)
        for task, stream, tools in itertools.product(tasks(PROMPTS), (False, True), (True, False))
    ]
    with httpx.Client(timeout=300) as client, ThreadPoolExecutor(8) as pool:

        def answers(url: str) -> list[bytes]:
            def one(body: dict[str, Any]) -> bytes:
                response = client.post(url + CHAT, json=body)
                assert response.status_code == 200, response.text
                return same_bytes(response.content)

            return list(pool.map(one, cases))

        direct, ours = answers(vllm), answers(gateway.url)
    assert_same_answers(cases, direct, ours)
    called = sum(b'"tool_calls"' in answer for answer in direct)
    assert called > PROMPTS / 2, "most prompts must bring a tool call, or this proves little"


def test_openai_sdk(start: StartGateway) -> None:
    gateway = start()
    task = tasks(1)[0]
    body = chat_body(task)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        assert next(iter(client.models.list())).id == NAME  # adapters of other tests may follow
        raw = client.chat.completions.with_raw_response.create(**body)
        whole = raw.parse()
        trajectory_id = raw.headers["x-entrogate-trajectory-id"]
        assert whole.usage is not None
        stream = client.chat.completions.create(**body, stream=True)
        pieces = [chunk.choices[0].delta for chunk in stream if chunk.choices]
        text = "".join(piece.content or "" for piece in pieces)
        assert text.strip() == (whole.choices[0].message.content or "").strip()
        names = [c.function.name for p in pieces for c in p.tool_calls or () if c.function]
        called = whole.choices[0].message.tool_calls or []
        assert [n for n in names if n] == [c.function.name for c in called]
        feedback = {"trajectory_id": trajectory_id, "score": 1.0}
        client.post("/feedback", body=feedback, cast_to=object)
        with httpx.Client(base_url=gateway.url) as plain:
            found = plain.get(f"/v1/trajectories/{trajectory_id}").json()
        assert len(found["feedback"]) == 1
        assert len(found["turns"]) == 1
