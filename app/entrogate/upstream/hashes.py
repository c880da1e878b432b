"""The hashes of the served model: of its folder where it is at hand, else of what vLLM makes of a
known text and a known conversation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import aiohttp
import orjson

from entrogate.errors import ConfigError, UpstreamError
from entrogate.model_hashes import CONVERSATION, PROBE, ModelHashes, hash_of_ids, hashes_of
from entrogate.upstream.client import UpstreamClient


async def ask_hashes(client: UpstreamClient, model: str, folder: Path | None) -> ModelHashes:
    """Hashes of ``model``; "" for what the server does not tell. ``folder``: where it may be."""
    if folder is not None and (folder / "tokenizer.json").is_file():
        try:
            return await asyncio.to_thread(hashes_of, folder)
        except (ConfigError, OSError):
            pass  # ours to look at, not to complain of: the server is asked instead
    text = {"model": model, "prompt": PROBE, "add_special_tokens": False}
    conversation = {"model": model, "messages": CONVERSATION, "add_generation_prompt": True}
    return ModelHashes(
        tokenizer=await _hash(client, text), chat_template=await _hash(client, conversation)
    )


async def _hash(client: UpstreamClient, request: dict[str, Any]) -> str:
    try:
        body = orjson.dumps(request)
        async with client.request("POST", "/tokenize", body=body) as response:
            answer: object = orjson.loads(await response.read())
            status = response.status
    except (UpstreamError, aiohttp.ClientError, orjson.JSONDecodeError):
        return ""
    tokens = cast("dict[str, Any]", answer).get("tokens") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(tokens, list) or not tokens:
        return ""
    return hash_of_ids(cast("list[int]", tokens))
