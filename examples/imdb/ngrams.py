"""The wide path: a linear model over the set of a review's n-grams, each scaled by its naive-Bayes log-count ratio.

    logit = b + sum over the distinct known n-grams g of a review of  w_g r_g
    r_g   = log( (p_g + 1) / sum_g (p_g + 1) ) - log( (q_g + 1) / sum_g (q_g + 1) )

p_g and q_g count the positive and the negative training reviews that hold g. Source: Wang and Manning 2012 (NB-SVM); w
is learned by gradient descent here. It sees what stands in a review, not where: that is the GRU's part.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

NO_NGRAM = torch.iinfo(torch.int64).max  # the key of padding, of repetitions, and of unused rows of the table
INITIAL_WEIGHT = 0.01  # a review holds hundreds of n-grams, whose ratios add up


class NGrams(nn.Module):
    """The linear path over n-grams of 1 to `order` tokens.

    Args:
        count: rows of the table: so many of the most frequent n-grams are kept.
        vocabulary_size: V; token ids are below it. (V + 1) ** order must fit into 63 bits.
        order: the longest n-gram.
    """

    keys: Tensor
    ratios: Tensor

    def __init__(self, count: int, vocabulary_size: int, order: int):
        super().__init__()
        if (vocabulary_size + 1) ** order >= NO_NGRAM:
            raise ValueError(f"n-grams of {order} tokens out of {vocabulary_size} do not fit into 63 bits")
        self.base, self.order = vocabulary_size + 1, order
        self.register_buffer("keys", torch.full((count,), NO_NGRAM))  # ascending
        self.register_buffer("ratios", torch.zeros(count))
        self.weight = nn.Parameter(torch.full((count,), INITIAL_WEIGHT))
        self.bias = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def fit(self, tokens: list[Tensor], labels: Tensor) -> None:
        """Chooses the n-grams and counts their ratios; training reviews alone belong here."""
        reviews = [self._distinct(row[None], torch.tensor([len(row)]))[0] for row in tokens]
        reviews = [keys[keys != NO_NGRAM].numpy() for keys in reviews]
        label_of_each = np.repeat(labels.numpy(), [len(keys) for keys in reviews])
        keys, which, total = np.unique(np.concatenate(reviews), return_inverse=True, return_counts=True)
        positive = np.bincount(which, weights=label_of_each, minlength=len(keys))
        kept = np.sort(np.argsort(-total, kind="stable")[: len(self.keys)])
        p, q = positive[kept] + 1, total[kept] - positive[kept] + 1
        ratios = np.log(p / p.sum()) - np.log(q / q.sum())
        self.keys[: len(kept)] = torch.from_numpy(keys[kept])
        self.ratios[: len(kept)] = torch.from_numpy(ratios).float()

    def _all(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Keys (B, T, order) of the n-grams of each order that end at each token."""
        steps = tokens.shape[1]
        last = torch.arange(steps, device=tokens.device)
        real = last < lengths[:, None]
        key, keys = torch.zeros_like(tokens), []
        for n in range(self.order):  # the token n places back is a digit in base V + 1, from 1 to V
            digit = nn.functional.pad(tokens, (n, 0))[:, :steps] + 1
            key = key + digit * self.base**n
            keys.append(key.masked_fill(~(real & (last >= n)), NO_NGRAM))
        return torch.stack(keys, 2)

    def _distinct(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        keys = self._all(tokens, lengths).flatten(1).sort(1).values
        repeated = keys[:, 1:] == keys[:, :-1]
        return torch.cat([keys[:, :1], keys[:, 1:].masked_fill(repeated, NO_NGRAM)], 1)

    def _evidence(self, keys: Tensor) -> Tensor:
        """w_g r_g of each key, 0 where the table has none."""
        rows = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        scale = self.ratios[rows] * (self.keys[rows] == keys)
        return nn.functional.embedding(rows, self.weight[:, None]).squeeze(-1) * scale

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The logit (B,) of a review being positive, from tokens (B, T) and lengths (B,)."""
        return self._evidence(self._distinct(tokens, lengths)).sum(1) + self.bias

    @torch.no_grad()
    def evidence(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Each token's share (B, T) of the logit without the bias.

        An n-gram's evidence is divided evenly among the tokens of all its occurrences.
        """
        keys = self._all(tokens, lengths)
        shares = self._evidence(keys)
        flat = keys.flatten(1)
        occurrences = (flat[:, :, None] == flat[:, None, :]).sum(2).view_as(keys)
        shares = shares / occurrences / torch.arange(1, self.order + 1, device=keys.device)
        steps = tokens.shape[1]
        return sum(
            nn.functional.pad(shares[:, back:, n], (0, min(back, steps)))
            for n in range(self.order)
            for back in range(n + 1)
        )
