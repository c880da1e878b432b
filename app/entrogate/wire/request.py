"""A chat request as the client sent it, and as we send it on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import orjson

from entrogate.errors import RequestError
from entrogate.wire.strip import Wanted

# Fields that only say what to return, never what to sample: not stored as sampling parameters.
_NOT_PARAMS = frozenset({"messages", "tools", "stream", "stream_options", "metadata", "model"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A parsed body with what the gateway needs to know of it."""

    body: dict[str, Any]
    messages: list[dict[str, Any]]
    stream: bool
    n: int
    model: str
    tool_choice: str  # auto | required | named | none | constrained (a grammar is at work)
    has_tools: bool
    wanted: Wanted
    metadata: dict[str, str] | None
    request_id: str | None = None  # a name for logs and traces that stood in the body
    door: dict[str, Any] = field(default_factory=dict[str, Any])  # what another API said beside it

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools that the request offers."""
        tools: list[Any] = [t for t in self.body.get("tools") or () if isinstance(t, dict)]
        functions: list[dict[str, Any]] = [t.get("function") or {} for t in tools]
        return [str(function.get("name")) for function in functions]

    def upstream(self, top_logprobs: int) -> dict[str, Any]:
        """The body for vLLM: the client's, plus token ids, log-probs and usage."""
        body = dict(self.body)
        asked = self.wanted.top_logprobs if self.wanted.logprobs else 0
        body["return_token_ids"] = True
        if top_logprobs > 0:
            body["logprobs"] = True
            body["top_logprobs"] = -1 if asked < 0 else max(asked, top_logprobs)
        if "include_reasoning" in body:
            body["include_reasoning"] = True
        if self.stream:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return body

    def upstream_captured(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The body for a vLLM that captures out of band: the client's, plus ``arguments``."""
        body = dict(self.body)
        body["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), **arguments}
        if self.stream:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return body

    def addressed_to(self, model: str) -> ChatRequest:
        """The same request for another model."""
        return replace(self, model=model, body={**self.body, "model": model})

    def params(self) -> bytes:
        """Every field but the messages and tools, as JSON, for the record."""
        params = {k: v for k, v in self.body.items() if k not in _NOT_PARAMS}
        return orjson.dumps(params | {"door": self.door} if self.door else params)

    def tools(self) -> bytes | None:
        tools = self.body.get("tools")
        return orjson.dumps(tools) if tools else None


def parse_chat(raw: bytes) -> ChatRequest:
    """Parse a chat body; refuses only what cannot be served at all, vLLM judges the rest.

    Raises RequestError for malformed JSON or a body without a list of messages.
    """
    return chat_request(parse_json_object(raw))


def chat_request(body: dict[str, Any]) -> ChatRequest:
    """The request that a chat body makes; RequestError when it has no list of messages."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) for message in cast("list[Any]", messages)
    ):
        raise RequestError("messages must be a list of objects", param="messages")
    n = body.get("n")
    # vLLM would name its answer after it, and the ids of answers are ours.
    request_id = body.get("request_id")
    return ChatRequest(
        body={name: value for name, value in body.items() if name != "request_id"},
        request_id=request_id if isinstance(request_id, str) else None,
        messages=cast("list[dict[str, Any]]", messages),
        stream=body.get("stream") is True,
        n=n if isinstance(n, int) and n > 0 else 1,
        model=str(body.get("model") or ""),
        tool_choice=_tool_choice(body),
        has_tools=bool(body.get("tools")),
        wanted=_wanted(body),
        metadata=_metadata(body.get("metadata")),
    )


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """Parse ``raw`` as a JSON object or raise RequestError."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return cast("dict[str, Any]", body)


def _wanted(body: dict[str, Any]) -> Wanted:
    options = body.get("stream_options")
    usage = isinstance(options, dict) and cast("dict[str, Any]", options).get("include_usage")
    top = body.get("top_logprobs")
    visible = body.get("include_reasoning") is not False
    return Wanted(
        logprobs=body.get("logprobs") is True and visible,
        top_logprobs=top if isinstance(top, int) else 0,
        token_ids=body.get("return_token_ids") is True and visible,
        usage=usage is True,
        reasoning=visible,
    )


def _tool_choice(body: dict[str, Any]) -> str:
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        return "named"
    if choice in ("required", "none"):
        return cast("str", choice)
    constrained = body.get("structured_outputs") or _constrains(body.get("response_format"))
    return "constrained" if constrained else "auto"


def _constrains(response_format: object) -> bool:
    if not isinstance(response_format, dict):
        return False
    return cast("dict[str, Any]", response_format).get("type") not in (None, "text")


def _metadata(value: object) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    return {str(k): str(v) for k, v in cast("dict[object, object]", value).items()}
