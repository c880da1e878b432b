"""Whatever `vllm_xargs` say: vLLM's own result is untouched and other requests keep their captures.

Through the processor that vLLM loads, on both of its model runners. The V1 runner is that of
`test_engine_processor`; of V2 there is here what its `RequestState` and `Sampler` tell a plugin.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm")

import torch
from vllm import SamplingParams

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, when vLLM imports it
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu.states import RequestState

from entrogate.engine import sender as sending
from entrogate.engine.arguments import read_arguments
from entrogate.engine.guarded import GuardedSender
from entrogate.engine.processor import EntrogateProcessor
from tests.integration import test_engine_processor as v1
from tests.integration.test_engine_processor import (
    CALL,
    CLOSE,
    GATEWAY,
    OPEN,
    VOCABULARY,
    Request,
    gate,
    received,
)

BAD_GATE = [3, 99999999, 6, 7, 0, 0.0, 0, False, False, 0.0, -1, 0]
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.booleans(),
    st.sampled_from([CALL, OPEN, CLOSE, VOCABULARY, VOCABULARY - 1, -1, 0, 1]),
)
JSON = st.recursive(
    st.none() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)
NAMES = st.sampled_from([GATEWAY, "f" * 16, "00", "", "x", "é" * 16, "/", "a" * 5000])
REQUESTS = st.builds(
    "/".join,
    st.lists(NAMES | st.integers().map(str) | st.text("0123456789-/", max_size=9), max_size=5),
) | st.builds("{}/forged/{}".format, NAMES, st.integers(-2, VOCABULARY + 2))
GATES = st.lists(NUMBERS, max_size=280) | st.builds(
    lambda at, number: [*gate()[:at], number, *gate()[at + 1 :]],
    st.integers(0, len(gate()) - 1),
    NUMBERS | st.text(max_size=3),
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "entrogate": REQUESTS | JSON,
        "entrogate_choice": st.integers(-2, 70_000) | JSON,
        "entrogate_gate": GATES | JSON,
        "other": JSON,
    },
)


class RunnerV2:
    """A batch of vLLM's V2 model runner, without the model: slots, and rows in any order."""

    def __init__(self, processor: EntrogateProcessor, states: Any, seed: int) -> None:
        self.processor = processor
        self.states = states
        self.slots: dict[str, int] = {}
        self.batch: dict[int, Request] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.names = map(str, itertools.count())

    def update(self, finished: list[Request], fresh: list[Request]) -> None:
        table: Any = SimpleNamespace(req_id_to_index=self.slots)
        for slot, request in list(self.batch.items()):
            if request in finished:
                del self.batch[slot]
                name = next(n for n, s in self.slots.items() if s == slot)
                RequestState.remove_request(table, name)
        for request in fresh:
            slot = next(n for n in range(self.states.max_num_reqs) if n not in self.batch)
            self.batch[slot] = request
            self.states.prompt_len.np[slot] = 3
            prompt = [1, 2, OPEN, *request.output]
            more: Any = {"prompt_len": 3, "num_computed_tokens": 0, "max_tokens": 50}
            name = next(self.names)
            RequestState.add_request(table, req_id=name, all_token_ids=prompt, **more)
            params = SamplingParams(extra_args=request.extra, max_tokens=50)
            self.processor.add_request(self.slots[name], params)

    def step(self, logits: torch.Tensor | None = None) -> torch.Tensor:
        """As `test_engine_processor.Runner.step`, the last slot first."""
        rows = sorted(self.batch.items(), reverse=True)
        if logits is None:
            logits = torch.randn(len(rows), VOCABULARY, generator=self.generator) * 3
        raw = logits.double()
        slots = [slot for slot, _ in rows]
        lengths = [3 + len(request.output) for _, request in rows]
        context = SimpleNamespace(
            idx_mapping_np=np.array(slots),
            expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
            seq_lens_upper_bound_np=np.array(lengths),
        )
        masked = self.processor.apply(logits, context)
        kept = masked.clone()
        sampler: Any = SimpleNamespace(generator=self.generator)
        unused: Any = (None, None, None, None, None, False)
        sampled, processed = Sampler._sample_random(sampler, masked, *unused)
        entropy = torch.special.entr(raw.softmax(-1)).sum(-1)
        logprob = processed.double().log_softmax(-1).gather(1, sampled[:, None])[:, 0]
        for place, (_, request) in enumerate(rows):
            token = int(sampled[place])
            request.output.append(token)
            request.expected.append((token, float(entropy[place]), float(logprob[place])))
        return kept


