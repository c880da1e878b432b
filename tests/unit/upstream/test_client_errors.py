"""What the gateway says of a model server that cannot be reached."""

from __future__ import annotations

import pytest

from entrogate.errors import UpstreamUnavailable
from entrogate.settings import UpstreamSettings
from entrogate.upstream.client import UpstreamClient


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://no-such-host.invalid:80", ""),
    ],
)
async def test_the_address_is_named_once(url: str, why: str) -> None:
    async with UpstreamClient(UpstreamSettings(), url) as client:
        with pytest.raises(UpstreamUnavailable) as caught:
            async with client.request("GET", "/v1/models"):
                pass
    said = str(caught.value)
    assert said.startswith(f"cannot connect to the model server at {url}: {why}")
    assert said.count(url.split(":")[1].strip("/")) == 1
    assert "ssl:" not in said
    assert len(said) > len(f"cannot connect to the model server at {url}: ")
