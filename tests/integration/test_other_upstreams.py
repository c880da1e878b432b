"""Model servers that are no vLLM, or a vLLM with something missing: served with what they have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entrogate.upstream.capabilities import Way
from tests.integration.conftest import Start
from tests.integration.harness import CHAT, Running, error_of
from tests.integration.raw_upstream import (
    CHAT_BODY,
    MODELS,
    NOT_FOUND,
    Asked,
    http,
    json_answer,
    raw_upstream,
)

PLAIN = {"model": "raw", "messages": [{"role": "user", "content": "Hi"}]}
KNOWN = {"model", "messages", "max_tokens", "stream", "stream_options", "logprobs", "top_logprobs"}
Answer = Callable[[Asked], bytes]


def refused(field: str, status: int = 400) -> bytes:
    error = {"message": f"Unrecognized request argument supplied: {field}", "type": "invalid"}
    return json_answer({"error": error}, status=f"{status} Bad Request")


def chat_answer(*, known: set[str], status: int = 400, alternatives: int = 0) -> Answer:
    """Chat that refuses every field that it does not know."""

    def answer(asked: Asked) -> bytes:
        unknown = asked.json.keys() - known
        if unknown:
            return refused(min(unknown), status)
        if asked.json.get("stream"):
            head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "raw"}
            part = {"index": 0, "delta": {"role": "assistant", "content": "Hello."}}
            parts = [
                {**part, "finish_reason": None},
                {**part, "delta": {}, "finish_reason": "stop"},
            ]
            body = "".join(f"data: {json.dumps(head | {'choices': [p]})}\n\n" for p in parts)
            return http(f"{body}data: [DONE]\n\n".encode(), "content-type: text/event-stream")
        choice = dict(CHAT_BODY["choices"][0])
        if asked.json.get("logprobs") and alternatives:
            top = [{"token": t, "logprob": -1.0, "bytes": None} for t in "abcde"[:alternatives]]
            entry = {"token": "a", "logprob": -1.0, "bytes": None, "top_logprobs": top}
            choice["logprobs"] = {"content": [entry]}
        return json_answer(CHAT_BODY | {"choices": [choice]})

    return answer


async def served(gateway: Running) -> str | None:
    """Both forms of an answer come; the gap of the recorded turn."""
    streamed, body = await gateway.stream(PLAIN)
    assert streamed.status_code == 200
    assert b"Hello." in body
    assert b"error" not in body
    whole = await gateway.chat(PLAIN)
    assert whole.status_code == 200, whole.text
    assert whole.json()["choices"][0]["message"]["content"] == "Hello."
    (turn,) = (await gateway.trajectory(whole))["turns"]
    return turn["capture_gap"]


@pytest.mark.parametrize("status", [400, 422])
async def test_chat_alone_and_no_unknown_fields(start: Start, status: int) -> None:
    answer = chat_answer(known=KNOWN - {"top_logprobs", "logprobs"}, status=status)
    async with raw_upstream({CHAT: answer, "/health": NOT_FOUND}) as upstream:
        gateway = await start(upstream.url, policy="balanced", gate={"mode": "enforce"})
        assert await served(gateway) is not None
        for each in upstream.asked[-2:]:
            assert each.json.keys() <= KNOWN - {"top_logprobs", "logprobs"}
        found = await gateway.gateway.capabilities()
        assert (found.completions, found.tokenizer, found.token_ids) == (False, False, False)
        assert (found.estimator, found.way, found.signals) == (None, Way.NO_TOOLS, ())
        said = "\n".join(found.problems())
        for missing in ("/v1/completions", "/tokenize", "token ids", "log-probs"):
            assert missing in said
        ready = await gateway.client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")


async def test_stream_options_are_sent_only_where_they_are_taken(start: Start) -> None:
    answer = chat_answer(known={"model", "messages", "max_tokens", "stream"})
    async with raw_upstream({CHAT: answer}) as upstream:
        gateway = await start(upstream.url)
        await served(gateway)
        assert (await gateway.gateway.capabilities()).usage is False


async def test_log_probs_without_token_ids(start: Start) -> None:
    answer = chat_answer(known=KNOWN, alternatives=3)
    async with raw_upstream({CHAT: answer}) as upstream:
        gateway = await start(upstream.url)
        found = await gateway.gateway.capabilities()
        assert (found.top_logprobs, found.token_ids, found.estimator) == (3, False, None)
        assert await served(gateway) is not None
        assert "return_token_ids" not in upstream.asked[-1].json


async def test_a_server_that_wants_max_completion_tokens(start: Start) -> None:
    known = {"model", "messages", "max_completion_tokens", "stream", "stream_options"}
    async with raw_upstream({CHAT: chat_answer(known=known)}) as upstream:
        gateway = await start(upstream.url)
        await served(gateway)
        assert (await gateway.gateway.capabilities()).refused is None


async def test_a_server_that_refuses_every_question_is_served_all_the_same(start: Start) -> None:
    async with raw_upstream({CHAT: chat_answer(known={"model", "messages", "stream"})}) as upstream:
        gateway = await start(upstream.url)
        await served(gateway)
        found = await gateway.gateway.capabilities()
        assert found.refused is not None
        assert "Unrecognized request argument" in found.problems()[0]


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
@pytest.mark.parametrize(
    "said",
    [
        http(b"", "location: http://127.0.0.1:9/", status="302 Found"),
        http(b"<html>", "content-type: text/html"),
        http(b"no", status="501 Not Implemented"),
        http(b"no", status="500 Internal Server Error"),
        http(b"[1]"),
        json_answer({"choices": []}),
        json_answer({"choices": [3], "tokens": [None]}),
        json_answer({"choices": "x", "tokens": "x"}),
    ],
)
async def test_an_odd_answer_of_what_is_not_needed(start: Start, path: str, said: bytes) -> None:
    async with raw_upstream({CHAT: chat_answer(known=KNOWN), path: said}) as upstream:
        gateway = await start(upstream.url)
        await served(gateway)
        assert (await gateway.gateway.capabilities()).tool_call_token_id is None


@pytest.mark.parametrize(
    "models",
    [
        {"data": [{"id": "raw", "root": 3, "max_model_len": "x", "parent": None}]},
        {"data": [{"id": "raw", "root": "/no/such/folder"}, {"id": "b", "parent": "raw"}]},
    ],
)
async def test_an_odd_list_of_models(start: Start, models: dict[str, Any]) -> None:
    answers = {CHAT: chat_answer(known=KNOWN), "/v1/models": json_answer(models)}
    async with raw_upstream(answers) as upstream:
        gateway = await start(upstream.url)
        await served(gateway)
        found = await gateway.gateway.capabilities()
        assert (found.max_model_len, found.base_models) == (None, {"raw"})


@pytest.mark.parametrize("models", [{"data": [1]}, {"data": [{"id": 3}]}, {"data": {}}, {}])
async def test_no_list_of_models_is_a_502(start: Start, models: dict[str, Any]) -> None:
    async with raw_upstream({"/v1/models": json_answer(models)}) as upstream:
        gateway = await start(upstream.url)
        assert error_of(await gateway.chat(PLAIN), 502)["code"] == "upstream_protocol"


async def test_the_folder_of_a_model_on_this_machine_is_read(start: Start, tmp_path: Path) -> None:
    """vLLM says where it read the model: its size tightens bounds, its tokens mark calls."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 4097}))
    tokens = [{"id": 11, "content": "<tool_call>"}, {"id": 12, "content": "</think>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    models = {"data": [MODELS["data"][0] | {"root": str(tmp_path)}]}  # pyright: ignore
    answers = {CHAT: chat_answer(known=KNOWN), "/v1/models": json_answer(models)}
    async with raw_upstream(answers) as upstream:
        found = await (await start(upstream.url)).gateway.capabilities()
        assert (found.vocab_size, found.tokenizer) == (4097, True)
        assert (found.tool_call_token_id, found.reasoning_end_token_id) == (11, 12)
        other = {"url": f"sqlite:///{tmp_path}/other.db"}
        told = await start(upstream.url, upstream={"vocab_size": 99}, store=other)
        assert (await told.gateway.capabilities()).vocab_size == 99


@pytest.mark.parametrize(("opening", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
async def test_think_tokens_of_any_known_kind_are_found(
    start: Start, opening: str, closing: str
) -> None:
    ids = {opening: 3, closing: 4}

    def tokenize(asked: Asked) -> bytes:
        text = asked.json["prompt"]
        return json_answer({"tokens": [ids[text]] if text in ids else [1, 2]})

    async with raw_upstream({CHAT: chat_answer(known=KNOWN), "/tokenize": tokenize}) as upstream:
        found = await (await start(upstream.url)).gateway.capabilities()
        assert (found.reasoning_start_token_id, found.reasoning_end_token_id) == (3, 4)
