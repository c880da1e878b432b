"""The one mapping from our errors to HTTP, in OpenAI's envelope."""

from __future__ import annotations

import orjson

from entrogate.errors import (
    EntrogateError,
    ErasedRecord,
    RequestError,
    StoreError,
    UnknownRecord,
    UpstreamError,
    UpstreamProtocol,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)


def error_body(
    message: str, *, kind: str, code: str | None = None, param: str | None = None
) -> bytes:
    """OpenAI's error envelope as JSON."""
    error = {"message": _whole(message), "type": kind, "param": _whole(param), "code": code}
    return orjson.dumps({"error": error})


def _whole(text: str | None) -> str | None:
    """``text`` with marks for halves of surrogate pairs, which a client can send as field names."""
    return None if text is None else text.encode(errors="replace").decode()


def is_error_body(body: bytes) -> bool:
    """Does ``body`` say an error in OpenAI's way, or in vLLM's older one?"""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(said, dict) and ("error" in said or "message" in said)


def upstream_error_body(status: int, body: bytes) -> bytes:
    """The envelope for what a model server answered with ``status`` and a text of its own."""
    said = body[:300].decode(errors="replace").strip() or "nothing more"
    message = f"the model server answered {status}: {said}"
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    return error_body(message, kind=kind, code="upstream_error")


# Most specific first: HTTP status, type and code of each class of error.
_KINDS: tuple[tuple[type[EntrogateError], int, str, str], ...] = (
    (UpstreamTimeout, 504, "upstream_error", "upstream_timeout"),
    (UpstreamUnavailable, 502, "upstream_error", "upstream_unavailable"),
    (UpstreamProtocol, 502, "upstream_error", "upstream_protocol"),
    (UpstreamRefused, 400, "invalid_request_error", "upstream_refused"),
    (UpstreamError, 502, "upstream_error", "upstream_error"),
    (ErasedRecord, 410, "not_found_error", "erased"),
    (UnknownRecord, 404, "not_found_error", "not_found"),
    (StoreError, 503, "gateway_error", "store_unavailable"),
    (EntrogateError, 500, "gateway_error", "gateway_error"),
)
_UNEXPECTED = "internal error in Entrogate; the log has the request id"


def describe(error: Exception) -> tuple[int, bytes]:
    """HTTP status and body for ``error``; says whether the gateway or the upstream failed."""
    if isinstance(error, RequestError):
        kind = "not_found_error" if error.status == 404 else "invalid_request_error"
        body = error_body(str(error), kind=kind, code=error.code, param=error.param)
        return error.status, body
    for cls, status, kind, code in _KINDS:
        if isinstance(error, cls):
            return status, error_body(str(error), kind=kind, code=code)
    return 500, error_body(_UNEXPECTED, kind="gateway_error", code="internal_error")


def error_event(error: Exception) -> bytes:
    """The error as one server-sent event, for a stream that has already begun."""
    return b"data: " + describe(error)[1] + b"\n\n"
