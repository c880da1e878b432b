"""The logits processor driven step by step as vLLM's V1 runner drives it: adds, moves, removals.

The runner here is a few lines that keep vLLM's promises about its batch (its own `BatchUpdate`
objects, the lists that grow, rows that move into the places of finished ones); the sampler is
vLLM's order of operations. What comes out is read from the real socket.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq

pytest.importorskip("vllm")

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from entrogate.engine.frames import TOKEN, Message, decode
from entrogate.engine.gate import GateNumbers
from entrogate.engine.guarded import GuardedSender
from entrogate.engine.processor import EntrogateProcessor

GATEWAY = "00112233aabbccdd"
VOCABULARY, CALL, OPEN, CLOSE = 64, 5, 6, 7


@dataclass
class Request:
    """A choice in the runner: what it was asked, and what a reference says of its tokens."""

    key: str
    extra: dict[str, Any] | None
    temperature: float = 1.0
    prefill: int = 0  # steps in which it has a row and no token is kept
    output: list[int] = field(default_factory=list)
    expected: list[tuple[int, float, float]] = field(default_factory=list)


class Runner:
    """A batch of vLLM's V1 model runner, without the model."""

    def __init__(self, processor: EntrogateProcessor, seed: int) -> None:
        self.processor = processor
        self.batch: list[Request] = []
        self.removed: list[int] = []
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, finished: list[Request], fresh: list[Request]) -> None:
        """Remove, add into free places first, then close the gaps from the end."""
        free = sorted(self.batch.index(request) for request in finished)
        added, moved = [], []
        for request in fresh:
            params = SamplingParams(extra_args=request.extra, temperature=request.temperature)
            index = free.pop(0) if free else len(self.batch)
            self.batch[index : index + 1] = [request]
            added.append((index, params, [1, 2, OPEN], request.output))
        while free:
            last = len(self.batch) - 1
            if last in free:
                free.remove(last)
                self.removed.append(last)
                self.batch.pop()
                continue
            index = free.pop(0)
            moved.append((last, index, MoveDirectionality.UNIDIRECTIONAL))
            self.batch[index] = self.batch.pop()
        removed, self.removed = self.removed, []
        update = None
        if removed or added or moved:
            update = BatchUpdate(
                batch_size=len(self.batch), removed=removed, added=added, moved=moved
            )
        self.processor.update_state(update)

    def swap(self, first: int, second: int) -> None:
        self.batch[first], self.batch[second] = self.batch[second], self.batch[first]
        moved = [(first, second, MoveDirectionality.SWAP)]
        update = BatchUpdate(batch_size=len(self.batch), removed=[], added=[], moved=moved)
        self.processor.update_state(update)

    def step(self, logits: torch.Tensor | None = None) -> torch.Tensor:
        """Decode one token for every request of the batch; returns the logits as masked."""
        if logits is None:
            logits = torch.randn(len(self.batch), VOCABULARY, generator=self.generator) * 3
        raw = logits.double()
        masked = self.processor.apply(logits)
        kept = masked.clone()
        masked.div_(torch.tensor([[r.temperature] for r in self.batch]))
        sampled = torch.multinomial(masked.softmax(-1), 1, generator=self.generator)[:, 0]
        p = raw.softmax(-1)
        entropy = torch.special.entr(p).sum(-1)
        logprob = masked.double().log_softmax(-1).gather(1, sampled[:, None])[:, 0]
        for index, request in enumerate(self.batch):
            if request.prefill:
                request.prefill -= 1
                continue
            token = int(sampled[index])
            request.output.append(token)
            request.expected.append((token, float(entropy[index]), float(logprob[index])))
        return kept


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    made = f"ipc://{tmp_path}/captures"
    monkeypatch.setenv("ENTROGATE_ENGINE_ADDRESS", made)
    return made


@pytest.fixture
def processor(address: str) -> Generator[EntrogateProcessor]:
    config: Any = SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=False),
        parallel_config=SimpleNamespace(data_parallel_rank=0),
        model_config=SimpleNamespace(get_vocab_size=lambda: VOCABULARY),
    )
    made = EntrogateProcessor(config, torch.device("cpu"), False)
    yield made
    assert made._v1 is not None
    sender = made._v1._sender
    assert isinstance(sender, GuardedSender)
    sender.inner.close()


@pytest.fixture
def socket(address: str, processor: EntrogateProcessor) -> Generator[zmq.Socket]:
    made = zmq.Context.instance().socket(zmq.SUB)
    made.subscribe(GATEWAY)
    made.connect(address)
    assert made.poll(100) == 0  # the subscription is through
    yield made
    made.close(linger=0)


