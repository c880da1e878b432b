"""What one model server can do, as the handshake found it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from entrogate.types import Estimator

_NO_MASK = (
    "a call is suppressed by asking again without tools, and only where nothing was said before it"
)


class Way(StrEnum):
    """How a model is kept from calling: for suppressions, drafts and shadow answers."""

    MASK = "mask"  # it goes on from its own tokens, with the one that opens a call masked
    NO_TOOLS = "no_tools"  # it is asked again without its tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Of one served model. A token id is None when its text is not a single token.

    Two that are equal stand for servers that answer alike: `UpstreamWatch` compares them.
    """

    model: str
    max_model_len: int | None
    top_logprobs: int  # 0: the server returns no log-probs, or refuses requests that ask for them
    token_ids: bool  # the server returns them; only then is it asked to
    tool_call_token_id: int | None
    tool_call_end_token_id: int | None
    reasoning_start_token_id: int | None
    reasoning_end_token_id: int | None
    control_token_ids: frozenset[int]
    vocab_size: int
    system_fingerprint: str | None
    engine: bool = False  # the plugin in vLLM captures and gates
    blank_token_ids: frozenset[int] = frozenset()
    base_models: frozenset[str] = frozenset()  # every name of the base model
    completions: bool = True  # `/v1/completions` is there: a turn can be resumed by token ids
    tokenizer: bool = True  # the ids of the markers could be found out
    usage: bool = True  # a stream can be asked for its usage
    folder: Path | None = None  # from which a server on this machine read the model
    refused: str | None = None  # what the server said to the plainest chat request

    @property
    def capture(self) -> bool:
        """Can the tokens of a turn be measured at all?"""
        return self.engine or (self.top_logprobs > 0 and self.token_ids)

    @property
    def estimator(self) -> Estimator | None:
        """How the entropies of this upstream's tokens are obtained."""
        if self.engine:
            return Estimator.EXACT
        return Estimator.TOPK if self.capture else None

    @property
    def way(self) -> Way:
        """How this model is kept from calling."""
        masks = self.tool_call_token_id is not None and self.capture and self.completions
        return Way.MASK if masks else Way.NO_TOOLS

    @property
    def gate_points(self) -> tuple[str, ...]:
        """Where a call can be held back: before its first token is sampled, or once it is made."""
        return ("engine", "gateway") if self.engine and self.way is Way.MASK else ("gateway",)

    @property
    def signals(self) -> tuple[str, ...]:
        """What a policy can decide by: statistics of the segment before a call, of a draft."""
        if not self.capture:
            return ()
        return ("segment", "draft") if self.tool_call_token_id is not None else ("draft",)

    def problems(self) -> tuple[str, ...]:
        """What does not work with this upstream, one sentence each."""
        found: list[str] = []
        if self.refused is not None:
            found.append(f"the upstream refuses a plain chat request: {self.refused}")
        if not self.token_ids and not self.engine:
            found.append("the upstream returns no token ids: turns are recorded with a gap")
        if self.top_logprobs == 0 and not self.engine:
            found.append("the upstream returns no log-probs: entropy cannot be measured")
        if not self.completions:
            found.append(f"the upstream has no /v1/completions: {_NO_MASK}")
        if not self.tokenizer:
            found.append(
                "the upstream has no /tokenize: the tokens that mark reasoning and calls are"
                f" unknown; {_NO_MASK}"
            )
        elif self.tool_call_token_id is None:
            found.append(f"the tool-call marker is not one token: {_NO_MASK}")
        if not self.usage:
            found.append("the upstream refuses stream_options: streams are recorded with a gap")
        return tuple(found)
