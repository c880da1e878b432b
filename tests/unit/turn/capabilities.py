"""What a plain vLLM with one call token can do."""

from __future__ import annotations

from entrogate.upstream.capabilities import Capabilities

CAPABILITIES = Capabilities(
    model="m",
    max_model_len=1000,
    top_logprobs=5,
    token_ids=True,
    tool_call_token_id=3,
    tool_call_end_token_id=4,
    reasoning_start_token_id=1,
    reasoning_end_token_id=2,
    control_token_ids=frozenset(),
    vocab_size=100,
    system_fingerprint=None,
)
