"""No field of vLLM's own `/v1/responses` is missing in ours (where vLLM is installed)."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from entrogate.wire.responses.answer import ResponsesAnswer
from entrogate.wire.responses.request import responses_request

pytestmark = pytest.mark.filterwarnings("default")  # vLLM's own, while it is imported
ARGUMENTS = '{"entity":"Ada"}'
FUNCTION = {"name": "lookup", "arguments": ARGUMENTS}
MESSAGE = {
    "role": "assistant",
    "reasoning": "Hm.",
    "content": "Let me see.",
    "tool_calls": [{"id": "call_1", "type": "function", "function": FUNCTION}],
}
CHAT = {
    "id": "chatcmpl-1",
    "created": 7,
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "tool_calls"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
}
TOOL = {"type": "function", "name": "lookup", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def protocol() -> Any:
    pytest.importorskip("vllm")
    return pytest.importorskip("vllm.entrypoints.openai.responses.protocol")


def test_a_response_has_every_field_that_vllm_writes(protocol: Any) -> None:
    asked = {"temperature": 0.0, "top_p": 1.0, "max_output_tokens": 9, "tools": [TOOL]}
    ours = json.loads(ResponsesAnswer(asked).fold(orjson.dumps(CHAT)))
    response = protocol.ResponsesResponse.model_validate(ours)
    written = json.loads(response.model_dump_json(by_alias=True))

    def missing(theirs: Any, here: Any, where: str) -> list[str]:
        if isinstance(theirs, dict):
            lacks = [f"{where}.{name}" for name in theirs if name not in here]
            both = [name for name in theirs if name in here]
            return lacks + [m for n in both for m in missing(theirs[n], here[n], f"{where}.{n}")]
        if isinstance(theirs, list):
            pairs = enumerate(zip(theirs, here, strict=True))
            return [m for i, (a, b) in pairs for m in missing(a, b, f"{where}[{i}]")]
        return []

    assert missing(written, ours, "response") == []
    usage = protocol.ResponseUsage.model_validate(ours["usage"]).model_dump()
    assert missing(usage, ours["usage"], "usage") == []


def test_every_field_that_vllm_reads_is_known(protocol: Any) -> None:
    """Taken, or refused with a reason; never as a field that nobody has heard of."""
    refused = {"prompt", "previous_input_messages"}
    values: dict[str, Any] = {
        "background": False,
        "logit_bias": {},
        "enable_response_messages": False,
        "include": ["message.output_text.logprobs"],
        "input": "hi",
        "previous_response_id": "resp_1",
        "reasoning": {},
        "stream": False,
        "text": {},
        "tool_choice": "auto",
        "tools": [TOOL],
        "top_logprobs": 1,
        "truncation": "disabled",
        "vllm_xargs": {},
        "metadata": {},
    }
    for name in protocol.ResponsesRequest.model_fields.keys() - refused - {"model"}:
        value = values.get(name, "x" if name == "instructions" else 0)
        responses_request({"model": "m", "input": "hi", name: value})
