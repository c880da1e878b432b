"""What a request asks of the plugin, read strictly: anybody who reaches vLLM can send it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entrogate.engine.frames import CHOICE_ARGUMENT, GATE_ARGUMENT, REQUEST_ARGUMENT
from entrogate.engine.gate import GateNumbers, unpack

LARGEST_VOCABULARY = 2**24  # the plugin carries ids as float32, which is exact up to here
_REQUEST = re.compile(r"([0-9a-f]{16})/([0-9a-zA-Z]{1,16})/(-1|[0-9]{1,8})", re.ASCII)
_MAX_CHOICES = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One choice is to be captured for ``gateway`` and, with ``gate``, to be gated.

    ``call_id`` is the tool-call token, None where the model has none.
    """

    gateway: str
    request: str
    choice: int
    call_id: int | None
    gate: GateNumbers | None


def read_arguments(
    arguments: Mapping[str, Any] | None, vocab_size: int = LARGEST_VOCABULARY
) -> Asked | None:
    """What a request's ``vllm_xargs`` ask for; None: nothing.

    Raises ValueError, and nothing else, on whatever is not in the form of `frames`: another kind,
    a token id outside the vocabulary, a name of other characters or another length.
    """
    if not arguments or REQUEST_ARGUMENT not in arguments:
        return None
    gateway, request, call_id = _read_request(arguments[REQUEST_ARGUMENT], vocab_size)
    gate = None
    if arguments.get(GATE_ARGUMENT) is not None:
        gate = unpack(arguments[GATE_ARGUMENT], vocab_size)
        if gate.call_id != call_id:
            raise ValueError(
                f"{GATE_ARGUMENT} is about token {gate.call_id},"
                f" {REQUEST_ARGUMENT} about {call_id}: want the same tool-call token"
            )
    choice = arguments.get(CHOICE_ARGUMENT, 0)
    if type(choice) is not int or not 0 <= choice < _MAX_CHOICES:
        raise ValueError(f"{CHOICE_ARGUMENT} is not the index of a choice (0 to {_MAX_CHOICES})")
    return Asked(gateway=gateway, request=request, choice=choice, call_id=call_id, gate=gate)


def _read_request(value: object, vocab_size: int) -> tuple[str, str, int | None]:
    """``GATEWAY/REQUEST/TOKEN_ID`` to its parts; -1 becomes None."""
    found = _REQUEST.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(
            f"{REQUEST_ARGUMENT} is not GATEWAY/REQUEST/TOKEN_ID"
            " (16 hexadecimal digits, up to 16 letters and digits, a token id or -1)"
        )
    call_id = int(found[3])
    if call_id >= vocab_size:
        raise ValueError(
            f"{REQUEST_ARGUMENT} names token {call_id}; the vocabulary ends at {vocab_size - 1}"
        )
    return found[1], found[2], call_id if call_id >= 0 else None
