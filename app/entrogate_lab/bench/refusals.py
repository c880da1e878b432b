"""The requests that vLLM refuses, in its own words, for a gateway to pass on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrogate_lab.bench import dialect


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status and the body that goes with it."""

    status: int
    body: bytes


def invalid_json() -> bytes:
    """vLLM's answer (400) to a body that is no JSON."""
    message = (
        "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.1', 'msg': 'JSON decode"
        " error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed"
        " in double quotes'}}"
    )
    return dialect.error_body(message, "Bad Request", 400, "body.1")


def lora_refusal(folder: Path, *, max_rank: int) -> Refusal | None:
    """Why vLLM would not load the LoRA in ``folder``."""
    try:
        rank = int(json.loads((folder / "adapter_config.json").read_bytes())["r"])
    except FileNotFoundError:
        message = f"Loading lora {folder.name} failed: No adapter found for {folder}"
        return Refusal(404, dialect.error_body(message, "NotFoundError", 404))
    if rank <= max_rank:
        return None
    message = f"LoRA rank {rank} is greater than max_lora_rank {max_rank}."
    return Refusal(500, dialect.error_body(message, "InternalServerError", 500))


def refusal(
    body: dict[str, Any],
    *,
    chat: bool,
    models: Sequence[str],
    max_model_len: int,
    vocabulary: int,
) -> Refusal | None:
    """vLLM's own refusals that a gateway has to pass on; ``models`` starts with the base."""
    if body.get("model") and body["model"] not in models:
        message = f"The model `{body['model']}` does not exist. Valid aliases: {models[0]}."
        return Refusal(404, dialect.error_body(message, "NotFoundError", 404, "model"))
    if chat and not body.get("messages"):
        return _bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    if (refused := _sampling_refusal(body, chat=chat)) is not None:
        return refused
    limit = body.get("max_tokens") or 0
    if chat and limit > max_model_len:
        return _bad_request(
            f"max_tokens={limit} cannot be greater than max_model_len={max_model_len}."
            f" Please request fewer output tokens. (parameter=max_tokens, value={limit})",
            "max_tokens",
        )
    if outside := [int(i) for i in body.get("logit_bias") or () if int(i) >= vocabulary]:
        return _bad_request(
            f"token_id(s) {outside} in logit_bias contain out-of-vocab token ids."
            f" Vocabulary size: {vocabulary} (parameter=logit_bias, value={outside})",
            "logit_bias",
        )
    return None


def _sampling_refusal(body: dict[str, Any], *, chat: bool) -> Refusal | None:
    """Of a temperature, a number of choices or of log-probs that is out of range."""
    temperature = body.get("temperature")
    if temperature is not None and temperature < 0:
        value = float(temperature)
        return _bad_request(
            f"temperature must be non-negative, got {value}. (parameter=temperature,"
            f" value={value})",
            "temperature",
        )
    n: int = 1 if body.get("n") is None else body["n"]
    if n < 1 or (temperature == 0 and n > 1):
        least = "at least 1" if n < 1 else "1 when using greedy sampling"
        return _bad_request(f"n must be {least}, got {n}.")
    wanted = (body.get("top_logprobs") if chat else body.get("logprobs")) or 0
    if wanted > dialect.MAX_LOGPROBS:
        return _bad_request(
            f"Requested sample logprobs of {wanted}, which is greater than max allowed:"
            f" 20 (parameter=logprobs, value={wanted})",
            "logprobs",
        )
    return None


def _bad_request(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, dialect.error_body(message, "BadRequestError", 400, param))
