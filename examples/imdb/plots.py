"""A run as pictures: its curves, and its errors on the test part."""

from __future__ import annotations

from typing import Any

from data import LABELS
from evaluation import calibration
from matplotlib.figure import Figure
from torch import Tensor


def save_curves(metrics: list[dict[str, Any]], title: str, path: str) -> None:
    """Loss and accuracy of training and validation against epochs, as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [line["epoch"] for line in metrics]
    best = min(metrics, key=lambda line: line["validation_loss"])["epoch"]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "validation"):
            axes.plot(epochs, [line[f"{part}_{quantity}"] for line in metrics], marker=".", label=part)
        axes.axvline(best, color="grey", linestyle=":", label="lowest validation loss")
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def save_predictions(probabilities: Tensor, labels: Tensor, title: str, path: str) -> None:
    """The confusion matrix and the calibration of probabilities (N,) against labels (N,), as PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    confusion, reliability = figure.subplots(1, 2)
    predicted = (probabilities > 0.5).long()
    counts = [[int(((labels == row) & (predicted == column)).sum()) for column in (0, 1)] for row in (0, 1)]
    confusion.imshow(counts, cmap="Blues", vmin=0)
    for row in (0, 1):
        for column in (0, 1):
            dark = counts[row][column] > max(map(max, counts)) / 2
            confusion.text(column, row, f"{counts[row][column]:,}", ha="center", color="white" if dark else "black")
    confusion.set_xticks((0, 1), LABELS)
    confusion.set_yticks((0, 1), LABELS, rotation=90, va="center")
    confusion.set_xlabel("predicted")
    confusion.set_ylabel("label")

    mean, positive, count = calibration(probabilities, labels)
    filled = count > 0
    reliability.plot((0, 1), (0, 1), color="grey", linestyle=":", label="calibrated")
    reliability.plot(mean[filled], positive[filled], marker="o", label="this model")
    reliability.set_xlabel("predicted probability of a positive review")
    reliability.set_ylabel("share of positive reviews")
    reliability.grid(alpha=0.3)
    reliability.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
