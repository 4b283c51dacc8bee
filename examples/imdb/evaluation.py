"""A model's predictions of a part, by length."""

from __future__ import annotations

from typing import NamedTuple

import torch
from batches import EvaluationBatches, loader
from data import Encoded
from processes import Processes
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class Evaluation(NamedTuple):
    """Of N reviews."""

    loss: float
    accuracy: float
    paths: dict[str, float]  # the accuracy of the GRU and of the n-grams alone, where there are both
    probabilities: Tensor  # (N,) float32: of being positive


@torch.no_grad()
def evaluate(
    model: nn.Module, encoded: Encoded, batch_size: int, processes: Processes, choose_share: bool = False
) -> Evaluation:
    """All reviews once, divided among the processes; `choose_share` first weighs the model's paths by them."""
    model.eval()
    names = ("gru", "ngrams") if getattr(model, "ngrams", None) is not None else ()
    margins = _margins(model, encoded, batch_size, processes, len(names))
    labels = encoded.labels.to(margins.device)
    if names and choose_share:
        model.choose_share(margins, labels)
    combined = model.combine(margins) if names else margins[0]
    loss = binary_cross_entropy_with_logits(combined.double(), labels.double()).item()
    accuracy, *by_path = (((each > 0) == labels).double().mean().item() for each in (combined, *margins[: len(names)]))
    return Evaluation(loss, accuracy, dict(zip(names, by_path, strict=True)), combined.sigmoid().cpu())


def _margins(model: nn.Module, encoded: Encoded, batch_size: int, processes: Processes, paths: int) -> Tensor:
    """The logit of positive less that of negative, (paths, N); of the model as a whole, (1, N), where it has none."""
    order = EvaluationBatches([len(row) for row in encoded.tokens], batch_size)
    margins = torch.zeros(max(paths, 1), len(encoded.tokens), device=processes.device)
    for rows, batch in zip(order, loader(encoded, order, processes.rank, processes.count), strict=True):
        tokens, lengths = (t.to(processes.device, non_blocking=True) for t in batch[:2])
        logits = model.paths(tokens, lengths) if paths else model(tokens, lengths)[None]
        mine = rows[processes.rank :: processes.count]
        margins[:, mine] = (logits[:, :, 1] - logits[:, :, 0])[:, : len(mine)].float()
    processes.sum(margins)
    return margins


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """For equal bins of the predicted probability: its mean, the share of positive reviews, and how many there are.

    Args:
        probabilities: shape (N,), of being positive.
        labels: shape (N,), 0 or 1.
        bins: how many; a bin without reviews has a count of 0 and means of 0.
    """
    place = (probabilities * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins)
    predicted = torch.bincount(place, weights=probabilities.double(), minlength=bins) / count.clamp(min=1)
    positive = torch.bincount(place, weights=labels.double(), minlength=bins) / count.clamp(min=1)
    return predicted, positive, count


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The expected calibration error: the bins' mean distance between prediction and truth, by reviews."""
    predicted, positive, count = calibration(probabilities, labels)
    return ((predicted - positive).abs() * count).sum().item() / len(labels)
