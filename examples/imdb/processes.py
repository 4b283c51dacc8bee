"""This process among those that torchrun started, or alone."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from run_folder import RunError
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def check_device(device: str) -> None:
    """Raises a RunError if the device is a GPU and there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RunError("--device cuda needs a GPU that this PyTorch can use, and there is none; --device cpu works")


class Processes:
    """Where this process computes, and what it exchanges with the others.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        RunError: there is no GPU and `device` is "cuda".
    """

    def __init__(self, device: str):
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        check_device(device)
        on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
        if on_cuda:
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if on_cuda else "gloo")
        self.first = self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over processes, if there are several."""
        if self.count == 1:
            return model
        # Buffers (the n-grams' table and share) are the same everywhere without that.
        return DistributedDataParallel(model, broadcast_buffers=False)

    def sum(self, values: torch.Tensor) -> list[float]:
        """The sum of each value over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values.tolist()

    def gather(self, h: torch.Tensor) -> torch.Tensor:
        """States (1, B, H) of all processes' streams, one process after the other."""
        parts = [torch.empty_like(h) for _ in range(self.count)]
        if self.count == 1:
            return h
        dist.all_gather(parts, h.contiguous())
        return torch.cat(parts, 1)

    def share(self, h: torch.Tensor) -> torch.Tensor:
        """What `gather` took from this process."""
        return h.to(self.device).chunk(self.count, 1)[self.rank].contiguous()

    def random_states(self) -> list[torch.Tensor]:
        """Each process's generator of dropout masks."""
        state = torch.cuda.get_rng_state() if self.device.type == "cuda" else torch.get_rng_state()
        states: list = [state] * self.count
        if self.count > 1:
            dist.all_gather_object(states, state)
        return states

    def set_random_state(self, states: list[torch.Tensor]) -> None:
        """Continues where `random_states` was taken."""
        if len(states) != self.count:
            raise RunError(f"the run was trained by {len(states)} processes, now there are {self.count}")
        (torch.cuda.set_rng_state if self.device.type == "cuda" else torch.set_rng_state)(states[self.rank])

    def barrier(self) -> None:
        """Waits for the others."""
        if self.count > 1:
            dist.barrier()

    def end(self) -> None:
        """Leaves the group of processes."""
        if dist.is_initialized():
            dist.destroy_process_group()
