# ruff: noqa: N803, N806, N815 (shape suffixes)
"""Measures, gates and captures on model runner V2 (vLLM's default on CUDA), without a wait.

V2 prepares step t + 1 on the host while the device computes step t. What is measured therefore
stays on the device and is copied to the host beside the work; the gate of step t + 1 knows the
tokens up to step t (by then finished, while the forward pass of t + 1 is queued), and what depends
on the logits of t + 1 itself is decided on the device.

V2's interface tells a processor neither the sampled tokens nor when a request leaves, so three
methods of vLLM are wrapped: `Sampler._sample_random`, `RequestState.add_request` and
`RequestState.remove_request`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from entrogate.engine.arguments import read_arguments
from entrogate.engine.gate import GateState
from entrogate.engine.measure import (
    COULD_BE_SAMPLED,
    masked_probabilities,
    row_statistics,
    sampled_logprobs,
)

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

    from entrogate.engine.faults import Faults
    from entrogate.engine.measure import RowStatistics
    from entrogate.engine.sender import Sender, Stream

_SUPPRESSED, _FORCED = 1, 2  # what the gate did to a row, in `_Step.measured`


@dataclass(slots=True, kw_only=True)
class _Row:
    """One captured choice."""

    stream: Stream
    prefill_len: int  # steps that read less of the sequence sample nothing
    n_tokens: int
    limit: int  # tokens at which the engine ends it
    stop_token_ids: frozenset[int | None]
    gate: GateState | None
    finished: bool = False  # what is sampled after that (a step was under way) is thrown away

    def leave_alone(self) -> None:
        """Its gate failed: what is left to decide is decided in the gateway."""
        self.gate = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """Of every row of a step: the tool-call token's logit before the gate, and the temperature."""

    logits_B: torch.Tensor
    temperatures_B: torch.Tensor


@dataclass(slots=True, kw_only=True)
class _Step:
    """What was measured in a step, on its way to the host.

    ``measured`` has shape (7, captured rows): entropy, margin, p(tool call), what the gate did,
    log-prob and id of the sampled token (exact in float32 up to 2**24), and the probability with
    which a call would have been sampled that the gate masked.
    """

    rows: list[_Row]
    index_R: torch.Tensor | None  # their places among the logits; None: all, in order
    measured: torch.Tensor
    calls: _Calls | None  # None: no row has a gate
    copied: torch.cuda.Event | None = None


@dataclass(slots=True)
class _Arrival:
    """The request that the model runner is taking on."""

    slot: int = -1
    token_ids: list[int] = field(default_factory=list[int])


