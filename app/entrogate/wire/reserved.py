"""Keeping the engine's switches out of clients' reach.

The plugin in vLLM is told what to do by arguments named ``entrogate…``, which travel in the same
objects as a client's own extra arguments. Only the gateway may set them.
"""

from __future__ import annotations

import unicodedata
from typing import Any, cast

from entrogate.errors import RequestError
from entrogate.wire.body import parse_json_object, to_json

Json = dict[str, Any]

_PREFIX = "entrogate"
# What vLLM hands to the engine as a request's extra arguments, by the names that it has for them.
_CARRIERS = ("vllm_xargs", "extra_args")
_HOLDERS = ("sampling_params",)  # objects in a body that may hold a carrier too


def is_ours(name: str) -> bool:
    """Does ``name`` begin with ``entrogate``, whatever its case, width or blanks before it?"""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in plain if c.isprintable() and not c.isspace()).startswith(_PREFIX)


def without_ours(body: Json) -> Json:
    """``body`` without arguments of ours. Raises RequestError where they would stand in no object.

    A body that holds none is returned as it is.
    """
    changed: Json = {}
    for name in _CARRIERS:
        extra = body.get(name)
        if extra is None:
            continue
        if not isinstance(extra, dict):
            raise RequestError(f"{name}: want an object", param=name)
        kept = {k: v for k, v in cast("Json", extra).items() if not is_ours(k)}
        if len(kept) < len(cast("Json", extra)):
            changed[name] = kept
    for name in _HOLDERS:
        held = body.get(name)
        if isinstance(held, dict):
            kept = without_ours(cast("Json", held))
            if kept is not held:
                changed[name] = kept
    return {**body, **changed} if changed else body


def raw_without_ours(raw: bytes) -> bytes:
    """The JSON object in ``raw``, parsed and written anew without arguments of ours.

    What is judged is what is sent: no second reading of equal keys, escapes or encodings can find
    something else in it. Raises RequestError for a body that is no JSON object.
    """
    return to_json(without_ours(parse_json_object(raw)))
