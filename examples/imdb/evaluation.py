"""A model's predictions of a part, by length."""

from __future__ import annotations

from typing import NamedTuple

import torch
from batches import EvaluationBatches, loader
from data import Encoded
from processes import Processes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Evaluation(NamedTuple):
    """Of N reviews."""

    loss: float
    accuracy: float
    paths: dict[str, float]  # the accuracy of the GRU and of the n-grams alone, where there are both
    probabilities: Tensor  # (N,) float32: of being positive


@torch.no_grad()
def evaluate(model: nn.Module, encoded: Encoded, batch_size: int, processes: Processes) -> Evaluation:
    """All reviews once, divided among the processes."""
    model.eval()
    order = EvaluationBatches([len(row) for row in encoded.tokens], batch_size)
    names = ("gru", "ngrams") if getattr(model, "ngrams", None) is not None else ()
    totals = torch.zeros(3 + len(names), dtype=torch.float64, device=processes.device)  # loss, right, reviews, paths
    probabilities = torch.zeros(len(encoded.tokens), device=processes.device)
    for rows, batch in zip(order, loader(encoded, order, processes.rank, processes.count), strict=True):
        tokens, lengths, labels, weights = (t.to(processes.device, non_blocking=True) for t in batch[:4])
        paths = model.paths(tokens, lengths) if names else model(tokens, lengths)[None]
        logits = paths.mean(0)
        losses = cross_entropy(logits, labels, reduction="none") * weights
        right = [(each.argmax(1) == labels) * weights for each in (logits, *(paths if names else ()))]
        sums = [losses.sum(), right[0].sum(), weights.sum(), *(each.sum() for each in right[1:])]
        totals += torch.stack(sums)
        mine = rows[processes.rank :: processes.count]
        probabilities[mine] = logits.softmax(1)[: len(mine), 1]
    loss, right_count, reviews, *by_path = processes.sum(totals)
    processes.sum(probabilities)
    accuracies = {name: count / reviews for name, count in zip(names, by_path, strict=True)}
    return Evaluation(loss / reviews, right_count / reviews, accuracies, probabilities.cpu())


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
