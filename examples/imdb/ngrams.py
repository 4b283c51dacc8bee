"""A linear model over a review's n-grams, scaled by log-count ratios: fitted in seconds, then frozen.

    logit = b + sum over the distinct known n-grams g of a review of  w_g r_g
    r_g   = log( (p_g + 1) / sum_g (p_g + 1) ) - log( (q_g + 1) / sum_g (q_g + 1) )

p_g and q_g count the positive and the negative training reviews that contain g. Source: Wang and Manning 2012 (NB-SVM);
here w minimises a logistic regression. The model knows which n-grams a review contains, but not their order: that is
the GRU's task. The GRU also reads, at each token, w_g r_g of the n-grams that end there. For a training review these
come from a model that has not seen it (cross-fitting); otherwise the GRU would learn to trust them blindly.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import optimize, sparse, special
from torch import Tensor, nn

NO_NGRAM = torch.iinfo(torch.int64).max  # the key of padding, of repetitions, and of unused rows of the table
FOLDS = 4
INVERSE_STRENGTH = 0.3  # of the regularisation: C of a logistic regression


class NGrams(nn.Module):
    """The n-grams of 1 to `order` tokens: `fit` before use.

    Args:
        count: the number of rows of the table, which keeps the most frequent n-grams.
        vocabulary_size: V; token ids are smaller.
        order: the longest n-gram.

    Raises:
        ValueError: (V + 1) ** order does not fit into 63 bits.
    """

    keys: Tensor
    weights: Tensor
    cross_fitted: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, count: int, vocabulary_size: int, order: int = 3):
        super().__init__()
        if (vocabulary_size + 1) ** order >= NO_NGRAM:
            raise ValueError(f"n-grams of {order} tokens out of {vocabulary_size} do not fit into 63 bits")
        self.base, self.order = vocabulary_size + 1, order
        self.register_buffer("keys", torch.full((count,), NO_NGRAM))  # ascending
        self.register_buffer("weights", torch.zeros(count))  # w_g r_g
        self.register_buffer("cross_fitted", torch.zeros(count))  # the same, averaged over the models of all folds
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("scale", torch.ones(order))  # makes the mean square of each order's evidence 1

    @torch.no_grad()
    def fit(self, tokens: list[Tensor], targets: Tensor, importance: Tensor, seed: int) -> list[Tensor]:
        """Chooses the n-grams and fits their weights.

        Args:
            tokens: of the training reviews.
            targets: shape (N,), the probability of each of being positive.
            importance: shape (N,), of each review; those with 1 are cross-fitted, the others are soft-labelled.
            seed: determines the folds.

        Returns:
            The evidence of each review, (T, order).
        """
        by_token = [self._keys(row[None], torch.tensor([len(row)]))[0] for row in tokens]
        distinct = [np.unique(keys) for keys in by_token]
        distinct = [keys[:-1] if keys[-1] == NO_NGRAM else keys for keys in distinct]
        keys, total = np.unique(np.concatenate(distinct), return_counts=True)
        kept = np.sort(np.argsort(-total, kind="stable")[: len(self.keys)])
        self.keys[: len(kept)] = torch.from_numpy(keys[kept])
        rows = [_rows(self.keys, torch.from_numpy(keys)) for keys in distinct]
        rows = [row[row >= 0].numpy() for row in rows]
        offsets = np.cumsum([0, *map(len, rows)])
        held = np.concatenate(rows)
        x = sparse.csr_array((np.ones(len(held)), held, offsets), shape=(len(tokens), len(kept)))
        y, weight = targets.double().numpy(), importance.double().numpy()
        weights, bias = _logistic_regression(x, y, weight)
        self.weights[: len(kept)] = torch.from_numpy(weights)
        self.bias.fill_(bias)

        labelled = np.flatnonzero(weight == 1)
        fold = np.full(len(tokens), -1)
        fold[labelled] = np.random.default_rng(seed).permutation(len(labelled)) % FOLDS
        tables = []
        for k in range(FOLDS):
            some = labelled[fold[labelled] != k]
            tables.append(torch.from_numpy(_logistic_regression(x[some], y[some], weight[some])[0]).float())
        tables.append(torch.stack(tables).mean(0))
        self.cross_fitted[: len(kept)] = tables[-1]
        evidence = [_lookup(self.keys[: len(kept)], tables[k], keys) for keys, k in zip(by_token, fold, strict=True)]
        squares = torch.stack([each.double().square().sum(0) for each in evidence]).sum(0)
        self.scale.copy_((sum(map(len, evidence)) / squares.clamp(min=1e-12)).sqrt())
        return [each * self.scale for each in evidence]

    def _keys(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Keys (B, T, order) of the n-grams of each order that end at each token."""
        steps = tokens.shape[1]
        last = torch.arange(steps, device=tokens.device)
        real = last < lengths[:, None]
        key, keys = torch.zeros_like(tokens), []
        for n in range(self.order):  # the token n places before is a digit in base V + 1, from 1 to V
            digit = nn.functional.pad(tokens, (n, 0))[:, :steps] + 1
            key = key + digit * self.base**n
            keys.append(key.masked_fill(~(real & (last >= n)), NO_NGRAM))
        return torch.stack(keys, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The logit (B,) of a review being positive, from tokens (B, T) and lengths (B,)."""
        keys = self._keys(tokens, lengths).flatten(1).sort(1).values
        keys[:, 1:] = keys[:, 1:].masked_fill(keys[:, 1:] == keys[:, :-1], NO_NGRAM)
        return _lookup(self.keys, self.weights, keys).sum(1) + self.bias

    def evidence(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """For each token the scaled evidence (B, T, order) of the n-grams that end there."""
        return _lookup(self.keys, self.cross_fitted, self._keys(tokens, lengths)) * self.scale

    def contributions(self, tokens: Tensor) -> Tensor:
        """Each token's share (T,) of the logit without the bias, from tokens (T,).

        An n-gram's weight is divided evenly among the tokens of all its occurrences.
        """
        keys = self._keys(tokens[None], torch.tensor([len(tokens)], device=tokens.device))[0]
        _, which, occurrences = keys.unique(return_inverse=True, return_counts=True)
        shares = _lookup(self.keys, self.weights, keys) / occurrences[which]
        total = torch.zeros(len(tokens), device=tokens.device)
        for n in range(self.order):
            for back in range(min(n + 1, len(tokens))):
                total[: len(tokens) - back] += shares[back:, n] / (n + 1)
        return total


def _rows(table: Tensor, keys: Tensor) -> Tensor:
    """The rows of the keys in the ascending table, -1 for those that it does not contain."""
    rows = torch.searchsorted(table, keys).clamp_(max=len(table) - 1)
    return torch.where((table[rows] == keys) & (keys != NO_NGRAM), rows, -1)


def _lookup(table: Tensor, values: Tensor, keys: Tensor) -> Tensor:
    """The values of the keys, 0 for those that the table does not contain."""
    rows = _rows(table, keys)
    return torch.where(rows >= 0, values[rows], 0.0)


def _logistic_regression(x: sparse.csr_array, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """w_g r_g and b of the reviews x (N, G), whose elements are 0 or 1, with targets y and weights, both (N,)."""
    positive, negative = x.T @ (weight * y) + 1, x.T @ (weight * (1 - y)) + 1
    ratios = np.log(positive / positive.sum()) - np.log(negative / negative.sum())

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = parameters[:-1], parameters[-1]
        logit = x @ (ratios * w) + b
        error = weight * (special.expit(logit) - y)
        loss = INVERSE_STRENGTH * np.sum(weight * (np.logaddexp(0, logit) - y * logit)) + w @ w / 2
        return loss, np.append(INVERSE_STRENGTH * ratios * (x.T @ error) + w, INVERSE_STRENGTH * error.sum())

    start = np.zeros(x.shape[1] + 1)
    found = optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    return ratios * found[:-1], found[-1]
