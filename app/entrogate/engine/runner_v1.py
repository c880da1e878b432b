# ruff: noqa: N803, N806, N815 (shape suffixes)
"""Measures, gates and captures on model runner V1, step by step.

vLLM calls `apply` with the logits of a step and, before the next step, `update_state`. Which token
was sampled, and whether the engine kept it (a request that is still reading its prompt has rows,
too), is known only then: so a step is settled at the beginning of the next one. The logits of the
step are kept until then; the sampler has scaled and masked them in place, so that they are by then
the distribution that was sampled from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from entrogate.engine.frames import (
    CHOICE_ARGUMENT,
    GATE_ARGUMENT,
    REQUEST_ARGUMENT,
    parse_request,
)
from entrogate.engine.gate import GateState
from entrogate.engine.statistics import (
    COULD_BE_SAMPLED,
    SMALL,
    row_statistics,
    sampled_logprobs,
    small_row_statistics,
    small_sampled_logprobs,
)

if TYPE_CHECKING:
    import numpy as np

    from entrogate.engine.publisher import Silence, Stream


@dataclass(slots=True, kw_only=True)
class _Row:
    """One captured choice in the batch."""

    stream: Stream
    output: list[int]  # vLLM's own list, which grows as it keeps tokens
    n_tokens: int
    gate: GateState | None
    broken: bool = False  # it grew in a way that the captured rows do not explain


@dataclass(slots=True, kw_only=True)
class _Step:
    """What was measured in a step, until it is settled. ``measured`` has shape (3, B)."""

    rows: list[tuple[int, _Row]]
    measured: np.ndarray
    logits_BV: torch.Tensor


class RunnerV1:
    """Captures the requests that carry `frames.REQUEST_ARGUMENT`; the others cost nothing."""

    def __init__(self, publisher: Silence) -> None:
        self._publisher = publisher
        self._rows: dict[int, _Row] = {}
        self._step: _Step | None = None
        self._call_id: int | None = None

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """What came, went and moved since the last step; None: nothing did."""
        self._settle()
        if batch_update is None:
            if self._rows:
                self._publisher.step()
            return
        before = len(self._rows)
        for index in batch_update.removed:
            self._end(index)
        for index, params, prompt, output in batch_update.added:
            self._end(index)
            self._begin(index, params.extra_args or {}, prompt, output)
        for first, second, direction in batch_update.moved:
            self._move(first, second, swap=direction is MoveDirectionality.SWAP)
        if before or self._rows:
            self._publisher.step()

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Measure the rows of the batch, (B, V), and gate them in place."""
        if not self._rows:
            return logits
        if logits.numel() <= SMALL and logits.device.type == "cpu":
            measured, largest_B = small_row_statistics(logits.numpy(), self._call_id)
        else:
            found = row_statistics(logits, self._call_id)
            columns = (found.entropy_B, found.margin_B, found.p_tool_call_B)
            measured = torch.stack(columns).cpu().numpy()
            largest_B = found.largest_B.cpu().numpy()
        rows = [item for item in self._rows.items() if item[0] < len(logits)]
        for index, row in rows:
            if row.gate is not None:
                self._gate(index, row, logits, measured[:, index], int(largest_B[index]))
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
            if row.gate is not None:
                row.gate.take(
                    token_ids[-1], float(step.measured[0, index]), float(step.measured[1, index])
                )
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
        streams = [rows[index].stream for index in kept]
        self._publisher.tokens(streams, token_ids, logprobs, step.measured[:, kept])

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
        if p_tool_call >= COULD_BE_SAMPLED and gate.suppresses():
            if float(measured[1]) == float("inf") and largest == call_id:
                return
            logits_BV[index, call_id] = -torch.inf
            action = "suppress"
        elif (
            gate.may_force()
            and largest != call_id
            and largest not in gate.numbers.blank_ids
            and (value := float(logits_BV[index, call_id])) != -torch.inf
        ):
            logits_BV[index] = -torch.inf
            logits_BV[index, call_id] = value
            action = "force"
        else:
            return
        self._publisher.gated(
            row.stream, gate, position=row.n_tokens, action=action, p_tool_call=p_tool_call
        )

    def _begin(
        self,
        index: int,
        arguments: Mapping[str, Any],
        prompt: list[int] | None,
        output: list[int],
    ) -> None:
        if REQUEST_ARGUMENT not in arguments:
            return
        gateway, request, call_id = parse_request(arguments)
        self._call_id = call_id if call_id is not None else self._call_id
        numbers = arguments.get(GATE_ARGUMENT)
        # A choice that had been preempted has lost its measurements: its gate stays open.
        gate = None
        if numbers is not None and not output:
            gate = GateState.begin(numbers, prompt or ())
        choice = int(arguments.get(CHOICE_ARGUMENT, 0))
        stream = self._publisher.began(gateway, request, choice, prompt or (), resumed=len(output))
        self._rows[index] = _Row(stream=stream, output=output, n_tokens=len(output), gate=gate)

    def _end(self, index: int) -> None:
        row = self._rows.pop(index, None)
        if row is not None:
            self._publisher.ended(row.stream, -1 if row.broken else row.n_tokens)

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
