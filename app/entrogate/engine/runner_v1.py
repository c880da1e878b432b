# ruff: noqa: N803, N806, N815 (shape suffixes)
"""Measures, gates and captures on model runner V1, step by step.

vLLM calls `apply` with the logits of a step and, before the next step, `update_state`. Which token
was sampled, and whether the engine kept it (a request that is still reading its prompt has rows,
too), is known only then: so a step is settled at the beginning of the next one. The logits of the
step are kept until then; the sampler has scaled and masked them in place, so that they are by then
the distribution that was sampled from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from entrogate.engine.arguments import read_arguments
from entrogate.engine.gate import GateState
from entrogate.engine.measure import (
    COULD_BE_SAMPLED,
    SMALL,
    masked_probabilities,
    row_statistics,
    sampled_logprobs,
    small_row_statistics,
    small_sampled_logprobs,
)

if TYPE_CHECKING:
    from vllm import SamplingParams

    from entrogate.engine.faults import Faults
    from entrogate.engine.sender import Sender, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class _Act:
    """What the gate did to a row in a step; ``call_logit`` is the tool-call token's before that."""

    gate: GateState
    action: str
    p_tool_call: float
    call_logit: float


@dataclass(slots=True, kw_only=True)
class _Row:
    """One captured choice in the batch."""

    stream: Stream
    output: list[int]  # vLLM's own list, which grows as it keeps tokens
    n_tokens: int
    call_id: int  # the tool-call token, -1 where none is known
    temperature: float
    gate: GateState | None
    act: _Act | None = None  # of the step under way
    broken: bool = False  # it grew in a way that the captured rows do not explain

    def leave_alone(self) -> None:
        """Its gate failed: what is left to decide is decided in the gateway."""
        self.gate = None


@dataclass(slots=True, kw_only=True)
class _Step:
    """What was measured in a step, until it is settled. ``measured`` has shape (3, B)."""

    rows: list[tuple[int, _Row]]
    measured: np.ndarray
    logits_BV: torch.Tensor


