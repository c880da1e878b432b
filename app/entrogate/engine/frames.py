"""What the engine sends of the tokens it samples: one message for many tokens of many requests.

The arrays are packed: little-endian, one item a token. A message goes to one gateway, under its
name as the topic; ``sequence`` counts the messages of a topic from 0, so a lost one shows. A
request names its gateway, itself and the tool-call token (-1: none) in ``vllm_xargs``:
``{"entrogate": "GATEWAY/REQUEST/TOKEN_ID"}``; the choices of ``n > 1`` are told apart by
``entrogate_choice``, which the plugin adds. What a request may say is in `arguments`.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

VERSION = 1
ACTIONS = ("suppress", "force")
MOST = 2**31  # tokens, choices and places are fewer, so that every database can hold their numbers
REQUEST_ARGUMENT = "entrogate"
CHOICE_ARGUMENT = "entrogate_choice"
GATE_ARGUMENT = "entrogate_gate"
TOKEN = np.dtype(
    [
        ("stream", "<u4"),  # which `Began` the token belongs to
        ("token_id", "<i4"),
        ("logprob", "<f4"),  # under the distribution that was sampled from
        ("entropy", "<f4"),  # of the raw distribution over the whole vocabulary, nats
        ("margin", "<f4"),  # between the two largest log-probs, nats
        ("p_tool_call", "<f4"),  # nan where no tool-call token is known
    ]
)


class Began(msgspec.Struct, array_like=True, frozen=True):
    """A choice entered the batch; one that had been preempted has ``resumed`` tokens already."""

    stream: int
    request: str
    choice: int
    prompt_token_ids: bytes  # int32
    resumed: int = 0


class Gated(msgspec.Struct, array_like=True, frozen=True):
    """The gate acted on a choice: at ``position`` (of the sampled tokens) it masked or forced.

    ``p_tool_call`` is the probability of the tool-call token before that, under the raw
    distribution; ``p_sampled`` the probability that it would have been sampled, so after
    temperature, top-k and top-p: nan where it was forced, and from an engine that does not say.
    """

    stream: int
    position: int
    action: str  # suppress | force
    value: float  # of the statistic
    n_tokens: int  # of the segment
    p_tool_call: float
    p_sampled: float = math.nan


class Ended(msgspec.Struct, array_like=True, frozen=True):
    """A choice left the batch, for good or because it was preempted, with so many tokens."""

    stream: int
    n_tokens: int


class Message(msgspec.Struct, array_like=True, frozen=True):
    """All that happened since the last message, in this order: began, tokens, gated, ended."""

    version: int
    worker: int  # whose streams and sequence these are
    sequence: int
    began: list[Began]
    tokens: bytes  # of `TOKEN`
    gated: list[Gated]
    ended: list[Ended]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode


def check(message: Message) -> None:
    """ValueError where a decoded message is not what an engine sends: sizes, signs, versions."""
    if message.version != VERSION:
        raise ValueError(f"version {message.version}; want {VERSION}")
    if len(message.tokens) % TOKEN.itemsize:
        raise ValueError(f"{len(message.tokens)} bytes of tokens of {TOKEN.itemsize} each")
    if message.sequence < 0 or message.worker < 0:
        raise ValueError("a negative number of a message or of a worker")
    for began in message.began:
        _check_began(began)
    for gated in message.gated:
        counts = 0 <= gated.position < MOST and 0 <= gated.n_tokens < MOST
        if not counts or gated.action not in ACTIONS:
            raise ValueError("an unknown action of the gate, or a position that there is not")
        if gated.p_sampled < 0.0 or gated.p_sampled > 1.0:
            raise ValueError("a probability that is none")
    for ended in message.ended:
        if not -1 <= ended.n_tokens < MOST:
            raise ValueError("a choice that ended with a number of tokens that there is not")
    if message.tokens:
        tokens = np.frombuffer(message.tokens, dtype=TOKEN)
        if tokens["token_id"].min() < 0 or (tokens["entropy"] < 0).any():
            raise ValueError("a negative token id or entropy")


def _check_began(began: Began) -> None:
    packed = began.prompt_token_ids
    if len(packed) % 4 or not 0 <= began.choice < MOST or not 0 <= began.resumed < MOST:
        raise ValueError("a choice that begins with a broken prompt or a number that there is not")
    if packed and np.frombuffer(packed, dtype="<i4").min() < 0:
        raise ValueError("a negative token id in a prompt")