def received(
    socket: zmq.Socket, patience_ms: int = 200, until: str | None = None
) -> dict[str, list[Any]]:
    """Per request key: the tokens of all its streams, and whether it ended as counted.

    Of what comes within the patience; with ``until``, no more than up to the end of that request.
    """
    names: dict[int, str] = {}
    found: dict[str, list[Any]] = {}
    while found.get(until or "", [None])[-1] is None and socket.poll(patience_ms):
        message: Message = decode(socket.recv_multipart()[1])
        for began in message.began:
            names[began.stream] = began.request
            found.setdefault(began.request, [[], [], None])
        for token in np.frombuffer(message.tokens, dtype=TOKEN):
            if int(token["stream"]) in names:
                found[names[int(token["stream"])]][0].append(token)
        for gated in message.gated:
            found[names[gated.stream]][1].append(gated)
        for ended in message.ended:
            if ended.stream in names:
                found[names[ended.stream]][2] = ended.n_tokens
    return found


def captured(key: str, **more: Any) -> dict[str, Any]:
    return {"entrogate": f"{GATEWAY}/{key}/{CALL}", **more}


@pytest.mark.parametrize("seed", range(8))
def test_every_token_of_a_random_life_of_the_batch(
    seed: int, processor: EntrogateProcessor, socket: zmq.Socket
) -> None:
    """Adds, ends, preemptions, swaps, prompts in pieces and rows that are nobody's, at random."""
    rng = random.Random(seed)
    runner = Runner(processor, seed)
    everyone: list[Request] = []
    waiting: list[Request] = []
    for _ in range(60):
        leaving = [r for r in runner.batch if rng.random() < 0.08]
        fresh = [waiting.pop() for _ in range(len(waiting)) if rng.random() < 0.5]
        for _ in range(rng.choice((0, 0, 1, 2))):
            extra = captured(f"r{len(everyone)}") if rng.random() < 0.8 else None
            request = Request(
                key=f"r{len(everyone)}",
                extra=extra,
                temperature=rng.choice((0.5, 1.0, 1.7)),
                prefill=rng.choice((0, 0, 2)),
            )
            everyone.append(request)
            fresh.append(request)
        waiting += [r for r in leaving if rng.random() < 0.3]  # preempted: comes back
        runner.update(leaving, fresh)
        if len(runner.batch) > 1 and rng.random() < 0.2:
            runner.swap(*rng.sample(range(len(runner.batch)), 2))
        if runner.batch:
            runner.step()
    runner.update(list(runner.batch), [])
    found = received(socket)
    watched = [r for r in everyone if r.extra is not None]
    assert set(found) == {r.key for r in watched}
    assert sum(len(r.output) for r in watched) > 100
    for request in watched:
        tokens, gated, ended = found[request.key]
        assert not gated
        assert ended == len(request.output)
        assert [int(t["token_id"]) for t in tokens] == request.output
        for token, (_, entropy, logprob) in zip(tokens, request.expected, strict=True):
            assert float(token["entropy"]) == pytest.approx(entropy, rel=1e-5)
            assert float(token["logprob"]) == pytest.approx(logprob, rel=1e-4, abs=1e-5)


def gate(**changed: Any) -> list[float]:
    values: dict[str, Any] = {
        "call_id": CALL,
        "think_open_id": OPEN,
        "think_close_id": CLOSE,
        "statistic": 0,
        "threshold": 100.0,
        "min_tokens": 1,
        "suppress_certain": True,
        "suppress_uncertain": False,
        "force_above": float("inf"),
        "blank_ids": frozenset(),
        "control_ids": frozenset({8}),
        "call_close_id": 9,
    }
    return GateNumbers(**(values | changed)).pack()


def likely(*ids: int) -> torch.Tensor:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, list(ids)] = 50.0
    return logits


