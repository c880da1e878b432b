"""Whatever JSON stands in whatever field of a request: never an answer with 5xx."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.doors import MESSAGES, RESPONSES, ask_messages, ask_responses
from tests.integration.harness import CHAT, TOOLS, Running, ask

EXAMPLES = 2_000 if os.environ.get("E2E_FULL") == "1" else 60
SAY = {"content": "Hello."}
CALL = {"id": "a", "type": "function", "function": {"name": "lookup", "arguments": '{"a":1}'}}
HISTORY = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "x"}]},
]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {
        **ask(SAY, metadata={"a": "b"}, vllm_xargs={"a": 1}, n=1, logit_bias={"1": 0}),
        "stop": ["x"],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 50,
        "chat_template_kwargs": {"a": 1},
        "seed": 1,
        "user": "u",
        "request_id": "r",
    },
    RESPONSES: ask_responses(
        SAY, reasoning={"effort": "low"}, text={"format": {"type": "text"}}, include=[], store=True
    ),
    MESSAGES: ask_messages(
        SAY, system=[{"type": "text", "text": "Be."}], tool_choice={"type": "auto"}, stream=False
    ),
    f"{MESSAGES}/count_tokens": ask_messages(SAY),
    "/v1/completions": {"model": "scripted", "prompt": [1, 2], "stream": False, "max_tokens": 3},
    "/v1/feedback": {"trajectory_id": "x", "answer": "a", "gold": ["a"], "comment": "c"},
}
BODIES[CHAT]["messages"] += HISTORY
BODIES[MESSAGES]["messages"] += [
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "a", "name": "lookup", "input": {"a": 1}}],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]},
]
BODIES[RESPONSES]["input"] = [
    {"role": "user", "content": [{"type": "input_text", "text": BODIES[RESPONSES]["input"]}]},
    {"type": "function_call", "call_id": "a", "name": "lookup", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "a", "output": "x"},
]
DEEP: Any = json.loads('{"a":' * 300 + "1" + "}" * 300)
VALUES = st.one_of(
    st.sampled_from([None, "x", "", [], [1], {}, {"a": 1}, [[]], [None], [{}], 0, -1, 1.5, True]),
    st.sampled_from([10**9, 10**30, -(2**63) - 1, 1e300, float("nan"), float("inf"), 1e9, "1e9"]),
    st.sampled_from(["\ud800", {"\ud800": 1}, "\x00", "true", "entrogate", DEEP, [DEEP]]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=8,
    ),
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in ``value``, itself included."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(found for key, each in inner for found in paths_in(each, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """``value`` with ``new`` at ``path``."""
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("door", BODIES)
async def test_any_json_in_any_field(gateway: Running, door: str) -> None:
    body = BODIES[door]
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
    )
    @given(where=st.sampled_from(paths_in(body)), value=VALUES)
    def send(where: tuple[Any, ...], value: Any) -> None:
        raw = json.dumps(changed(body, where, value)).encode()
        sent = gateway.client.post(door, content=raw, headers={"content-type": "application/json"})
        answer = asyncio.run_coroutine_threadsafe(sent, loop).result(30)
        assert answer.status_code < 500, (where, value, answer.text[:300])
        assert b"internal error" not in answer.content

    await asyncio.to_thread(send)
    assert (await gateway.client.get("/health")).status_code == 200


@pytest.mark.parametrize("extra", [{"seed": 10**25}, {}])
async def test_big_integers_arrive_as_they_were_sent(
    gateway: Running, upstream: Any, extra: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": {"id": {"const": 12345678901234567890123}}}
    tool = {"type": "function", "function": {**TOOLS[0]["function"], "parameters": schema}}
    response = await gateway.chat(
        {**ask(SAY), "tools": [tool], **({} if "tools" in extra else extra)}
    )
    assert response.status_code == 200, response.text
    sent = upstream.stats.as_dict()["bodies"][-1]
    assert sent["tools"] == [tool]
    assert sent.get("seed") == extra.get("seed")


@pytest.mark.both_stores
async def test_what_was_recorded_of_big_integers_can_be_read(gateway: Running) -> None:
    """Only in fields that the gateway keeps as they are; JSON has no largest integer."""
    big = 2**70
    message = {"role": "user", "content": ask(SAY)["messages"][0]["content"], "x": big}
    sent = ask(SAY) | {"messages": [message], "seed": big}
    response = await gateway.chat(sent)
    found = await gateway.trajectory(response)
    (turn,) = found["turns"]
    assert turn["messages"][0]["x"] == big
    assert turn["params"]["seed"] == big
    for page in ("trajectories", f"trajectories/{found['id']}"):
        assert (await gateway.client.get(f"/ui/{page}")).status_code == 200


@pytest.mark.parametrize("door", ["/v1/feedback", "/admin/weights"])
async def test_halves_of_surrogate_pairs_are_refused(gateway: Running, door: str) -> None:
    fields = {"/v1/feedback": "comment", "/admin/weights": "name"}
    target = {"/v1/feedback": {"trajectory_id": "t", "score": 1}, "/admin/weights": {"folder": "f"}}
    for text in ("\ud800", "a\udfffb"):
        raw = json.dumps({**target[door], fields[door]: text}).encode()
        headers = {"content-type": "application/json"}
        answer = await gateway.client.post(door, content=raw, headers=headers)
        assert answer.status_code in (400, 422), answer.text
        assert "surrogate" in answer.json()["error"]["message"]
