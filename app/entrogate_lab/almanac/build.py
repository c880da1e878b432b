# ruff: noqa: N803, N806, N815 (shape suffixes)
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""Building a model: tokenizer, training from scratch, and a standard Hugging Face folder.

A build is a function of the seed and the plan. It can be interrupted at any moment and goes on from
its last checkpoint, which lies in the output folder until the build is complete.
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from entrogate_lab.almanac.corpus import DRILLED_UNTIL, training_item
from entrogate_lab.almanac.corpus_direct import training_item as direct_item
from entrogate_lab.almanac.network import Network, Shape
from entrogate_lab.almanac.optimiser import Optimiser, rate_factor
from entrogate_lab.almanac.tokenizer import padded_vocabulary, save_tokenizer, train_tokenizer
from entrogate_lab.almanac.transcript import (
    ADDED_TOKENS,
    CALL,
    END,
    PAD,
    THINK,
    THOUGHT,
    Piece,
)
from entrogate_lab.almanac.world import World, make_world

CHECKPOINT = "checkpoint.pt"
Report = Callable[[str], None]
_Encoded = tuple[list[int], list[bool], list[bool]]
"""Token ids; which are the model's own; which are barred. All parallel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to train on, and whether the model reasons before it calls or answers.

    A pool of items is sorted by length and cut into batches.
    """

    pools: int = 136
    pool_items: int = 384
    batch_tokens: int = 3584
    drill_batch_tokens: int = 1024
    tokenizer_items: int = 3000
    checkpoint_pools: int = 4
    matrix_rate: float = 0.02
    other_rate: float = 4e-3
    reasoning: bool = True

    def written(self) -> dict[str, Any]:
        """As stored beside the model and in checkpoints; `reasoning` only where it is left out."""
        fields = asdict(self)
        if self.reasoning:
            del fields["reasoning"]
        return fields


DIRECT_PLAN = Plan(batch_tokens=2560, reasoning=False)
"""The plan of a model that calls and answers straight away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Padded token ids (B, T), where a token is the model's own (B, T), and where it is learnt as
    what is said when no call can be made (B, T)."""

    ids_BT: Tensor
    own_BT: Tensor
    barred_BT: Tensor


