"""Every error becomes OpenAI's envelope and says who failed."""

from __future__ import annotations

import json

import pytest

from entrogate import errors
from entrogate.wire.errors import describe, error_event


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.RequestError("bad", param="n"), 400, "invalid_request_error"),
        (errors.RequestError("gone", status=404), 404, "not_found_error"),
        (errors.UpstreamTimeout("slow"), 504, "upstream_error"),
        (errors.UpstreamUnavailable("down"), 502, "upstream_error"),
        (errors.UpstreamProtocol("odd"), 502, "upstream_error"),
        (errors.UnknownRecord("none"), 404, "not_found_error"),
        (errors.StoreError("full"), 503, "gateway_error"),
        (errors.ConfigError("wrong"), 500, "gateway_error"),
        (RuntimeError("secret detail"), 500, "gateway_error"),
    ],
)
def test_status_and_envelope(error: Exception, status: int, kind: str) -> None:
    found, body = describe(error)
    envelope = json.loads(body)["error"]
    assert found == status
    assert envelope["type"] == kind
    assert set(envelope) == {"message", "type", "param", "code"}
    assert "secret" not in envelope["message"]


def test_the_parameter_is_named() -> None:
    body = json.loads(describe(errors.RequestError("bad", param="n"))[1])
    assert body["error"]["param"] == "n"


def test_an_error_event_is_one_event() -> None:
    event = error_event(errors.UpstreamTimeout("a\n\nb"))
    assert event.startswith(b"data: {")
    assert event.count(b"\n\n") == 1
