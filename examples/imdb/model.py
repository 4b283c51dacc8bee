"""The classifier of the published pipeline: embedding, GRU, the last state, a linear layer."""

from __future__ import annotations

import inspect

import torch
from segments import SegmentClassifier
from torch import Tensor, nn

from grucore import GRU

SEGMENT_OPTIONS = list(inspect.signature(SegmentClassifier).parameters)[1:]  # all but vocabulary_size


class Classifier(nn.Module):
    """Sentiment from the state of a GRU after the last token.

    With `masked=False` the state is read behind the padding and dropout does nothing, as in the published pipeline,
    which computes `self.dropout(h_t)` and does not use it. With `masked=True` it is the state after each review's last
    token, and dropout acts on it and on the embedded words.

    Args:
        vocabulary_size: rows of the embedding; `<pad>` has a learned row too.
        embedding_size: E.
        hidden_size: H.
        dropout: probability of zeroing an element of the embedded words and of the state in training, where `masked`.
        masked: see above.
        gru: "grucore" or "torch", for torch.nn.GRU. The same seed gives both the same weights.
    """

    def __init__(
        self, vocabulary_size: int, embedding_size: int, hidden_size: int, dropout: float, masked: bool, gru: str
    ):
        super().__init__()
        self.masked = masked
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.gru = {"grucore": GRU, "torch": nn.GRU}[gru](embedding_size, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_size, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, 2) of tokens (B, T), padded on the right, and lengths (B,)."""
        x = self.embedding(tokens)  # (B, T, E)
        if not self.masked:
            y, _ = self.gru(x)
            return self.out(y[:, -1])
        x = self.dropout(x)
        if isinstance(self.gru, nn.GRU):
            # Not a PackedSequence, whose backward on CPU is several times as slow (benchmarks/RESULTS.md). In one
            # direction the state after the last token is the same without it.
            y, _ = self.gru(x)
            h = y[torch.arange(len(y), device=y.device), lengths - 1]
        else:
            _, h_n = self.gru(x, lengths=lengths)
            h = h_n[-1]
        return self.out(self.dropout(h))


def parameter_count(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters())


def build(config: dict, vocabulary_size: int) -> Classifier | SegmentClassifier:
    """The classifier that a run's configuration describes, with weights drawn from its seed."""
    torch.manual_seed(config["seed"])
    if config.get("model") == "segments":
        return SegmentClassifier(vocabulary_size, **{name: config[name] for name in SEGMENT_OPTIONS})
    names = ("embedding_size", "hidden_size", "dropout", "masked", "gru")
    return Classifier(vocabulary_size, **{name: config[name] for name in names})