class RunnerV2:
    """One per worker; ``states`` are the model runner's own, read only.

    What raises in a method is for the caller to catch, who then calls `give_up`.
    """

    def __init__(
        self, sender: Sender, states: LogitsProcRequestState, max_len: int, faults: Faults
    ) -> None:
        self._sender = sender
        self._states = states
        self._max_len = max_len
        self._faults = faults
        self._rows: dict[int, _Row] = {}  # by slot
        self._step: _Step | None = None  # measured, not yet sampled
        self._settling: deque[_Step] = deque()
        self._arrival = _Arrival()
        self._measure = _measure_for(states.device)
        # By slot: the tool-call token, -1 where none is known. Kept on the device, where each step
        # looks up those of its rows.
        self._call_ids = torch.full(
            (states.max_num_reqs,), -1, dtype=torch.int64, device=states.device
        )
        self._temperatures = torch.ones(states.max_num_reqs, device=states.device)

    def give_up(self) -> None:
        """Something failed: the captures and gates under way end, new requests begin anew."""
        rows, self._rows, self._step = self._rows, {}, None
        self._settling.clear()
        for row in rows.values():
            self._sender.ended(row.stream, -1)

    def arrived(self, states: Any, named: dict[str, Any]) -> None:
        """A request got a slot of ``states``: it has ``named`` prompt and what it had sampled."""
        slot = states.req_id_to_index[named["req_id"]]
        self._arrival = _Arrival(slot, named["all_token_ids"])

    def add_request(self, slot: int, params: SamplingParams) -> bool:
        """The request that has arrived; True when it is captured."""
        self.leave(slot)
        try:
            asked = read_arguments(params.extra_args, self._states.vocab_size)
        except ValueError as error:
            self._faults.refuse(error)
            return False
        if asked is None or self._arrival.slot != slot:
            return False
        prompt_len = int(self._states.prompt_len.np[slot])
        token_ids = self._arrival.token_ids
        prompt, resumed = token_ids[:prompt_len], len(token_ids) - prompt_len
        limit = self._max_len - prompt_len
        # A choice that had been preempted has lost its measurements: its gate stays open.
        numbers = None if resumed else asked.gate
        gate = None if numbers is None else GateState.begin(numbers, prompt)
        self._call_ids[slot] = -1 if asked.call_id is None else asked.call_id
        self._temperatures[slot] = params.temperature
        self._rows[slot] = _Row(
            stream=self._sender.began(
                asked.gateway, asked.request, asked.choice, prompt, resumed=resumed
            ),
            prefill_len=len(token_ids),
            n_tokens=resumed,
            limit=limit if params.max_tokens is None else min(limit, params.max_tokens),
            stop_token_ids=frozenset((params.eos_token_id, *(params.stop_token_ids or ()))),
            gate=gate,
        )
        return True

    def leave(self, slot: int) -> None:
        """The request of ``slot`` has left the batch, for good or because it was preempted."""
        row = self._rows.pop(slot, None)
        if row is None:
            return
        self._settle(wait=True)
        self._sender.ended(row.stream, row.n_tokens)
        self._sender.step()

    def apply(self, logits_BV: torch.Tensor, context: LogitsContext) -> torch.Tensor:
        """Measure and gate the rows that will sample a token of a captured request."""
        lengths = context.seq_lens_upper_bound_np
        places: list[int] = []
        rows: list[_Row] = []
        for place, slot in enumerate(context.idx_mapping_np.tolist()):
            row = self._rows.get(slot)
            if row is not None and lengths[place] >= row.prefill_len:
                places.append(place)
                rows.append(row)
        if not rows:
            return logits_BV
        self._settle(wait=any(row.gate is not None for row in rows))
        self._sender.step()
        call_ids_B = self._call_ids.index_select(0, context.expanded_idx_mapping)
        found = self._measure(logits_BV, call_ids_B)
        calls: _Calls | None = None
        if any(row.gate is not None for row in rows):
            calls = _Calls(
                logits_B=logits_BV.gather(1, call_ids_B.clamp(min=0)[:, None])[:, 0].float(),
                temperatures_B=self._temperatures.index_select(0, context.expanded_idx_mapping),
            )
        acted_B = torch.zeros_like(found.entropy_B)
        for place, row in zip(places, rows, strict=True):
            if row.gate is None or row.finished:
                continue
            self._faults.guard(
                self._gate, place, row.gate, logits_BV, found, acted_B, undo=row.leave_alone
            )
        measured = torch.stack((found.entropy_B, found.margin_B, found.p_tool_call_B, acted_B))
        everyone = len(places) == len(logits_BV)
        index_R = None if everyone else _to_device(places, logits_BV.device)
        self._step = _Step(rows=rows, index_R=index_R, measured=measured, calls=calls)
        return logits_BV

    def sampled(
        self, result: tuple[torch.Tensor, torch.Tensor], arguments: tuple[Any, ...]
    ) -> None:
        """What was sampled in the step that `apply` measured, and from which distribution.

        ``result`` and ``arguments`` are those of vLLM's `Sampler._sample_random`.
        """
        step, self._step = self._step, None
        if step is None:
            return
        token_ids_B, processed_BV = result
        top_k, top_p, fused = arguments[-3:]
        if fused:  # it cuts the tail inside its own kernel
            from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

            processed_BV = apply_top_k_top_p(processed_BV, top_k, top_p)
        chosen_B = token_ids_B.view(-1)
        logprobs_B = sampled_logprobs(processed_BV, chosen_B)
        columns = (step.measured, logprobs_B[None], chosen_B[None].to(torch.float32))
        calls = step.calls
        masked_B = (
            torch.full_like(logprobs_B, torch.nan)
            if calls is None
            else masked_probabilities(calls.logits_B, calls.temperatures_B, processed_BV)
        )
        measured = torch.cat((*columns, masked_B[None]))
        if step.index_R is not None:
            measured = measured.index_select(1, step.index_R)
        if measured.device.type == "cuda":
            step.measured = torch.empty(measured.shape, pin_memory=True)
            step.measured.copy_(measured, non_blocking=True)
            step.copied = torch.cuda.Event()
            step.copied.record()
        else:
            step.measured = measured.cpu()
        self._settling.append(step)

    def _gate(
        self,
        place: int,
        gate: GateState,
        logits_BV: torch.Tensor,
        found: RowStatistics,
        acted_B: torch.Tensor,
    ) -> None:
        """Mask or force the tool-call token of one row where the policy says so, on the device.

        A grammar's mask is never undone: a token that is impossible stays so, and the last possible
        one is not masked.
        """
        call_id = gate.numbers.call_id
        row_V = logits_BV[place]
        largest = found.largest_B[place]
        suppressed = torch.zeros((), dtype=torch.bool, device=row_V.device)
        masks = self._masks(gate, found.p_tool_call_B[place])
        if masks is not None:
            alone = torch.isinf(found.margin_B[place]) & (largest == call_id)
            suppressed = masks & (found.p_tool_call_B[place] >= COULD_BE_SAMPLED) & ~alone
            row_V[call_id] = torch.where(suppressed, -torch.inf, row_V[call_id])
            acted_B[place] = suppressed * _SUPPRESSED
        if gate.may_force():
            call = row_V[call_id].clone()
            forced = (largest != call_id) & ~torch.isneginf(call) & ~suppressed
            for blank_id in gate.numbers.blank_ids:
                forced &= largest != blank_id
            row_V.masked_fill_(forced, -torch.inf)
            row_V[call_id] = call
            acted_B[place] += forced * _FORCED

    @staticmethod
    def _masks(gate: GateState, p_tool_call: torch.Tensor) -> torch.Tensor | None:
        """Is a call to be suppressed, on the device; None where the host knows it is not."""
        if not gate.by_probability:
            return torch.ones_like(p_tool_call, dtype=torch.bool) if gate.suppresses(0.0) else None
        numbers = gate.numbers
        if not gate.decides or not (numbers.suppress_certain or numbers.suppress_uncertain):
            return None
        certain = p_tool_call < numbers.threshold
        either = (certain & numbers.suppress_certain) | (~certain & numbers.suppress_uncertain)
        return either & ~p_tool_call.isnan()

    def _settle(self, *, wait: bool) -> None:
        """Take the steps whose copies have arrived on the host; ``wait`` for all of them."""
        while self._settling:
            copied = self._settling[0].copied
            if copied is not None and not copied.query():
                if not wait:
                    return
                copied.synchronize()
            self._take(self._settling.popleft())

    def _take(self, step: _Step) -> None:
        values = step.measured.numpy()
        token_ids: list[int] = values[5].astype(np.int32).tolist()
        kept: list[int] = []
        for place, (row, token_id) in enumerate(zip(step.rows, token_ids, strict=True)):
            if row.finished:
                continue
            if values[3, place]:
                self._report(row, values[:, place])
            row.n_tokens += 1
            row.finished = token_id in row.stop_token_ids or row.n_tokens >= row.limit
            if row.gate is not None:
                entropy, margin, logprob = values[[0, 1, 4], place].tolist()
                row.gate.take(token_id, entropy, margin, logprob)
            kept.append(place)
        if not kept:
            return
        streams = [step.rows[place].stream for place in kept]
        kept_ids = [token_ids[place] for place in kept]
        self._sender.tokens(streams, kept_ids, values[4, kept], values[:3, kept])

    def _report(self, row: _Row, values: np.ndarray) -> None:
        """What the gate did before the token that is about to be counted."""
        if row.gate is None:  # it failed after this
            return
        suppressed = values[3] == _SUPPRESSED
        self._sender.gated(
            row.stream,
            row.gate,
            position=row.n_tokens,
            action="suppress" if suppressed else "force",
            p_tool_call=float(values[2]),
            p_sampled=float(values[6]) if suppressed else math.nan,
        )


