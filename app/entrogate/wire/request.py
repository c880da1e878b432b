"""A chat request as the client sent it, and as we send it on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

from entrogate.errors import RequestError
from entrogate.wire.body import parse_json_object, to_json
from entrogate.wire.chat_fields import (
    MAX_CHOICES,
    check_tool_choice,
    check_tools,
    checked_messages,
    converted_fields,
    metadata_of,
    optional_object,
    stream_options,
)
from entrogate.wire.opt_out import allows_recording
from entrogate.wire.reserved import without_ours
from entrogate.wire.strip import Wanted

MAX_ASKED_BYTES = 64 * 2**20  # of a body, times the choices that it asks for
# Fields that only say what to return, never what to sample: not stored as sampling parameters.
# Fields that go with the tools, or with a stream.
_OF_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "stream_options"})
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
    size_bytes: int = 0  # of the body as it came, where that is known
    recorded: bool = True  # False where the body forbids it
    request_id: str | None = None  # a name for logs and traces that stood in the body
    failed_results: frozenset[str] = frozenset()  # ids of calls whose results are marked as errors
    door: dict[str, Any] = field(default_factory=dict[str, Any])  # what another API said beside it

    @property
    def last_role(self) -> str | None:
        """The role of the last message; None where there is none."""
        return self.messages[-1].get("role") if self.messages else None

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools that the request offers."""
        tools: list[dict[str, Any]] = self.body.get("tools") or []
        functions: list[dict[str, Any]] = [tool.get("function") or {} for tool in tools]
        return [str(function.get("name")) for function in functions]

    def upstream(
        self, top_logprobs: int, *, token_ids: bool = True, usage: bool = True
    ) -> dict[str, Any]:
        """The body for the model server: the client's, plus what it can be asked for of
        ``top_logprobs`` (0: none), token ids and, in a stream, usage.
        """
        body = dict(self.body)
        asked = self.wanted.top_logprobs if self.wanted.logprobs else 0
        if token_ids:
            body["return_token_ids"] = True
        if top_logprobs > 0:
            body["logprobs"] = True
            body["top_logprobs"] = -1 if asked < 0 else max(asked, top_logprobs)
        if "include_reasoning" in body:
            body["include_reasoning"] = True
        if self.stream and usage:
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

    def without_tools(self, max_tokens: int | None) -> ChatRequest:
        """The same question to a model that has no tools: one whole answer, no longer than that."""
        body = {name: value for name, value in self.body.items() if name not in _OF_TOOLS}
        asked = (body.pop(name, None) for name in ("max_completion_tokens", "max_tokens"))
        limits = [limit for limit in (*asked, max_tokens) if isinstance(limit, int)]
        if limits:
            body["max_completion_tokens"] = min(limits)
        body |= {"stream": False, "n": 1}
        return replace(self, body=body, stream=False, n=1, tool_choice="none", has_tools=False)

    def params(self) -> bytes:
        """Every field but the messages and tools, as JSON, for the record."""
        params = {k: v for k, v in self.body.items() if k not in _NOT_PARAMS}
        return to_json(params | {"door": self.door} if self.door else params)

    def tools(self) -> bytes | None:
        """The offered tools as JSON; None where there are none."""
        tools = self.body.get("tools")
        return to_json(tools) if tools else None


def parse_chat(raw: bytes) -> ChatRequest:
    """Parse a chat body; refuses only what cannot be served at all, vLLM judges the rest.

    Raises RequestError that names the field.
    """
    request = chat_request(parse_json_object(raw))
    if request.n > 1 and request.n * len(raw) > MAX_ASKED_BYTES:
        most = MAX_ASKED_BYTES // len(raw)
        raise RequestError(
            f"n: is {request.n}; at most {most} with a body of {len(raw)} bytes, which is recorded"
            " with every choice",
            param="n",
        )
    return replace(request, size_bytes=len(raw))


def chat_request(body: dict[str, Any]) -> ChatRequest:
    """The request that a chat body makes, without engine arguments that only we may set.

    Raises RequestError for a part of a wrong kind, or for too many parts.
    """
    messages = checked_messages(body)
    check_tools(body)
    check_tool_choice(body)
    read, sent = converted_fields(without_ours(body))
    n: int = read.get("n") or 1
    if n > MAX_CHOICES:
        raise RequestError(f"n: is {n}; at most {MAX_CHOICES}", param="n")
    return ChatRequest(
        # vLLM would name its answer after it, and the ids of answers are ours.
        body={name: value for name, value in sent.items() if name != "request_id"},
        request_id=read.get("request_id"),
        messages=messages,
        stream=bool(read.get("stream")),
        n=max(n, 1),
        model=read.get("model") or "",
        tool_choice=_tool_choice(sent),
        has_tools=bool(sent.get("tools")),
        wanted=_wanted(sent, read),
        metadata=metadata_of(sent),
        recorded=allows_recording(sent),
    )


def _wanted(body: dict[str, Any], read: dict[str, Any]) -> Wanted:
    visible = read.get("include_reasoning") is not False
    return Wanted(
        logprobs=read.get("logprobs") is True and visible,
        top_logprobs=read.get("top_logprobs") or 0,
        token_ids=read.get("return_token_ids") is True and visible,
        usage=stream_options(body)["include_usage"],
        reasoning=visible,
    )


def _tool_choice(body: dict[str, Any]) -> str:
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        return "named"
    if choice in ("required", "none"):
        return cast("str", choice)
    constrained = body.get("structured_outputs") or _constrains(
        optional_object(body, "response_format")
    )
    return "constrained" if constrained else "auto"


def _constrains(response_format: dict[str, Any] | None) -> bool:
    return response_format is not None and response_format.get("type") not in (None, "text")
