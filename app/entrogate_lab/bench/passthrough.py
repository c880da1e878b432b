"""The floor that the gateway's cost is measured against: a bare aiohttp pass-through.

It reads nothing of what it forwards. ``python -m entrogate_lab.bench.passthrough --upstream URL``
prints its own URL on one line and serves until interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

_SESSION = web.AppKey("session", aiohttp.ClientSession)
_UPSTREAM = web.AppKey("upstream", str)
_DROPPED = frozenset({"connection", "content-length", "host", "transfer-encoding"})


async def forward(request: web.Request) -> web.StreamResponse:
    """Send the request on and the answer back, as bytes, as they come."""
    app = request.app
    headers = {k: v for k, v in request.headers.items() if k.lower() not in _DROPPED}
    url = app[_UPSTREAM] + request.path_qs
    body = await request.read()
    async with app[_SESSION].request(request.method, url, data=body, headers=headers) as answer:
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _DROPPED}
        if answer.content_length is not None:
            return web.Response(body=await answer.read(), status=answer.status, headers=kept)
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


def create_app(upstream: str) -> web.Application:
    """The pass-through in front of ``upstream`` (no ``/v1``)."""

    async def session(app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=1024)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as client:
            app[_SESSION] = client
            yield

    app = web.Application(client_max_size=64 * 2**20)
    app[_UPSTREAM] = upstream
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


async def _serve(arguments: argparse.Namespace) -> None:
    runner = web.AppRunner(create_app(arguments.upstream), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", arguments.port).start()
    sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A bare aiohttp pass-through.")
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    arguments = parser.parse_args()
    try:
        if arguments.loop == "uvloop":
            import uvloop

            uvloop.run(_serve(arguments))
        else:
            asyncio.run(_serve(arguments))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
