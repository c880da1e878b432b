"""Graders: a user's function or HTTP hook that scores answers without gold.

A function runs in a thread and is abandoned after the time-out. Python cannot stop a thread, so a
function that keeps hanging is no longer called. A hook gets the same object as JSON and answers
``{"score": 0.7}``.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, Self, cast

import aiohttp

from entrogate.errors import ConfigError, GraderError, RequestError
from entrogate.wire.body import parse_json_object, to_json

MOST_HANGING = 4
_MOST_BYTES = 2**16  # of a hook's answer
_MOST_SAID = 200

Asked = Mapping[str, Any]


class Grader(Protocol):
    """Scores one answer; entered before its first use."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def score(self, asked: Asked) -> float:
        """In [0, 1]. Raises GraderError."""
        ...


def load_grader(named: str, *, timeout_seconds: float) -> Grader:
    """The grader at a URL, or the one called ``module:function``.

    Modules of the current folder are found as well, after the installed ones. Raises ConfigError
    where there is no such function.
    """
    if named.startswith(("http://", "https://")):
        return HttpGrader(named, timeout_seconds=timeout_seconds)
    folder = str(Path.cwd())
    if folder not in sys.path:  # the command `entrogate` does not have it there, `python -m` has
        sys.path.append(folder)
    module, _, name = named.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001  (it is the user's module: anything can be raised)
        raise ConfigError(f"grader {named}: {type(error).__name__}: {error}") from None
    if not callable(function):
        raise ConfigError(f"grader {named}: is {type(function).__name__}, want a function")
    return FunctionGrader(function, named, timeout_seconds=timeout_seconds)


class FunctionGrader:
    """Calls a function, which may be async, in a thread."""

    def __init__(self, function: Callable[..., Any], name: str, *, timeout_seconds: float) -> None:
        self._function = function
        self._name = name
        self._timeout = timeout_seconds
        self._hanging = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to release; hanging threads end with the process."""

    async def score(self, asked: Asked) -> float:
        """In [0, 1]. Raises GraderError."""
        if self._hanging >= MOST_HANGING:
            raise GraderError(
                f"grader {self._name}: not called, because {self._hanging} earlier calls hang",
                kind="hanging",
            )
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[tuple[Any, str | None]] = loop.create_future()
        given_up = False

        def settle(value: Any, problem: str | None) -> None:
            if given_up:
                self._hanging -= 1
            elif not outcome.done():
                outcome.set_result((value, problem))

        def work() -> None:
            value, problem = _called(self._function, asked)
            with suppress(RuntimeError):  # the gateway has stopped
                loop.call_soon_threadsafe(settle, value, problem)

        threading.Thread(target=work, name="entrogate-grader", daemon=True).start()
        try:
            async with asyncio.timeout(self._timeout):
                value, problem = await outcome
        except (TimeoutError, asyncio.CancelledError) as error:
            given_up = True
            self._hanging += 1
            if isinstance(error, asyncio.CancelledError):
                raise
            raise _too_late(self._name, self._timeout) from None
        if problem is not None:
            raise GraderError(f"grader {self._name}: {problem}", kind="raised")
        return checked_score(value, self._name)


def _called(function: Callable[..., Any], asked: Asked) -> tuple[Any, str | None]:
    """What the function returns, or why it does not."""
    try:
        value = function(asked)
        if inspect.iscoroutine(value):
            value = asyncio.run(cast("Any", value))
    except BaseException as error:  # noqa: BLE001  (the user's code; nothing may end our thread)
        return None, f"{type(error).__name__}: {error}"[:_MOST_SAID]
    return value, None


class HttpGrader:
    """Calls an HTTP hook, without redirects and without proxies from the environment."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._url = url
        self._timeout = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout), cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def score(self, asked: Asked) -> float:
        """In [0, 1]. Raises GraderError."""
        if self._session is None:
            raise RuntimeError("the grader is not entered")
        body = await asyncio.to_thread(to_json, asked)
        headers = {"content-type": "application/json"}
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
                raw = await _read(response)
        except TimeoutError:
            raise _too_late("hook", self._timeout) from None
        except (aiohttp.ClientError, OSError) as error:
            raise GraderError(f"grader hook: {type(error).__name__}", kind="unavailable") from None
        if status != 200:
            raise GraderError(f"grader hook: answered with status {status}", kind="raised")
        try:
            said = parse_json_object(raw)
        except RequestError as error:
            raise GraderError(f"grader hook: {error}", kind="invalid") from None
        return checked_score(said.get("score"), "hook")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise GraderError(
                f"grader hook: the answer is longer than {_MOST_BYTES} bytes", kind="invalid"
            )
    return b"".join(parts)


def checked_score(value: Any, name: str) -> float:
    """``value`` as a score. Raises GraderError for what is no number in [0, 1]."""
    if not isinstance(value, Real):
        raise _invalid(name, type(value).__name__)
    number = cast("Any", value)  # an integer may be too large for a float
    if not 0 <= number <= 1:  # nan is neither
        raise _invalid(name, str(number)[:_MOST_SAID])
    return float(number)


def _invalid(name: str, given: str) -> GraderError:
    return GraderError(f"grader {name}: gave {given}; want a number in [0, 1]", kind="invalid")


def _too_late(name: str, seconds: float) -> GraderError:
    return GraderError(f"grader {name}: no score within {seconds:g} s", kind="timeout")