def test_a_certain_call_is_masked_and_reported(
    processor: EntrogateProcessor, socket: zmq.Socket
) -> None:
    runner = Runner(processor, 0)
    request = Request(key="a", extra=captured("a", entrogate_gate=gate()))
    runner.update([], [request])
    assert runner.step(likely(CALL))[0, CALL] == 50.0  # nothing was reasoned yet
    runner.update([request], [Request(key="b", extra=captured("b", entrogate_gate=gate()))])
    runner.step(likely(20))
    runner.update([], [])
    masked = runner.step(likely(CALL))
    assert masked[0, CALL] == -torch.inf
    assert torch.isfinite(masked[0]).sum() == VOCABULARY - 1
    runner.update(list(runner.batch), [])
    (event,) = received(socket)["b"][1]
    assert (event.action, event.position, event.n_tokens) == ("suppress", 1, 1)
    assert event.p_tool_call == pytest.approx(1.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_a_masked_call_is_reported_with_the_probability_of_being_sampled(
    processor: EntrogateProcessor, socket: zmq.Socket, temperature: float
) -> None:
    runner = Runner(processor, 1)
    extra = captured("a", entrogate_gate=gate())
    request = Request(key="a", extra=extra, temperature=temperature, prefill=2)
    runner.update([], [request])
    for _ in range(2):
        runner.step(likely(CALL))  # a part of the prompt was read: no token is sampled here
        runner.update([], [])
    runner.step(likely(20))
    runner.update([], [])
    logits = torch.zeros(1, VOCABULARY)
    logits[0, CALL], logits[0, 30] = 3.0, 4.0
    scaled = logits.double() / temperature
    runner.step(logits)
    runner.update(list(runner.batch), [])

    (event,) = received(socket)["a"][1]

    assert event.position == 1
    assert event.p_tool_call == pytest.approx(
        (scaled * temperature).softmax(-1)[0, CALL].item(), rel=1e-5
    )
    assert event.p_sampled == pytest.approx(scaled.softmax(-1)[0, CALL].item(), rel=1e-5)


def test_the_only_possible_token_is_not_masked(processor: EntrogateProcessor) -> None:
    runner = Runner(processor, 0)
    runner.update([], [Request(key="a", extra=captured("a", entrogate_gate=gate()))])
    runner.step(likely(20))
    runner.update([], [])
    only = torch.full((1, VOCABULARY), -torch.inf)
    only[0, CALL] = 1.0
    assert runner.step(only)[0, CALL] == 1.0


def test_an_uncertain_answer_becomes_a_call(
    processor: EntrogateProcessor, socket: zmq.Socket
) -> None:
    runner = Runner(processor, 0)
    numbers = gate(suppress_certain=False, force_above=0.5)
    request = Request(key="a", extra=captured("a", entrogate_gate=numbers))
    runner.update([], [request])
    runner.step(likely(20, 21, 22))  # ln 3 nats
    runner.update([], [])
    runner.step(likely(CLOSE))
    runner.update([], [])
    forced = runner.step(likely(30))
    assert torch.isfinite(forced[0]).nonzero()[:, 0].tolist() == [CALL]
    assert request.output[-1] == CALL
    runner.update([], [])
    assert runner.step(likely(30))[0, 30] == 50.0, "once is enough"
    runner.update(list(runner.batch), [])
    (event,) = received(socket)["a"][1]
    assert (event.action, event.position) == ("force", 2)
    assert event.value == pytest.approx(np.log(3), rel=1e-5)
    assert np.isnan(event.p_sampled)


def test_a_grammar_that_forbids_calls_is_obeyed(processor: EntrogateProcessor) -> None:
    runner = Runner(processor, 0)
    numbers = gate(suppress_certain=False, force_above=0.5)
    runner.update([], [Request(key="a", extra=captured("a", entrogate_gate=numbers))])
    runner.step(likely(20, 21, 22))
    runner.update([], [])
    runner.step(likely(CLOSE))
    runner.update([], [])
    logits = likely(30)
    logits[0, CALL] = -torch.inf
    assert runner.step(logits)[0, 30] == 50.0


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"entrogate": GATEWAY}, "GATEWAY/REQUEST/TOKEN_ID"),
        ({"entrogate": f"{GATEWAY}/1/x"}, "GATEWAY/REQUEST/TOKEN_ID"),
        ({"entrogate": "00/1/32"}, "GATEWAY/REQUEST/TOKEN_ID"),
        ({"entrogate": f"{GATEWAY}/1/99999999"}, "vocabulary ends"),
        ({"entrogate": f"{GATEWAY}/1/5", "entrogate_choice": "abc"}, "index of a choice"),
        ({"entrogate": f"{GATEWAY}/1/5", "entrogate_gate": [1]}, "12 to"),
        ({"entrogate": f"{GATEWAY}/1/5", "entrogate_gate": "abc"}, "list"),
    ],
)
def test_malformed_arguments_are_refused_at_admission(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EntrogateProcessor.validate_params(SamplingParams(extra_args=extra))


def test_both_of_vllms_loaders_take_it() -> None:
    """A class that either loader refuses would keep vLLM from starting."""
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    name = "entrogate.engine.processor:EntrogateProcessor"
    assert _load_logitsprocs_by_fqcns([name]) == [EntrogateProcessor]
    assert _load_v2_logitsprocs_by_fqcns([name]) == [EntrogateProcessor]


@pytest.mark.parametrize(
    ("runner", "config"),
    [
        ((torch.device("cpu"), False), {"scheduler_config": {"async_scheduling": True}}),
        ((SimpleNamespace(),), {"speculative_config": {}}),
        ((SimpleNamespace(),), {"parallel_config": {"enable_batch_sharded_sampling": True}}),
    ],
    ids=["v1-asynchronous", "v2-speculative", "v2-sharded"],
)
def test_where_it_cannot_capture_it_says_so_and_stays_out(
    runner: tuple[Any, ...], config: dict[str, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    parts: dict[str, Any] = {name: SimpleNamespace(**fields) for name, fields in config.items()}
    parts = {"speculative_config": None, "parallel_config": SimpleNamespace(), **parts}
    described: Any = SimpleNamespace(**parts)
    made = EntrogateProcessor(described, *runner)
    assert "no capture and no gate inside the engine" in caplog.text
    params = SamplingParams(extra_args=captured("a"))
    made.update_state(None)
    assert not made.add_request(0, params)
    logits = torch.zeros(1, VOCABULARY)
    assert made.apply(logits, SimpleNamespace()) is logits


def test_without_captured_requests_the_logits_go_by_untouched(
    processor: EntrogateProcessor,
) -> None:
    runner = Runner(processor, 0)
    runner.update([], [Request(key="a", extra=None)])
    logits = torch.randn(1, VOCABULARY)
    assert processor.apply(logits) is logits
    assert processor._v1 is not None
    assert processor._v1._step is None
