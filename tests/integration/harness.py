"""The real gateway over real sockets, in front of the scripted upstream, with its own store."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from entrogate.serve.app import create_app
from entrogate.serve.gateway import Gateway
from entrogate.serve.protocol import http_protocol
from entrogate.settings import Settings
from entrogate_lab.bench.script import script
from tests.sqlite import new_store

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "finds things",
            "parameters": {"type": "object", "properties": {"entity": {"type": "string"}}},
        },
    }
    for name in ("lookup", "search", "send_mail")
]
METRICS_TOKEN = "the-token-of-prometheus"
SURE, UNSURE = 0.97, 0.2  # top-1 probabilities: entropy far below, and above, 1.5 nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A gateway that listens; ``client`` talks to it."""

    url: str
    client: httpx.AsyncClient
    gateway: Gateway
    app: FastAPI

    async def chat(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.client.post(CHAT, json=body, headers=_dashed(headers))

    async def stream(self, body: dict[str, Any], **headers: str) -> tuple[httpx.Response, bytes]:
        body = {**body, "stream": True}
        async with self.client.stream(
            "POST", CHAT, json=body, headers=_dashed(headers)
        ) as response:
            return response, await response.aread()

    async def trajectory(self, response: httpx.Response, **params: Any) -> dict[str, Any]:
        trajectory_id = response.headers["x-entrogate-trajectory-id"]
        found = await self.client.get(f"/v1/trajectories/{trajectory_id}", params=params)
        assert found.status_code == 200, found.text
        return found.json()

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by name and labels as they are written there."""
        headers = {"authorization": f"Bearer {METRICS_TOKEN}"}
        text = (await self.client.get("/metrics", headers=headers)).text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` whose labels include ``labels``."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        return sum(
            value
            for sample, value in (await self.metrics()).items()
            if sample.partition("{")[0] == name
            and wanted <= set(sample.partition("{")[2].rstrip("}").split(","))
        )


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="warning",
        access_log=False,
        log_config=None,
        ws="none",
        http=http_protocol(
            head_timeout_seconds=settings.serve.body_timeout_seconds,
            on_refused=app.state.gateway.metrics.record_refusal,
        ),
        timeout_keep_alive=120,  # a busy machine must not make a pooled connection stale
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        if task.done():
            task.result()
            raise RuntimeError("the gateway did not start")
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30, verify=False) as client:
            yield Running(url=url, client=client, gateway=app.state.gateway, app=app)
    finally:
        server.should_exit = True
        await task


def settings(
    upstream_url: str, folder: Path, *, policy: str = "observe", **branches: dict[str, Any]
) -> Settings:
    tree: dict[str, Any] = {
        # Tests with an engine name its channel; to look for one that is not there takes a second.
        "upstream": {"url": upstream_url, "capture": "off"},
        "gate": {"policy": policy},
        "access": {"metrics_token": METRICS_TOKEN},
    }
    for name, values in branches.items():
        tree[name] = {**tree.get(name, {}), **values}
    if "url" not in tree.setdefault("store", {}):
        tree["store"] = {**tree["store"], "url": new_store(folder / "store.db")}
    return Settings(**tree)


def policy_file(folder: Path, **content: Any) -> str:
    """Write a policy (JSON is YAML) and return its path."""
    path = folder / "policy.yaml"
    base = {"schema_version": 1, "name": "test", "mode": "enforce"}
    path.write_text(json.dumps({**base, **content}))
    return str(path)


def ask(
    *steps: Any, text: str = "Who?", tools: bool = True, model: str = "scripted", **fields: Any
) -> dict[str, Any]:
    """A chat body whose answers are ``steps``."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"{text} {script(*steps)}"}],
        **fields,
    }
    if tools:
        body["tools"] = TOOLS
    return body


def calling(*arguments: str, name: str = "lookup", **fields: Any) -> dict[str, Any]:
    """A step that reasons and calls a tool once for each of ``arguments``."""
    step: dict[str, Any] = {"reasoning": "I have to think about who this may be"}
    step["calls"] = [{"name": name, "arguments": {"entity": a}} for a in arguments]
    return {**step, **fields}


def follow_up(
    body: dict[str, Any], message: dict[str, Any], *results: str, **fields: Any
) -> dict[str, Any]:
    """The next request of an agent: its answer and one result for each of its calls."""
    calls = message.get("tool_calls") or []
    tools = [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(calls, results, strict=True)
    ]
    return {**body, "messages": [*body["messages"], message, *tools], **fields}


def message_of(response: httpx.Response) -> dict[str, Any]:
    """The assistant message as an SDK sends it back: without the fields that are null."""
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    return {k: v for k, v in message.items() if v is not None}


def events(stream: bytes) -> list[dict[str, Any]]:
    """The JSON events of a stream; it must end with [DONE]."""
    parts = [part for part in stream.split(b"\n\n") if part]
    assert parts[-1] == b"data: [DONE]", parts[-1]
    return [json.loads(part.removeprefix(b"data: ")) for part in parts[:-1]]


def message_of_stream(stream: bytes, choice: int = 0) -> dict[str, Any]:
    """The assistant message that a client puts together from a stream."""
    message: dict[str, Any] = {"role": "assistant"}
    calls: dict[int, dict[str, Any]] = {}
    for event in events(stream):
        for part in event.get("choices", []):
            if part["index"] != choice:
                continue
            delta = part["delta"]
            for name in ("content", "reasoning"):
                if delta.get(name):
                    message[name] = message.get(name, "") + delta[name]
            for piece in delta.get("tool_calls") or ():
                call = calls.setdefault(
                    piece["index"], {"type": "function", "function": {"arguments": ""}}
                )
                function = piece.get("function", {})
                if "id" in piece:
                    call["id"] = piece["id"]
                    call["function"]["name"] = function["name"]
                call["function"]["arguments"] += function.get("arguments", "")
    if calls:
        message["tool_calls"] = [calls[i] for i in sorted(calls)]
    return message


def same_bytes(data: bytes) -> bytes:
    """An answer without what differs from request to request: ids and the time."""
    data = re.sub(rb'"id":"(call_eg|chatcmpl-tool-)[0-9a-f]+"', b'"id":"CALL"', data)
    data = re.sub(rb'"id":"(chatcmpl|cmpl)-[0-9A-Za-z-]+"', b'"id":"RESPONSE"', data)
    return re.sub(rb'"created":\d+', b'"created":0', data)


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


async def eventually(check: Any) -> None:
    """Wait until ``check()`` is true; a test that waits in vain runs into its own time limit."""
    async with asyncio.timeout(60):
        while not check():
            await asyncio.sleep(0.01)