def refusal(vllm_config: Any) -> str | None:
    """Why nothing is captured on a runner so configured, or None."""
    if vllm_config.speculative_config is not None:
        return "speculative decoding samples several tokens a row"
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
        return "batch-sharded sampling leaves each rank a part of the batch"
    return None


def _measure_for(
    device: torch.device,
) -> Callable[[torch.Tensor, torch.Tensor], RowStatistics]:
    if device.type != "cuda":
        return row_statistics
    from entrogate.engine.kernel import fused_row_statistics

    return fused_row_statistics


def _to_device(places: list[int], device: torch.device) -> torch.Tensor:
    pinned = torch.tensor(places, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)


def wrap_model_runner(
    *,
    arrived: Callable[[Any, dict[str, Any]], object],
    left: Callable[[int], object],
    sampled: Callable[[Any, tuple[Any, ...]], object],
) -> None:
    """Have vLLM's own methods tell what its interface does not; none of the callbacks may raise.

    ``arrived`` gets the request states and the arguments by name of their `add_request`, ``left``
    the slot that became free, ``sampled`` what `_sample_random` returned and its arguments.
    """
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu.states import RequestState

    sample: Any = getattr(Sampler, "_sample_random")  # noqa: B009
    add: Any = RequestState.add_request
    remove: Any = RequestState.remove_request

    def sample_random(sampler: Any, *arguments: Any, **named: Any) -> Any:
        result = sample(sampler, *arguments, **named)
        sampled(result, arguments)
        return result

    def add_request(self: Any, *arguments: Any, **named: Any) -> None:
        add(self, *arguments, **named)
        arrived(self, named)

    def remove_request(self: Any, req_id: str) -> int | None:
        slot = remove(self, req_id)
        if slot is not None:
            left(slot)
        return slot

    states: Any = RequestState
    states.add_request, states.remove_request = add_request, remove_request
    setattr(Sampler, "_sample_random", sample_random)  # noqa: B010
