"""The requests that vLLM refuses, in its own words, for a gateway to pass on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from entrogate.bench import dialect


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status and the body that goes with it."""

    status: int
    body: bytes


def invalid_json() -> bytes:
    message = (
        "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.1', 'msg': 'JSON decode"
        " error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed"
        " in double quotes'}}"
    )
    return dialect.error_body(message, "Bad Request", 400, "body.1")


def refusal(
    body: dict[str, Any], *, chat: bool, model: str, max_model_len: int, vocabulary: int
) -> Refusal | None:
    """vLLM's own refusals that a gateway has to pass on."""

    def refuse(message: str, param: str | None = None) -> Refusal:
        return Refusal(400, dialect.error_body(message, "BadRequestError", 400, param))

    if body.get("model") not in (None, model):
        message = f"The model `{body['model']}` does not exist. Valid aliases: {model}."
        return Refusal(404, dialect.error_body(message, "NotFoundError", 404, "model"))
    if chat and not body.get("messages"):
        return refuse(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    temperature = body.get("temperature")
    if temperature is not None and temperature < 0:
        value = float(temperature)
        return refuse(
            f"temperature must be non-negative, got {value}. (parameter=temperature,"
            f" value={value})",
            "temperature",
        )
    if temperature == 0 and (body.get("n") or 1) > 1:
        return refuse(f"n must be 1 when using greedy sampling, got {body['n']}.")
    wanted = (body.get("top_logprobs") if chat else body.get("logprobs")) or 0
    if wanted > dialect.MAX_LOGPROBS:
        return refuse(
            f"Requested sample logprobs of {wanted}, which is greater than max allowed:"
            f" 20 (parameter=logprobs, value={wanted})",
            "logprobs",
        )
    limit = body.get("max_tokens") or 0
    if chat and limit > max_model_len:
        return refuse(
            f"max_tokens={limit} cannot be greater than max_model_len={max_model_len}."
            f" Please request fewer output tokens. (parameter=max_tokens, value={limit})",
            "max_tokens",
        )
    if outside := [int(i) for i in body.get("logit_bias") or () if int(i) >= vocabulary]:
        return refuse(
            f"token_id(s) {outside} in logit_bias contain out-of-vocab token ids."
            f" Vocabulary size: {vocabulary} (parameter=logit_bias, value={outside})",
            "logit_bias",
        )
    return None
