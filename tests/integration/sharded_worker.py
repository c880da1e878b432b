"""One step on a model whose weights FSDP2 shards over the processes; then again from a checkpoint.

``torchrun … sharded_worker.py MODEL OUT``: OUT gets the gathered checkpoint and, from the first
process, the weights after resuming it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from entrogate.train.checkpoints import Checkpoints, gather

RATE = 1e-2


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int, ranks: int) -> None:
    """One AdamW step on four sequences, dealt out to the processes."""
    ids = torch.arange(4 * 8).reshape(4, 8) % 64
    own = ids[rank::ranks]
    loss = model(input_ids=own, labels=own).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def main(folder: str, out: str) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))

    def sharded() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, torch.optim.AdamW(model.parameters(), lr=RATE)

    model, optimizer = sharded()
    step(model, optimizer, rank, ranks)
    state = gather(model, optimizer, step=1, stopped=None)
    checkpoints = Checkpoints(Path(out))
    if rank == 0:
        checkpoints.save(state)
    dist.barrier()
    fresh, optimizer = sharded()
    assert checkpoints.resume(fresh, optimizer) == (1, None)
    step(fresh, optimizer, rank, ranks)
    after = gather(fresh, optimizer, step=2, stopped=None)
    if rank == 0:
        torch.save(after.weights, Path(out) / "after.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
