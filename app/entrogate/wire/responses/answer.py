"""From chat chunks to the events and the body of the Responses API."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from entrogate.wire.answer import RESPONSE_PREFIX, Block, DoorAnswer, Json, named_event

_ITEM_PREFIX = {"reasoning": "rs", "text": "msg", "call": "fc"}
# Fields of the request that the response repeats, and what they are where it did not say.
_REPEATED: dict[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


class ResponsesAnswer(DoorAnswer):
    """One response; its id is the chat answer's behind ``resp_``."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        """``asked`` is the request, whose fields the response repeats."""
        super().__init__()
        self._repeated = {
            name: default if asked.get(name) is None else asked[name]
            for name, default in _REPEATED.items()
        }
        self._sequence = 0

    def begun(self) -> bytes:
        response = self._response("in_progress")
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def opened(self, block: Block) -> bytes:
        item = self._item(block, "in_progress", empty=True)
        added = self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "call":
            return added
        return added + self._event(
            "response.content_part.added", **self._at(block, part=True), part=_part(block, "")
        )

    def grown(self, block: Block, text: str) -> bytes:
        match block.kind:
            case "reasoning":
                where = self._at(block, part=True)
                return self._event("response.reasoning_text.delta", **where, delta=text)
            case "text":
                where = self._at(block, part=True)
                return self._event("response.output_text.delta", **where, delta=text, logprobs=[])
            case "call":
                where = self._at(block)
                return self._event("response.function_call_arguments.delta", **where, delta=text)

    def closed(self, block: Block) -> bytes:
        text, where = block.text, self._at(block, part=block.kind != "call")
        match block.kind:
            case "reasoning":
                done = self._event("response.reasoning_text.done", **where, text=text)
            case "text":
                done = self._event("response.output_text.done", **where, text=text, logprobs=[])
            case "call":
                done = self._event(
                    "response.function_call_arguments.done",
                    **where,
                    name=block.name,
                    arguments=text,
                )
        if block.kind != "call":
            done += self._event("response.content_part.done", **where, part=_part(block, text))
        item = self._item(block, self._block_status(block))
        return done + self._event("response.output_item.done", output_index=block.index, item=item)

    def ended(self) -> bytes:
        body = self.body()
        return self._event(f"response.{body['status']}", response=body)

    def failed(self, error: Json) -> bytes:
        if not self._begun:
            self.created = int(time.time())
        return self._event("response.failed", response=self.failure(error))

    def failure(self, error: Json) -> Json:
        """The response as far as it came before ``error``, as OpenAI's envelope says that."""
        code = error.get("code") or error.get("type") or "server_error"
        failure = {"code": str(code), "message": str(error.get("message"))}
        output = [self._item(block, "incomplete") for block in self.blocks]
        return self._response("failed") | {"error": failure, "output": output}

    def body(self) -> Json:
        cut = self.finish_reason == "length"
        response = self._response("incomplete" if cut else "completed")
        if cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        response["output"] = [self._item(b, self._block_status(b)) for b in self.blocks]
        response["usage"] = self._usage()
        if self.entrogate is not None:
            response["entrogate"] = self.entrogate
        return response

    def _response(self, status: str) -> Json:
        return {
            "id": RESPONSE_PREFIX + self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": [],
            "usage": None,
            **self._repeated,
        }

    def _block_status(self, block: Block) -> str:
        """Only the last block of an answer can have been cut short."""
        last = block is self.blocks[-1]
        return "incomplete" if last and self.finish_reason == "length" else "completed"

    def _item(self, block: Block, status: str, *, empty: bool = False) -> Json:
        text = "" if empty else block.text
        item: Json = {"id": self._item_id(block), "status": status}
        match block.kind:
            case "reasoning":
                content = [] if empty else [_part(block, text)]
                return {"type": "reasoning", **item, "summary": [], "content": content}
            case "text":
                content = [] if empty else [_part(block, text)]
                return {"type": "message", **item, "role": "assistant", "content": content}
            case "call":
                call = {"call_id": block.call_id, "name": block.name, "arguments": text}
                return {"type": "function_call", **item, **call}

    def _item_id(self, block: Block) -> str:
        return f"{_ITEM_PREFIX[block.kind]}_{self.id}_{block.index}"

    def _at(self, block: Block, *, part: bool = False) -> Json:
        where: Json = {"item_id": self._item_id(block), "output_index": block.index}
        return where | {"content_index": 0} if part else where

    def _usage(self) -> Json | None:
        usage = self.usage
        if usage is None:
            return None
        cached = usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens
        reasoned = (
            usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens
        )
        completion = usage.completion_tokens or 0
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": reasoned or 0},
            "total_tokens": usage.prompt_tokens + completion,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return named_event({"type": kind, "sequence_number": number, **fields})


def _part(block: Block, text: str) -> Json:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
