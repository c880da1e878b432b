"""Over TLS a model server must prove who it is, however its URL is spelt."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from entrogate.errors import UpstreamUnavailable
from entrogate.upstream.adapters import VllmAdapters
from tests.certificates import self_signed


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
async def test_a_stranger_is_asked_nothing(scheme: str, tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1))
        writer.close()

    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server, VllmAdapters(f"{scheme}://127.0.0.1:{port}") as adapters:
        with pytest.raises(UpstreamUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await adapters.names()
    assert not any(asked)
