"""A run as pictures: its curves, and its errors on the test part."""

from __future__ import annotations

from typing import Any

import torch
from data import LABELS
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import binary_confusion_matrix


def save_curves(metrics: list[dict[str, Any]], title: str, path: str) -> None:
    """Loss and accuracy of training and validation against epochs, a line for each GRU, as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for member in range(metrics[-1]["member"] + 1):
            lines = [line for line in metrics if line["member"] == member]
            epochs = [line["epoch"] for line in lines]
            for part, style in (("train", "--"), ("validation", "-")):
                label = f"GRU {member + 1}, {part}"
                axes.plot(epochs, [line[f"{part}_{quantity}"] for line in lines], f"C{member}.{style}", label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")


def save_predictions(probabilities: Tensor, labels: Tensor, title: str, path: str) -> None:
    """The confusion matrix and the calibration of probabilities (N,) of positive against labels (N,), as PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    confusion, reliability = figure.subplots(1, 2)
    counts = binary_confusion_matrix(probabilities, labels)
    confusion.imshow(counts, cmap="Blues", vmin=0)
    for row in (0, 1):
        for column in (0, 1):
            colour = "white" if counts[row, column] > counts.max() / 2 else "black"
            confusion.text(column, row, f"{counts[row, column]:,}", ha="center", color=colour)
    confusion.set_xticks((0, 1), LABELS)
    confusion.set_yticks((0, 1), LABELS, rotation=90, va="center")
    confusion.set(xlabel="predicted", ylabel="label")

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
