"""Accuracy and calibration of a model, and plots of a run."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from data import LABELS, Encoded, collate
from matplotlib.figure import Figure
from model import Judge
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.classification import BinaryConfusionMatrix
from torchmetrics.functional.classification import binary_accuracy, binary_calibration_error


@torch.no_grad()
def margins_of(
    margins: Callable[[Tensor, Tensor], Tensor], encoded: Encoded, batch_size: int, accelerator: Accelerator
) -> Tensor:
    """Computes `margins` of all reviews, (parts, N), on the device; processes share the work."""
    rank, count, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    found = None
    lengths = [len(row) for row in encoded.tokens]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)  # batches of similar lengths, which pad little
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size][::-1]
        batch = collate(encoded, rows, rank, count)
        of_batch = margins(batch.tokens.to(device), batch.lengths.to(device))
        found = of_batch.new_zeros(len(of_batch), len(encoded.tokens)) if found is None else found
        mine = rows[rank::count]
        found[:, mine] = of_batch[:, : len(mine)]
    return accelerator.reduce(found, "sum")


def measured(log_odds: Tensor, targets: Tensor) -> dict[str, float]:
    """The loss and accuracy of log-odds (N,)."""
    targets = targets.to(log_odds.device)
    loss = binary_cross_entropy_with_logits(log_odds.double(), targets.double())
    return {"loss": loss.item(), "accuracy": round(binary_accuracy(log_odds.sigmoid(), targets.int()).item(), 6)}


def judged(judge: Judge, margins: Tensor, targets: Tensor) -> dict[str, Any]:
    """The accuracy of the model and its parts, and the paired gain of the GRUs over the n-grams with its error."""
    members, targets = len(judge.members), targets.to(margins.device)
    log_odds = judge.combine(margins)
    result: dict[str, Any] = measured(log_odds, targets)
    result["calibration_error"] = binary_calibration_error(log_odds.sigmoid(), targets.int(), n_bins=10).item()
    if members > 1:
        result["accuracy_of_each_gru"] = [measured(each, targets)["accuracy"] for each in margins[:members]]
    if judge.ngrams is not None:
        for name, each in (("gru", margins[:members].mean(0)), ("ngrams", margins[members])):
            result |= {f"{key}_{name}": value for key, value in measured(each, targets).items()}
        right, without = (((each > 0) == (targets > 0.5)).double() for each in (log_odds, margins[members]))
        result["gain_over_ngrams"] = (right - without).mean().item()
        result["gain_standard_error"] = (right - without).std().item() / len(targets) ** 0.5
    return result


def set_sharpness(judge: Judge, margins: Tensor, targets: Tensor) -> None:
    """Temperature scaling: the factor of log-odds, in hundredths, with the lowest loss on the validation split."""
    factors = torch.arange(20, 301) / 100
    judge.sharpness.fill_(1.0)
    log_odds = factors[:, None].to(margins.device) * judge.combine(margins)
    targets = targets.to(margins.device).expand_as(log_odds)
    losses = binary_cross_entropy_with_logits(log_odds, targets, reduction="none").mean(1)
    judge.sharpness.fill_(factors[losses.argmin()].item())


def save_curves(metrics: list[dict[str, Any]], title: str, path: str) -> None:
    """Plots loss and accuracy of training and validation against epochs, one line per GRU, as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for member in range(metrics[-1]["member"] + 1):
            lines = [line for line in metrics if line["member"] == member]
            epochs = [line["epoch"] for line in lines]
            for part, style in (("train", "--"), ("validation", "-")):
                label = f"GRU {member + 1}, {part}"
                axes.plot(epochs, [line[f"{part}_{quantity}"] for line in lines], f"C{member}.{style}", label=label)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")


def save_predictions(probabilities: Tensor, labels: Tensor, title: str, path: str) -> None:
    """Plots the confusion matrix and the calibration of probabilities (N,) of positive, given labels (N,), as PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    confusion, reliability = figure.subplots(1, 2)
    matrix = BinaryConfusionMatrix(sync_on_compute=False)  # only the main process draws
    matrix(probabilities, labels)
    matrix.plot(ax=confusion, labels=list(LABELS), cmap="Blues")
    place = (probabilities * 10).long().clamp(max=9)
    bins = [place == k for k in range(10) if (place == k).any()]
    predicted, positive = (
        torch.stack([each[some].float().mean() for some in bins]) for each in (probabilities, labels)
    )
    reliability.plot((0, 1), (0, 1), color="grey", linestyle=":", label="calibrated")
    reliability.plot(predicted, positive, marker="o", label="this model")
    reliability.set(xlabel="predicted probability of a positive review", ylabel="share of positive reviews")
    reliability.grid(alpha=0.3)
    reliability.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")
