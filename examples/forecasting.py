"""Forecasts of a year of weekly measurements, with intervals, from histories with gaps.

CO2 in the air over Mauna Loa, 1958 to 2001, as it comes with statsmodels: 59 weeks are missing, and every history loses up to
half of its weeks more, and begins somewhere in the last one to three years. `mask=` says what is there: left padding and
gaps alike, whatever the input holds at them (NaN, here).

    python examples/forecasting.py --output forecast.png
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from statsmodels.datasets import co2
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pack_sequence
from torch.utils.benchmark import Timer

from grucore import GRU

YEAR, PAST = 52, 156  # weeks
QUANTILES = torch.tensor([0.1, 0.5, 0.9])
DATA = co2.load_pandas().data.co2
VALUES = torch.tensor(DATA.to_numpy(), dtype=torch.float32)  # (2284,), parts per million, NaN where missing
PHASE = torch.tensor(DATA.index.dayofyear.to_numpy() / 365.25 * 2 * np.pi, dtype=torch.float32)
TRAIN_END = int((DATA.index.year < 1994).sum())


class Forecaster(nn.Module):
    def __init__(self, hidden_size: int = 64):
        super().__init__()
        self.gru, self.out = GRU(3, hidden_size), nn.Linear(hidden_size, 3 * YEAR)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Quantiles of the change from the last measurement to each week of the year to come, (B, YEAR, 3)."""
        _, h_n = self.gru(x, mask=mask)
        median, below, above = self.out(self.gru.final_state(h_n)).unflatten(1, (3, YEAR)).unbind(1)
        return torch.stack([median - softplus(below), median, median + softplus(above)], -1)


def histories(ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weeks before each end: x (T, B, 3), which of them are there (T, B), and the last measurement (B,)."""
    weeks = ends + torch.arange(-PAST, 0)[:, None]
    begins = ends - torch.randint(YEAR, PAST + 1, ends.shape)
    kept = torch.rand(weeks.shape) > torch.rand(ends.shape) / 2
    values, phase = VALUES[weeks.clamp(0)], PHASE[weeks.clamp(0)]
    mask = (weeks >= begins.clamp(0)) & kept & ~values.isnan()
    last = values.gather(0, torch.where(mask, torch.arange(PAST)[:, None], 0).amax(0, keepdim=True))[0]
    return torch.stack([values - last, phase.sin(), phase.cos()], -1), mask, last


def pinball(quantiles: Tensor, truth: Tensor) -> Tensor:
    """The loss whose least is at the quantiles; weeks that nobody measured do not count."""
    error = truth.unsqueeze(-1) - quantiles
    return torch.maximum(QUANTILES * error, (QUANTILES - 1) * error)[~truth.isnan()].mean()


def following(ends: Tensor) -> Tensor:
    """What was measured in the year from each end on, (B, YEAR)."""
    return VALUES[ends[:, None] + torch.arange(YEAR)]


def train(model: Forecaster, steps: int) -> Iterator[float]:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        ends = torch.randint(YEAR, TRAIN_END - YEAR + 1, (64,))
        x, mask, last = histories(ends)
        loss = pinball(model(x, mask), following(ends) - last[:, None])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()
