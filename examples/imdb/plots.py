"""The curves of a run as a picture."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure


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
