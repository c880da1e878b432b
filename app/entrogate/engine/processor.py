"""What vLLM loads: one class that both of its model runners take, and the runner behind it.

Here is the boundary of the plugin: what vLLM calls never raises. A fault ends the captures and
gates that were under way and is counted; what vLLM decodes is then as if nothing had been asked.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from entrogate.engine import runner_v1, runner_v2
from entrogate.engine.arguments import read_arguments
from entrogate.engine.faults import Faults
from entrogate.engine.plugin import open_sender

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig

_V1_ARGUMENTS = 2  # beside the configuration: the device, and whether to pin memory
_log = logging.getLogger("entrogate.engine")


class EntrogateProcessor(LogitsProcessor, LogitsProcessorV2):
    """Captures and gates the requests that carry `frames.REQUEST_ARGUMENT`.

    Model runner V1 makes it with the device and whether to pin memory, V2 with its request states.
    """

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        self._v1: runner_v1.RunnerV1 | None = None
        self._v2: runner_v2.RunnerV2 | None = None
        self.faults = Faults()
        self.faults.guard(self._start, vllm_config, runner, undo=self._stay_out)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse malformed arguments at admission: vLLM answers ValueError with a 400.

        The size of the vocabulary is not known here; the runners check it again.
        """
        read_arguments(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """False: the gate may change which token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1: what came, went and moved since the last step."""
        if self._v1 is not None:
            self.faults.guard(self._v1.update_state, batch_update, undo=self._v1.give_up)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request takes a slot; True when it is captured."""
        if self._v2 is None:
            return False
        runner = self._v2
        taken = self.faults.guard(runner.add_request, req_idx, sampling_params, undo=runner.give_up)
        return bool(taken)

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Measure and gate the captured rows, in place."""
        if self._v1 is not None:
            self.faults.guard(self._v1.apply, logits, undo=self._v1.give_up)
        elif self._v2 is not None:
            self.faults.guard(self._v2.apply, logits, ctx, undo=self._v2.give_up)
        return logits

    def _start(self, vllm_config: VllmConfig, arguments: tuple[Any, ...]) -> None:
        on_v1 = len(arguments) == _V1_ARGUMENTS
        refusal = (runner_v1 if on_v1 else runner_v2).refusal(vllm_config)
        sender = open_sender(vllm_config, refusal, self.faults)
        if sender is None:
            return
        if on_v1:
            vocab_size = vllm_config.model_config.get_vocab_size()
            self._v1 = runner_v1.RunnerV1(sender, vocab_size, self.faults)
            return
        max_len = vllm_config.model_config.max_model_len
        runner = runner_v2.RunnerV2(sender, arguments[0], max_len, self.faults)
        guard = partial(self.faults.guard, undo=runner.give_up)
        runner_v2.wrap_model_runner(
            arrived=partial(guard, runner.arrived),
            left=partial(guard, runner.leave),
            sampled=partial(guard, runner.sampled),
        )
        self._v2 = runner

    def _stay_out(self) -> None:
        self._v1 = self._v2 = None
        _log.error("entrogate: no capture and no gate inside the engine")