def build(seed: int, out: Path, plan: Plan, threads: int, report: Report) -> None:
    """Build the model of `seed` into `out`, going on from a checkpoint if one is there."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    world = make_world(seed)
    tokenizer = _tokenizer(world, seed, plan)
    shape = Shape(vocab=padded_vocabulary(tokenizer))
    network = Network(shape)
    call = tokenizer.token_to_id(CALL)
    assert call is not None
    optimiser = Optimiser(network, matrix_rate=plan.matrix_rate, other_rate=plan.other_rate)
    first = _resume(out / CHECKPOINT, seed, plan, network, optimiser)
    size = sum(parameter.numel() for parameter in network.parameters())
    report(f"seed {seed}: {size / 1e6:.2f} M parameters, vocabulary {shape.vocab}, pool {first}")
    _train(
        network,
        optimiser,
        world,
        tokenizer,
        call=call,
        seed=seed,
        first=first,
        plan=plan,
        out=out,
        report=report,
    )
    save(out, network, shape, tokenizer, seed=seed, plan=plan)
    (out / CHECKPOINT).unlink(missing_ok=True)
    report(f"written to {out}")


def save(
    out: Path, network: Network, shape: Shape, tokenizer: Tokenizer, *, seed: int, plan: Plan
) -> None:
    """Write the Hugging Face folder."""
    stop, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    ids = {"bos_token_id": None, "eos_token_id": stop, "pad_token_id": pad}
    _write(out / "config.json", {**shape.huggingface(), **ids})
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0}
    _write(
        out / "generation_config.json", {"eos_token_id": [stop], "pad_token_id": pad, **sampling}
    )
    _write(out / "almanac.json", {"schema_version": 1, "seed": seed, "plan": plan.written()})
    save_tokenizer(tokenizer, out)
    weights = {
        name: parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in network.named_parameters()
    }
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})


def pool_batches(
    world: World, tokenizer: Tokenizer, seed: int, pool: int, plan: Plan
) -> list[Batch]:
    """The batches of one pool, in training order."""
    progress = pool / plan.pools
    first = pool * plan.pool_items
    items = [
        _encode(tokenizer, _item(plan)(world, seed, first + index, progress))
        for index in range(plan.pool_items)
    ]
    items.sort(key=lambda item: len(item[0]))
    drilling = progress < DRILLED_UNTIL
    groups = list(_cut(items, plan.drill_batch_tokens if drilling else plan.batch_tokens))
    random.Random(f"almanac-order-{seed}-{pool}").shuffle(groups)
    pad = tokenizer.token_to_id(PAD)
    assert pad is not None
    return [_pad(group, pad) for group in groups]


def _train(
    network: Network,
    optimiser: Optimiser,
    world: World,
    tokenizer: Tokenizer,
    *,
    call: int,
    seed: int,
    first: int,
    plan: Plan,
    out: Path,
    report: Report,
) -> None:
    started = time.monotonic()
    for pool in range(first, plan.pools):
        batches = pool_batches(world, tokenizer, seed, pool, plan)
        total, tokens, begun = 0.0, 0, time.monotonic()
        for index, batch in enumerate(batches):
            progress = (pool + index / len(batches)) / plan.pools
            total += _step(network, optimiser, batch, progress, call)
            tokens += batch.ids_BT.numel()
        elapsed, done = time.monotonic() - started, pool + 1 - first
        left = elapsed / done * (plan.pools - pool - 1)
        speed = tokens / (time.monotonic() - begun)
        report(
            f"pool {pool + 1}/{plan.pools}  loss {total / len(batches):.3f}  "
            f"{speed:.0f} tokens/s  {_minutes(elapsed)} so far, {_minutes(left)} to go"
        )
        if (pool + 1) % plan.checkpoint_pools == 0:
            _checkpoint(out / CHECKPOINT, network, optimiser, seed=seed, pool=pool + 1, plan=plan)


def _step(
    network: Network, optimiser: Optimiser, batch: Batch, progress: float, call: int
) -> float:
    own_BT = batch.own_BT[:, 1:]
    logits_NV = network(batch.ids_BT[:, :-1], own_BT)
    barred_N = batch.barred_BT[:, 1:][own_BT]
    if barred_N.any():
        logits_NV = without_call(logits_NV, barred_N, call=call)
    loss = functional.cross_entropy(logits_NV, batch.ids_BT[:, 1:][own_BT])
    loss.backward()
    optimiser.step(rate_factor(progress))
    return loss.item()


def _item(plan: Plan) -> Callable[[World, int, int, float], list[Piece]]:
    return training_item if plan.reasoning else direct_item


def without_call(logits_NV: Tensor, barred_N: Tensor, *, call: int) -> Tensor:
    """The logits with token `call` out of the choice where `barred_N` is true."""
    opens_V = torch.arange(logits_NV.shape[1]) == call
    return logits_NV.masked_fill(barred_N[:, None] & opens_V, float("-inf"))


def _tokenizer(world: World, seed: int, plan: Plan) -> Tokenizer:
    between = re.compile("|".join(re.escape(token) for token in ADDED_TOKENS))
    texts = [
        text
        for index in range(plan.tokenizer_items)
        for piece in _item(plan)(world, seed, index, 0.5)
        for text in between.split(piece.text)
        if text
    ]
    # Servers take a model whose tokenizer has them for one that reasons.
    unused = () if plan.reasoning else (THINK, THOUGHT)
    added = [token for token in ADDED_TOKENS if token not in unused]
    return train_tokenizer(texts, world.words, added=added)


def _encode(tokenizer: Tokenizer, item: list[Piece]) -> _Encoded:
    ids: list[int] = []
    own: list[bool] = []
    barred: list[bool] = []
    for piece, encoding in zip(
        item, tokenizer.encode_batch([piece.text for piece in item]), strict=True
    ):
        ids += encoding.ids
        own += [piece.own] * len(encoding.ids)
        barred += [piece.barred] * len(encoding.ids)
    return ids, own, barred


def _cut(items: list[_Encoded], tokens: int) -> Iterator[list[_Encoded]]:
    group: list[_Encoded] = []
    for item in items:
        if group and (len(group) + 1) * len(item[0]) > tokens:
            yield group
            group = []
        group.append(item)
    yield group


def _pad(group: list[_Encoded], pad: int) -> Batch:
    longest = max(len(ids) for ids, _, _ in group)
    ids_BT = torch.full((len(group), longest), pad)
    own_BT = torch.zeros((len(group), longest), dtype=torch.bool)
    barred_BT = torch.zeros((len(group), longest), dtype=torch.bool)
    for row, (ids, own, barred) in enumerate(group):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        own_BT[row, : len(own)] = torch.tensor(own)
        barred_BT[row, : len(barred)] = torch.tensor(barred)
    return Batch(ids_BT=ids_BT, own_BT=own_BT, barred_BT=barred_BT)


def _checkpoint(
    path: Path, network: Network, optimiser: Optimiser, *, seed: int, pool: int, plan: Plan
) -> None:
    state = {
        "seed": seed,
        "pool": pool,
        "plan": plan.written(),
        "network": network.state_dict(),
        "optimiser": optimiser.state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, seed: int, plan: Plan, network: Network, optimiser: Optimiser) -> int:
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["seed"] != seed or state["plan"] != plan.written():
        raise ValueError(
            f"{path} is of a build with another seed or plan; delete it or choose another folder"
        )
    network.load_state_dict(state["network"])
    optimiser.load(state["optimiser"])
    return int(state["pool"])


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
