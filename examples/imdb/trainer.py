"""One optimizer step, and all state that the next one needs."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from batches import Batch
from objective import Objective, Part
from processes import Processes
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """A model in training.

    Args:
        model: on its device.
        config: the run's configuration.
        steps: optimizer steps of the whole run, for the schedule.
        processes: where it runs.
    """

    def __init__(self, model: nn.Module, config: dict, steps: int, processes: Processes):
        self.model, self.config, self.steps, self.processes = model, config, steps, processes
        self.step_count = 0
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config), weight_decay=config["weight_decay"], fused=True
        )
        self.average = None
        if config["averaging"] is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config["averaging"]))
        self.dtype = PRECISIONS[config["precision"]]
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.dtype == torch.float16)
        self.objective = Objective(
            model, processes.wrap(model), config["adversarial"], self.scaler.scale, self.autocast
        )

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and saved: the average over steps, where one is kept."""
        return self.model if self.average is None else self.average.module

    def autocast(self) -> AbstractContextManager:
        """The precision of forward passes."""
        return torch.autocast(self.processes.device.type, self.dtype, enabled=self.dtype is not None)

    def step(self, batch: Batch, unlabelled: Batch | None = None) -> Tensor:
        """One optimizer step.

        Returns:
            Sums over this process's reviews, (4,) float64 on the device: loss, right ones, reviews, tokens.
        """
        self.model.train()
        self._set_learning_rates()
        self.optimizer.zero_grad(set_to_none=True)
        if unlabelled is not None:
            late = self.step_count >= 0.1 * self.steps  # beliefs are worth sharpening when there are any
            for part in self._parts(unlabelled):
                self.objective.unlabelled(part, self.config["entropy"] if late else 0.0)
        totals = torch.zeros(4, dtype=torch.float64, device=self.processes.device)
        parts = self._parts(batch)
        for i, part in enumerate(parts, 1):
            logits, losses = self.objective.supervised(part, last=i == len(parts))
            right = (logits.argmax(1) == part.labels) * part.weights
            sums = ((losses * part.weights).sum(), right.sum(), part.weights.sum(), (part.lengths * part.weights).sum())
            totals += torch.stack(sums)
        if self.config["clip"] is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config["clip"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step_count += 1
        return totals

    def _parts(self, batch: Batch) -> list[Part]:
        """The batch on the device, in as many parts as gradients are accumulated over."""
        # DistributedDataParallel takes the mean over processes of what should be the mean over reviews.
        share = self.processes.count / batch.total
        tensors = [t.to(self.processes.device, non_blocking=True) for t in batch[:4]]
        return [Part(*part, share) for part in zip(*(t.chunk(self.config["accumulate"]) for t in tensors), strict=True)]

    def _set_learning_rates(self) -> None:
        factor = learning_rate_factor(self.step_count, self.steps, self.config["warmup"], self.config["schedule"])
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def state(self) -> dict[str, Any]:
        """All of it but the random states."""
        average = None if self.average is None else self.average.state_dict()
        state = {"model": self.model.state_dict(), "average": average, "optimizer": self.optimizer.state_dict()}
        return state | {"scaler": self.scaler.state_dict(), "step_count": self.step_count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step_count = state["step_count"]


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """What a step's learning rate is multiplied by: a linear rise over `warmup` of all steps, then the schedule."""
    rise = max(1, round(warmup * steps))
    if step + 1 < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))) if schedule == "cosine" else 1.0


def parameter_groups(model: nn.Module, config: dict) -> list[dict[str, Any]]:
    """Parameters by their highest learning rate: the n-grams' own, and that of pretrained weights."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = config["learning_rate"]
        if name.startswith("ngrams."):
            rate = config["ngram_learning_rate"]
        elif name.startswith(("embedding.", "gru.")):
            rate = config.get("pretrained_learning_rate") or rate
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate, "peak": rate} for rate, parameters in groups.items()]
