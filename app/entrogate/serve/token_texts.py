"""The texts of tokens, asked of vLLM when somebody looks: the gateway has no tokenizer.

All unknown ids of a page are one request: they are joined by a token whose text is known, and the
answer is split at it (docs/decisions/0012-viewer.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any, cast

import orjson

from entrogate.errors import EntrogateError
from entrogate.serve.gateway import Gateway

_log = logging.getLogger("entrogate.serve")
_SECONDS = 5.0
_KEPT = 300_000  # more than any vocabulary


class TokenTexts:
    """Remembers what it was told, by model."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._known: dict[str, dict[int, str]] = {}

    async def of(self, model: str, ids: Iterable[int]) -> Mapping[int, str] | None:
        """Id to text; None when the model server cannot be asked."""
        known = self._known.setdefault(model, {})
        missing = sorted(set(ids) - known.keys())
        if not missing:
            return known
        try:
            async with asyncio.timeout(_SECONDS):
                texts = await self._ask(missing)
        except (EntrogateError, TimeoutError, orjson.JSONDecodeError) as error:
            _log.info("viewer.no_token_texts %s", error)
            return None
        if texts is None:
            return None
        if len(known) > _KEPT:
            known.clear()
        known.update(zip(missing, texts, strict=True))
        return known

    async def _ask(self, ids: list[int]) -> list[str] | None:
        found = await self._gateway.capabilities()
        separator = found.tool_call_token_id
        mark = self._gateway.settings.upstream.tool_call_token
        if separator is None:
            return None
        tokens: list[int] = []
        for id_ in ids:
            tokens += [separator, id_]
        body = orjson.dumps({"model": found.model, "tokens": [*tokens, separator]})
        client = self._gateway.client
        async with client.request("POST", "/detokenize", body=body) as response:
            answer = orjson.loads(await response.read())
        if response.status != 200 or not isinstance(answer, dict):
            return None
        text = cast("dict[str, Any]", answer).get("prompt")
        return _split(text, ids, separator, mark) if isinstance(text, str) else None


def _split(text: str, ids: list[int], separator: int, mark: str) -> list[str] | None:
    """The parts between the marks; the mark itself is a part where it was asked for."""
    texts: list[str] = []
    if not text.startswith(mark):
        return None
    rest = text[len(mark) :]
    for id_ in ids:
        if id_ == separator:
            part, rest = mark, rest.removeprefix(mark)
            if not rest.startswith(mark):
                return None
        else:
            part, _, _ = rest.partition(mark)
            rest = rest[len(part) :]
        texts.append(part)
        if not rest.startswith(mark):
            return None
        rest = rest[len(mark) :]
    return texts if not rest else None