def sample(sampler: Any, logits: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    sampled = torch.multinomial(logits.softmax(-1), 1, generator=sampler.generator)[:, 0]
    return sampled, logits


def take_slot(table: Any, *, req_id: str, all_token_ids: list[int], **_: int) -> None:
    del all_token_ids
    table.req_id_to_index[req_id] = min(set(range(64)) - set(table.req_id_to_index.values()))


def free_slot(table: Any, req_id: str) -> int | None:
    return table.req_id_to_index.pop(req_id, None)


@contextmanager
def running(address: str, version: int, seed: int = 0) -> Generator[tuple[Any, GuardedSender]]:
    """A batch on model runner V1 or V2 and its sender."""
    config: Any = SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=False),
        speculative_config=None,
        parallel_config=SimpleNamespace(data_parallel_rank=0),
        model_config=SimpleNamespace(get_vocab_size=lambda: VOCABULARY, max_model_len=1000),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTROGATE_ENGINE_ADDRESS", address)
        patch.setattr(Sampler, "_sample_random", sample)
        patch.setattr(RequestState, "add_request", take_slot)
        patch.setattr(RequestState, "remove_request", free_slot)
        if version == 1:
            processor = EntrogateProcessor(config, torch.device("cpu"), False)
            runner: Any = v1.Runner(processor, seed)
            inner: Any = processor._v1
        else:
            states: Any = SimpleNamespace(
                device=torch.device("cpu"),
                max_num_reqs=64,
                vocab_size=VOCABULARY,
                prompt_len=SimpleNamespace(np=np.zeros(64, dtype=np.int32)),
            )
            processor = EntrogateProcessor(config, states)
            runner = RunnerV2(processor, states, seed)
            inner = processor._v2
        guarded = inner._sender
        assert isinstance(guarded, GuardedSender)
        try:
            yield runner, guarded
        finally:
            guarded.inner.close()


@pytest.fixture(scope="module", params=[1, 2], ids=["v1", "v2"])
def batch(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[Any, GuardedSender, zmq.Socket]]:
    address = f"ipc://{tmp_path_factory.mktemp('engine')}/captures"
    with running(address, request.param) as (runner, guarded):
        socket = zmq.Context.instance().socket(zmq.SUB)
        socket.subscribe(GATEWAY)
        socket.connect(address)
        assert socket.poll(100) == 0
        yield runner, guarded, socket
        socket.close(linger=0)


keys = itertools.count()


@given(everyone=st.lists(ARGUMENTS, min_size=1, max_size=4))
@example(everyone=[{"entrogate": f"{GATEWAY}/forged/5", "entrogate_choice": "abc"}])
@example(everyone=[{"entrogate": "x/y/99999999"}])
@example(everyone=[{"entrogate": f"{GATEWAY}/forged/99999999"}])
@example(everyone=[{"entrogate": f"{GATEWAY}/forged/5", "entrogate_gate": BAD_GATE}])
@example(everyone=[{"entrogate": f"{GATEWAY}/forged/99999999", "entrogate_gate": BAD_GATE}])
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_is_asked_vllm_decodes_and_others_are_captured(
    batch: tuple[Any, GuardedSender, zmq.Socket], everyone: list[dict[str, Any]]
) -> None:
    runner, _, socket = batch
    faults = runner.processor.faults
    refused, raised = faults.refused, faults.raised
    key = f"k{next(keys)}"
    honest = Request(key=key, extra={"entrogate": f"{GATEWAY}/{key}/{CALL}"})
    others = [Request(key="forged", extra=arguments) for arguments in everyone]
    bad = [arguments for arguments in everyone if not is_taken(arguments)]
    gated = any(is_taken(arguments) and "entrogate_gate" in arguments for arguments in everyone)
    runner.update([], [*others, honest])
    for _ in range(3):
        logits = torch.randn(len(others) + 1, VOCABULARY) * 3
        before = logits.clone()
        kept = runner.step(logits)
        if not gated:
            assert torch.equal(kept, before)
        if isinstance(runner, v1.Runner):
            runner.update([], [])
    runner.update([*others, honest], [])
    assert faults.raised == raised
    assert faults.refused - refused == len(bad)
    tokens, _, ended = received(socket, 5_000, until=key)[key]
    assert ended == len(honest.output) == 3
    assert [int(t["token_id"]) for t in tokens] == honest.output
    for token, (_, entropy, _) in zip(tokens, honest.expected, strict=True):
        assert float(token["entropy"]) == pytest.approx(entropy, rel=1e-5)


def is_taken(arguments: dict[str, Any]) -> bool:
    """As the runners, which know the vocabulary, see it; nothing but ValueError is raised."""
    try:
        read_arguments(arguments, VOCABULARY)
    except ValueError:
        return False
    return True


