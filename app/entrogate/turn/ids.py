"""Ids that this gateway mints. Nothing is identified by an id that a client or a server chose."""

from __future__ import annotations

import os
import re

from entrogate.wire.minted import RANDOM_BYTES, minted_call

ANSWER_PREFIX = "chatcmpl-"
_TRACE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def mint(kind: str) -> str:
    """A new id: ``turn_…`` or ``traj_…``; 96 random bits."""
    return f"{kind}_{os.urandom(12).hex()}"


def mint_call(at_seconds: float) -> str:
    """A new id of a tool call, ``call_eg…``: when it was proposed, and 48 random bits."""
    return minted_call(at_seconds, os.urandom(RANDOM_BYTES))


def mint_answer() -> str:
    """What follows ``chatcmpl-`` in the id of an answer; 128 random bits.

    vLLM names an answer after the ``x-request-id`` it gets, so this is sent there.
    """
    return os.urandom(16).hex()


def trace_id(*said: object) -> str:
    """The first of ``said`` that can be a request id, else a new one.

    A request id is for logs and traces: it may repeat and identifies nothing. It has 1 to 128
    printable ASCII characters.
    """
    for each in said:
        if isinstance(each, str) and _TRACE_ID.fullmatch(each):
            return each
    return os.urandom(16).hex()
