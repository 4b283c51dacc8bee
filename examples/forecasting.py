"""Forecasts a year of weekly measurements, with intervals, from histories with gaps.

The data, carbon dioxide in the air over Mauna Loa from 1958 to 2001, comes with statsmodels. 59 weeks are missing; each
history begins one to three years earlier and randomly loses up to half of its weeks. `mask=` marks the steps that
exist, which covers left padding as well as gaps. The other inputs, here NaN, affect neither results nor gradients.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from statsmodels.datasets import co2
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.benchmark import Timer

from grucore import GRU

YEAR, PAST, HIDDEN = 52, 156, 64  # weeks, weeks, units
QUANTILES = torch.tensor([0.1, 0.5, 0.9])
DATA = co2.load_pandas().data.co2
VALUES = torch.tensor(DATA.to_numpy(), dtype=torch.float32)  # (2284,), parts per million, NaN where missing
PHASE = torch.tensor(DATA.index.day_of_year.to_numpy() / 365.25 * 2 * np.pi, dtype=torch.float32)
SPLIT = int((DATA.index.year < 1994).sum())


class Forecaster(nn.Module):
    """A GRU that reads a history and predicts quantiles of the year that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.dropout, self.out = GRU(3, HIDDEN), nn.Dropout(0.2), nn.Linear(HIDDEN, 3 * YEAR)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Quantiles of the change from the last measurement to each week of the year ahead: (B, YEAR, 3)."""
        _, h_n = self.gru(x, mask=mask)
        median, below, above = self.out(self.dropout(h_n[-1])).unflatten(1, (3, YEAR)).unbind(1)
        return torch.stack([median - nn.functional.softplus(below), median, median + nn.functional.softplus(above)], -1)


def histories(ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The history of each of B weeks: x (T, B, 3), which steps exist (T, B), the last measurement (B,)."""
    weeks = ends + torch.arange(-PAST, 0)[:, None]
    values, phase = VALUES[weeks.clamp(0)], PHASE[weeks.clamp(0)]
    begins = (ends - torch.randint(YEAR, PAST + 1, ends.shape)).clamp(0)
    mask = (weeks >= begins) & ~values.isnan() & (torch.rand(weeks.shape) > 0.5 * torch.rand(ends.shape))
    last = values.gather(0, (mask * torch.arange(PAST)[:, None]).argmax(0, keepdim=True))[0]
    return torch.stack([values - last, phase.sin(), phase.cos()], -1), mask, last


def following(ends: Tensor) -> Tensor:
    """The measurements in the year from each week on: (B, YEAR)."""
    return VALUES[ends[:, None] + torch.arange(YEAR)]


def pinball(quantiles: Tensor, truth: Tensor) -> Tensor:
    """The loss that quantiles minimise (Koenker & Bassett 1978), over the measured weeks."""
    error = truth.unsqueeze(-1) - quantiles
    return torch.maximum(QUANTILES * error, (QUANTILES - 1) * error)[~truth.isnan()].mean()


def train(model: Forecaster, steps: int) -> Iterator[float]:
    """Updates the model on random histories before 1994; yields the loss."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        ends = torch.randint(YEAR, SPLIT - YEAR + 1, (64,))
        x, mask, last = histories(ends)
        loss = pinball(model(x, mask), following(ends) - last[:, None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def with_nn_gru(gru: nn.GRU, x: Tensor, mask: Tensor) -> Tensor:
    """The last states by torch.nn.GRU: the existing steps of each row are extracted and packed."""
    rows = [row[there] for row, there in zip(x.unbind(1), mask.unbind(1), strict=True)]
    return gru(pack_sequence(rows, enforce_sorted=False))[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("forecast.png"), help="the plot")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    if args.output.suffix != ".png" or args.output.exists() or not args.output.parent.is_dir():
        parser.error(f"--output must be a new .png file in a folder that exists, got {args.output}")
    torch.manual_seed(args.seed)
    model = Forecaster()
    for i, loss in enumerate(train(model, args.steps), 1):
        if i % max(args.steps // 6, 1) == 0:
            print(f"update {i:3}: loss {loss:.3f} ppm")

    ends = torch.arange(SPLIT, len(VALUES) - YEAR + 1)  # every week from 1994 on that has a measured year after it
    (x, mask, last), truth, naive = histories(ends), following(ends), following(ends - YEAR)
    with torch.no_grad():
        low, median, high = (model.eval()(x, mask) + last[:, None, None]).unbind(-1)
    trend = naive + (VALUES[ends - 1] - VALUES[ends - 1 - YEAR])[:, None]
    for name, guess in {"the year before": naive, "with its growth": trend, "GRU, the median": median}.items():
        print(f"{name}: mean error {(guess - truth).abs().mean():.2f} ppm from 1994 on")
    print(f"inside the 80% interval: {((low <= truth) & (truth <= high)).float().mean():.0%} of the weeks")

    weeks, axes = DATA.index[-YEAR:], Figure().subplots()
    axes.fill_between(weeks, low[-1], high[-1], alpha=0.3, label="80% interval")
    for name, line in {"median": median[-1], "the year before": naive[-1], "measured": truth[-1]}.items():
        axes.plot(weeks, line, label=name)
    axes.legend(title="carbon dioxide (ppm)")
    axes.figure.savefig(args.output)

    ours, theirs = model.gru, model.gru.to_torch()
    f, g = lambda: ours(x, mask=mask)[1], lambda: with_nn_gru(theirs, x, mask)
    ms, nn_ms = (Timer("h().sum().backward()", globals={"h": h}).blocked_autorange().median * 1e3 for h in (f, g))
    print(f"one pass: grucore {ms:.1f} ms, torch.nn.GRU {nn_ms:.1f} ms; states differ by {(f() - g()).abs().max():.0e}")
