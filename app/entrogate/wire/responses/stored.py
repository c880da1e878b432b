"""A response that was given before, from what was recorded of its turn."""

from __future__ import annotations

from entrogate.types import StoredAnswer
from entrogate.wire.answer import Json
from entrogate.wire.body import from_json, to_json
from entrogate.wire.responses.answer import ResponsesAnswer


def stored_response(chat_id: str, recorded: StoredAnswer) -> Json:
    """The response, with the same ids; token details that are not recorded are 0."""
    asked: Json = dict(recorded.params["door"].get("asked") or {})
    asked["instructions"] = recorded.instructions
    asked["tools"] = [{"type": "function", **tool["function"]} for tool in recorded.tools]
    answer = ResponsesAnswer(asked)
    usage = {
        "prompt_tokens": recorded.n_prompt_tokens,
        "completion_tokens": recorded.n_tokens,
        "total_tokens": recorded.n_prompt_tokens + recorded.n_tokens,
    }
    chat = {
        "id": chat_id,
        "created": int(recorded.created_at),
        "model": recorded.model,
        "choices": [{"message": recorded.message, "finish_reason": recorded.finish_reason}],
        "usage": usage,
    }
    response: Json = from_json(answer.fold(to_json(chat)))
    if recorded.error is not None:
        return answer.failure({"code": "server_error", "message": recorded.error})
    if response["status"] == "completed":
        response["completed_at"] = int(recorded.created_at + recorded.duration_seconds)
    return response
