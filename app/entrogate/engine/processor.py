"""What vLLM loads: one class that both of its model runners take, and the runner behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from entrogate.engine import runner_v1, runner_v2
from entrogate.engine.frames import GATE_ARGUMENT, REQUEST_ARGUMENT, parse_request
from entrogate.engine.gate import unpack
from entrogate.engine.plugin import open_publisher

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig

_V1_ARGUMENTS = 2  # beside the configuration: the device, and whether to pin memory


class EntrogateProcessor(LogitsProcessor, LogitsProcessorV2):
    """Captures and gates the requests that carry `frames.REQUEST_ARGUMENT`.

    Model runner V1 makes it with the device and whether to pin memory, V2 with its request states.
    """

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        self._v1: runner_v1.RunnerV1 | None = None
        self._v2: runner_v2.RunnerV2 | None = None
        on_v1 = len(runner) == _V1_ARGUMENTS
        refusal = (runner_v1 if on_v1 else runner_v2).refusal(vllm_config)
        publisher = open_publisher(vllm_config, refusal)
        if publisher is None:
            return
        if on_v1:
            self._v1 = runner_v1.RunnerV1(publisher)
        else:
            max_len = vllm_config.model_config.max_model_len
            self._v2 = runner_v2.RunnerV2(publisher, runner[0], max_len)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse malformed arguments at admission (ValueError becomes a 400)."""
        arguments = sampling_params.extra_args or {}
        if REQUEST_ARGUMENT in arguments:
            parse_request(arguments)
        if GATE_ARGUMENT in arguments:
            unpack(arguments[GATE_ARGUMENT])

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:  # V1
        if self._v1 is not None:
            self._v1.update_state(batch_update)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:  # V2
        return self._v2 is not None and self._v2.add_request(req_idx, sampling_params)

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        if self._v1 is not None:
            return self._v1.apply(logits)
        return logits if self._v2 is None else self._v2.apply(logits, ctx)
