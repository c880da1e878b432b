"""From chat chunks to the events and the body of the Responses API."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from entrogate.wire.answer import RESPONSE_PREFIX, Block, DoorAnswer, named_event
from entrogate.wire.responses.items import (
    delta_logprobs,
    item_id,
    item_of,
    part_of,
    repeated,
    usage_of,
)
from entrogate.wire.said import Json, SaidToken

_INCOMPLETE = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}


class ResponsesAnswer(DoorAnswer):
    """One response; its id is the chat answer's behind ``resp_``."""

    streams_arguments = True

    def __init__(self, asked: Mapping[str, Any], *, logprobs: bool = False) -> None:
        """``asked`` is the request, whose fields the response repeats."""
        super().__init__(logprobs=logprobs)
        self._repeated = repeated(asked, logprobs=logprobs)
        self._sequence = 0

    def begun(self) -> bytes:
        """``response.created`` and ``response.in_progress``."""
        response = self._response("in_progress")
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def opened(self, block: Block) -> bytes:
        """``response.output_item.added`` and, but for a call, ``response.content_part.added``."""
        item = item_of(block, self.id, "in_progress", empty=True)
        added = self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "call":
            return added
        part = part_of(block, empty=True)
        return added + self._event("response.content_part.added", **self._at(block), part=part)

    def grown(self, block: Block, text: str, tokens: Sequence[SaidToken]) -> bytes:
        """The ``….delta`` event of the block's kind; text carries its log-probs."""
        where = self._at(block)
        match block.kind:
            case "reasoning":
                return self._event("response.reasoning_text.delta", **where, delta=text)
            case "text":
                logprobs = delta_logprobs(tokens)
                return self._event(
                    "response.output_text.delta", **where, delta=text, logprobs=logprobs
                )
            case "refusal":
                return self._event("response.refusal.delta", **where, delta=text)
            case "call":
                return self._event("response.function_call_arguments.delta", **where, delta=text)

    def closed(self, block: Block) -> bytes:
        """The ``….done`` events of the block, its content part and its item."""
        text, where = block.text, self._at(block)
        match block.kind:
            case "reasoning":
                done = self._event("response.reasoning_text.done", **where, text=text)
            case "text":
                logprobs = delta_logprobs(block.tokens)
                done = self._event(
                    "response.output_text.done", **where, text=text, logprobs=logprobs
                )
            case "refusal":
                done = self._event("response.refusal.done", **where, refusal=text)
            case "call":
                done = self._event(
                    "response.function_call_arguments.done",
                    **where,
                    name=block.name,
                    arguments=text,
                )
        if block.kind != "call":
            done += self._event("response.content_part.done", **where, part=part_of(block))
        item = item_of(block, self.id, self._block_status(block))
        return done + self._event("response.output_item.done", output_index=block.index, item=item)

    def ended(self) -> bytes:
        """``response.completed``, ``response.incomplete`` or ``response.failed``, with the body."""
        body = self.body()
        return self._event(f"response.{body['status']}", response=body)

    def failed(self, error: Json) -> bytes:
        """``response.failed``; also the first event, where nothing had come before."""
        if not self._begun:
            self.created = int(time.time())
        return self._event("response.failed", response=self.failure(error))

    def failure(self, error: Json) -> Json:
        """The response as far as it came before ``error``, as OpenAI's envelope says that."""
        code = "rate_limit_exceeded" if error.get("code") == 429 else "server_error"
        failure = {"code": code, "message": str(error.get("message"))}
        output = [item_of(block, self.id, "incomplete") for block in self.blocks]
        return self._response("failed") | {"error": failure, "output": output}

    def body(self) -> Json:
        """The response as a whole; an answer that cannot be told has the status ``failed``."""
        if self.broken is not None:
            response = self.failure({"code": "server_error", "message": self.broken})
        else:
            cut = _INCOMPLETE.get(self.finish_reason or "")
            response = self._response("completed" if cut is None else "incomplete")
            if cut is None:
                response["completed_at"] = int(time.time())
            else:
                response["incomplete_details"] = {"reason": cut}
        response["output"] = [item_of(b, self.id, self._block_status(b)) for b in self.blocks]
        response["usage"] = usage_of(self.usage)
        response["kv_transfer_params"] = self.kv_transfer_params
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
        cut = self.finish_reason in _INCOMPLETE or self.broken is not None
        return "incomplete" if cut and block is self.blocks[-1] else "completed"

    def _at(self, block: Block) -> Json:
        where: Json = {"item_id": item_id(block, self.id), "output_index": block.index}
        return where if block.kind == "call" else where | {"content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return named_event({"type": kind, "sequence_number": number, **fields})
