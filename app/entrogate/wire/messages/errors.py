"""OpenAI's error envelope as Anthropic's."""

from __future__ import annotations

from typing import Any, cast

import orjson

Json = dict[str, Any]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def anthropic_error(status: int, body: bytes) -> tuple[int, Json]:
    """Status and envelope for an error that was described in OpenAI's way, or in vLLM's.

    503 becomes Anthropic's own 529: the service cannot take the request now.
    """
    status = 529 if status == 503 else status
    fallback = "invalid_request_error" if status < 500 else "api_error"
    error: Json = {"type": _TYPES.get(status, fallback), "message": _message(body)}
    return status, {"type": "error", "error": error}


def _message(body: bytes) -> str:
    try:
        envelope = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:300].decode(errors="replace") or "no reason was given"
    found: object = cast("Json", envelope).get("error") if isinstance(envelope, dict) else None
    if isinstance(found, dict):
        found = cast("Json", found).get("message")
    return found if isinstance(found, str) else body[:300].decode(errors="replace")