@given(arguments=ARGUMENTS)
@example(arguments={"entrogate": [[[[]]]]})
@settings(max_examples=150, deadline=None)
def test_validation_takes_it_or_raises_value_error(arguments: dict[str, Any]) -> None:
    params = SamplingParams()
    params.extra_args = arguments
    says = ""
    try:
        EntrogateProcessor.validate_params(params)
    except ValueError as error:
        says = str(error)
    if says:
        assert "entrogate" in says
        assert len(says) < 300
    else:
        asked = read_arguments(arguments)
        assert asked is None or len(asked.gateway) == 16


def test_each_request_has_its_own_tool_call_token(
    batch: tuple[Any, GuardedSender, zmq.Socket],
) -> None:
    """One tenant's argument must not change what is measured for another."""
    runner, _, socket = batch
    ids = {"own5": 5, "own32": 32, "none": -1}
    requests = [
        Request(key=key, extra={"entrogate": f"{GATEWAY}/{key}/{token}"})
        for key, token in ids.items()
    ]
    runner.update([], requests)
    logits = torch.randn(3, VOCABULARY)
    order = requests if isinstance(runner, v1.Runner) else list(reversed(requests))
    p = logits.double().softmax(-1)
    runner.step(logits)
    runner.update(requests, [])
    found = received(socket, 5_000, until=order[-1].key)
    for place, request in enumerate(order):
        (token,) = found[request.key][0]
        expected = p[place, ids[request.key]].item() if ids[request.key] >= 0 else np.nan
        assert float(token["p_tool_call"]) == pytest.approx(expected, rel=1e-5, nan_ok=True)


PARTS: list[Callable[[Any], tuple[Any, str]]] = [
    lambda inner: (inner, "apply"),
    lambda inner: (inner, "_settle"),
    lambda inner: (inner, "_gate"),
    lambda inner: (inner._sender.inner, "began"),
    lambda inner: (inner._sender.inner, "tokens"),
    lambda inner: (inner._sender.inner, "ended"),
    lambda inner: (inner._sender.inner, "step"),
]


@pytest.mark.parametrize("part", PARTS)
def test_a_fault_of_ours_costs_captures_and_nothing_else(
    batch: tuple[Any, GuardedSender, zmq.Socket],
    part: Callable[[Any], tuple[Any, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner, _, socket = batch
    inner = runner.processor._v1 or runner.processor._v2
    holder, name = part(inner)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("on purpose")

    raised = runner.processor.faults.raised
    key = f"k{next(keys)}"
    extra: dict[str, Any] = {"entrogate": f"{GATEWAY}/{key}/5"}
    if holder is inner:  # what is wrong with publishing changes nothing for the gate
        extra["entrogate_gate"] = gate()
    request = Request(key=key, extra=extra)
    with monkeypatch.context() as patch:
        patch.setattr(type(holder), name, broken)
        runner.update([], [request])
        for _ in range(2):
            logits = torch.randn(1, VOCABULARY)
            before = logits.clone()
            assert torch.equal(runner.step(logits), before)
            if isinstance(runner, v1.Runner):
                runner.update([], [])
        runner.update([request], [])
    assert runner.processor.faults.raised > raised
    received(socket, 50)
    key = f"k{next(keys)}"
    after = Request(key=key, extra={"entrogate": f"{GATEWAY}/{key}/5"})
    runner.update([], [after])
    runner.step()
    runner.update([after], [])
    tokens, _, ended = received(socket, 5_000, until=key)[key]
    assert ended == len(tokens) == 1


def test_made_up_gateways_are_forgotten(batch: tuple[Any, GuardedSender, zmq.Socket]) -> None:
    runner, guarded, socket = batch
    sender = guarded.inner
    for number in range(3 * sending.MAX_GATEWAYS):
        request = Request(key="a", extra={"entrogate": f"{number:016x}/a/5"})
        runner.update([], [request])
        runner.step()
        runner.update([request], [])
    assert len(sender._outgoing) <= sending.MAX_GATEWAYS
    key = f"k{next(keys)}"
    honest = Request(key=key, extra={"entrogate": f"{GATEWAY}/{key}/5"})
    runner.update([], [honest])
    runner.step()
    runner.update([honest], [])
    assert received(socket, 5_000, until=key)[key][2] == 1
    sender._expired_at -= 2 * sending.EXPIRE_SECONDS
    sender.flush()
    sender._expired_at -= 2 * sending.EXPIRE_SECONDS
    for outgoing in sender._outgoing.values():
        outgoing.named_at -= 4 * sending.EXPIRE_SECONDS
    sender.flush()
    assert not sender._outgoing