class RunnerV1:
    """Captures the requests that carry `frames.REQUEST_ARGUMENT`; the others cost nothing.

    What raises in `update_state` or `apply` is for the caller to catch, who then calls `give_up`.
    """

    def __init__(self, sender: Sender, vocab_size: int, faults: Faults) -> None:
        self._sender = sender
        self._vocab_size = vocab_size
        self._faults = faults
        self._rows: dict[int, _Row] = {}
        self._step: _Step | None = None

    def give_up(self) -> None:
        """Something failed: the captures and gates under way end, new requests begin anew."""
        rows, self._rows, self._step = self._rows, {}, None
        for row in rows.values():
            self._sender.ended(row.stream, -1)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """What came, went and moved since the last step; None: nothing did."""
        self._settle()
        if batch_update is None:
            if self._rows:
                self._sender.step()
            return
        before = len(self._rows)
        for index in batch_update.removed:
            self._end(index)
        for index, params, prompt, output in batch_update.added:
            self._end(index)
            self._begin(index, params, prompt, output)
        for first, second, direction in batch_update.moved:
            self._move(first, second, swap=direction is MoveDirectionality.SWAP)
        if before or self._rows:
            self._sender.step()

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Measure the rows of the batch, (B, V), and gate them in place."""
        if not self._rows:
            return logits
        rows = [item for item in self._rows.items() if item[0] < len(logits)]
        call_ids_B = np.full(len(logits), -1, dtype=np.int64)
        for index, row in rows:
            call_ids_B[index] = row.call_id
        if logits.numel() <= SMALL and logits.device.type == "cpu":
            measured, largest_B = small_row_statistics(logits.numpy(), call_ids_B)
        else:
            found = row_statistics(logits, torch.as_tensor(call_ids_B, device=logits.device))
            columns = (found.entropy_B, found.margin_B, found.p_tool_call_B)
            measured = torch.stack(columns).cpu().numpy()
            largest_B = found.largest_B.cpu().numpy()
        for index, row in rows:
            row.act = None
            if row.gate is None:
                continue
            self._faults.guard(
                self._gate,
                index,
                row,
                logits,
                measured[:, index],
                int(largest_B[index]),
                undo=row.leave_alone,
            )
        self._step = _Step(rows=rows, measured=measured, logits_BV=logits)
        return logits

    def _settle(self) -> None:
        """Take the tokens that the engine kept of the last step."""
        step, self._step = self._step, None
        if step is None:
            return
        kept: list[int] = []
        token_ids: list[int] = []
        for index, row in step.rows:
            grown = len(row.output) - row.n_tokens
            if grown == 0 or row.broken:
                continue
            if grown != 1 or row.output[-1] < 0:
                row.broken = True
                continue
            row.n_tokens += 1
            kept.append(index)
            token_ids.append(row.output[-1])
        if not kept:
            return
        all_rows = len(kept) == len(step.logits_BV) and kept == list(range(len(kept)))
        processed = step.logits_BV if all_rows else step.logits_BV[kept]
        if processed.numel() <= SMALL and processed.device.type == "cpu":
            logprobs = small_sampled_logprobs(processed.numpy(), token_ids)
        else:
            chosen = torch.tensor(token_ids, device=processed.device)
            logprobs = sampled_logprobs(processed, chosen).cpu().numpy()
        rows = dict(step.rows)
        self._report(step, [rows[index] for index in kept], kept)
        for index, token_id, logprob in zip(kept, token_ids, logprobs, strict=True):
            gate = rows[index].gate
            if gate is not None:
                entropy, margin, _ = step.measured[:, index].tolist()
                gate.take(token_id, entropy, margin, float(logprob))
        streams = [rows[index].stream for index in kept]
        self._sender.tokens(streams, token_ids, logprobs, step.measured[:, kept])

    def _gate(
        self,
        index: int,
        row: _Row,
        logits_BV: torch.Tensor,
        measured: np.ndarray,
        largest: int,
    ) -> None:
        """Mask or force the tool-call token of one row where the policy says so.

        A grammar's mask is never undone: a token that is impossible stays so, and the last possible
        one is not masked.
        """
        gate = row.gate
        assert gate is not None
        p_tool_call, call_id = float(measured[2]), gate.numbers.call_id
        if p_tool_call >= COULD_BE_SAMPLED and gate.suppresses(p_tool_call):
            if float(measured[1]) == float("inf") and largest == call_id:
                return
            call_logit = float(logits_BV[index, call_id])
            logits_BV[index, call_id] = -torch.inf
            action = "suppress"
        elif (
            gate.may_force()
            and largest != call_id
            and largest not in gate.numbers.blank_ids
            and (call_logit := float(logits_BV[index, call_id])) != -torch.inf
        ):
            logits_BV[index] = -torch.inf
            logits_BV[index, call_id] = call_logit
            action = "force"
        else:
            return
        row.act = _Act(gate=gate, action=action, p_tool_call=p_tool_call, call_logit=call_logit)

    def _report(self, step: _Step, rows: list[_Row], places: list[int]) -> None:
        """Say what the gate did before the tokens that were just counted, with the probability of
        the call under the distribution that they were sampled from."""
        for place, row in zip(places, rows, strict=True):
            act = row.act
            if act is None:
                continue
            p_sampled = math.nan
            if act.action == "suppress":
                found = masked_probabilities(
                    torch.tensor([act.call_logit]),
                    torch.tensor([row.temperature]),
                    step.logits_BV[place : place + 1].cpu(),
                )
                p_sampled = float(found[0])
            self._sender.gated(
                row.stream,
                act.gate,
                position=row.n_tokens - 1,
                action=act.action,
                p_tool_call=act.p_tool_call,
                p_sampled=p_sampled,
            )

    def _begin(
        self, index: int, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> None:
        try:
            asked = read_arguments(params.extra_args, self._vocab_size)
        except ValueError as error:
            self._faults.refuse(error)
            return
        if asked is None:
            return
        # A choice that had been preempted has lost its measurements: its gate stays open.
        gate = None
        if asked.gate is not None and not output:
            gate = GateState.begin(asked.gate, prompt or ())
        self._rows[index] = _Row(
            stream=self._sender.began(
                asked.gateway, asked.request, asked.choice, prompt or (), resumed=len(output)
            ),
            output=output,
            n_tokens=len(output),
            call_id=-1 if asked.call_id is None else asked.call_id,
            temperature=params.temperature,
            gate=gate,
        )

    def _end(self, index: int) -> None:
        row = self._rows.pop(index, None)
        if row is not None:
            self._sender.ended(row.stream, -1 if row.broken else row.n_tokens)

    def _move(self, first: int, second: int, *, swap: bool) -> None:
        if not swap:
            self._end(second)  # vLLM fills the place of a finished request with the last one
        moved, other = self._rows.pop(first, None), self._rows.pop(second, None)
        if moved is not None:
            self._rows[second] = moved
        if other is not None:
            self._rows[first] = other


def refusal(vllm_config: Any) -> str | None:
    """Why nothing is captured on a runner so configured, or None."""
    if getattr(vllm_config.scheduler_config, "async_scheduling", False):
        return "asynchronous scheduling (start vLLM with --no-async-scheduling)"
    return None
