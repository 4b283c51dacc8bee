"""The language model that `semi` starts from: its embedding and GRU are the classifier's, and predict the next word."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from grucore import GRU

LOGITS_AT_ONCE = 16_384  # words whose scores over the whole vocabulary are in memory together


class LanguageModel(nn.Module):
    """Next-word prediction over streams of reviews.

    Args:
        vocabulary_size: V.
        embedding_size: E.
        hidden_size: H.
        dropout: probability of zeroing an element of the embedded words and of the states in training.
        gru: "grucore" or "torch", for torch.nn.GRU.
    """

    def __init__(self, vocabulary_size: int, embedding_size: int, hidden_size: int, dropout: float, gru: str):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.gru = {"grucore": GRU, "torch": nn.GRU}[gru](embedding_size, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_size, vocabulary_size)

    def forward(self, words: Tensor, following: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts each next word.

        Args:
            words: shape (B, T), int64, a piece of each stream.
            following: shape (B, T), the word after each.
            h: shape (1, B, H): the state that the piece before ended in.

        Returns:
            The mean cross entropy in nats, and the state after the piece, without gradient.
        """
        y, h = self.gru(self.dropout(self.embedding(words)), h)
        y, following = self.dropout(y).flatten(0, 1), following.flatten()
        losses = [
            checkpoint(self._loss, *part, use_reentrant=False)
            for part in zip(y.split(LOGITS_AT_ONCE), following.split(LOGITS_AT_ONCE), strict=True)
        ]
        return torch.stack(losses).sum() / len(following), h.detach()

    def _loss(self, y: Tensor, following: Tensor) -> Tensor:
        return cross_entropy(self.out(y).float(), following, reduction="sum")


def streams(reviews: list[Tensor], end: int, count: int, order: Tensor) -> Tensor:
    """The reviews one after another in `count` rows, each review followed by `end`: shape (count, T), int64.

    What does not fill a whole column is left out.
    """
    mark = torch.tensor([end])
    flat = torch.cat([piece for i in order.tolist() for piece in (reviews[i], mark)])
    steps = len(flat) // count
    return flat[: steps * count].view(count, steps)
