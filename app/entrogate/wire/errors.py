"""The one mapping from our errors to HTTP, in OpenAI's envelope."""

from __future__ import annotations

import orjson

from entrogate.errors import (
    EntrogateError,
    RequestError,
    StoreError,
    UnknownRecord,
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamUnavailable,
)


def error_body(
    message: str, *, kind: str, code: str | None = None, param: str | None = None
) -> bytes:
    """OpenAI's error envelope as JSON."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": error})


def describe(error: Exception) -> tuple[int, bytes]:
    """HTTP status and body for ``error``; says whether the gateway or the upstream failed."""
    match error:
        case RequestError():
            kind = "not_found_error" if error.status == 404 else "invalid_request_error"
            return error.status, error_body(
                str(error), kind=kind, code=error.code, param=error.param
            )
        case UpstreamTimeout():
            return 504, error_body(str(error), kind="upstream_error", code="upstream_timeout")
        case UpstreamUnavailable():
            return 502, error_body(str(error), kind="upstream_error", code="upstream_unavailable")
        case UpstreamProtocol():
            return 502, error_body(str(error), kind="upstream_error", code="upstream_protocol")
        case UpstreamError():
            return 502, error_body(str(error), kind="upstream_error", code="upstream_error")
        case UnknownRecord():
            return 404, error_body(str(error), kind="not_found_error", code="not_found")
        case StoreError():
            return 503, error_body(str(error), kind="gateway_error", code="store_unavailable")
        case EntrogateError():
            return 500, error_body(str(error), kind="gateway_error", code="gateway_error")
        case _:
            return 500, error_body(
                "internal error in Entrogate; the log has the request id",
                kind="gateway_error",
                code="internal_error",
            )


def error_event(error: Exception) -> bytes:
    """The error as one server-sent event, for a stream that has already begun."""
    return b"data: " + describe(error)[1] + b"\n\n"
