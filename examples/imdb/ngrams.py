"""A linear model over a review's n-grams, scaled by log-count ratios: fitted once, then frozen.

    logit = b + sum over the distinct known n-grams g of a review of  w_g r_g
    r_g   = log( (p_g + a) / sum_g (p_g + a) ) - log( (q_g + a) / sum_g (q_g + a) )

p_g and q_g count the positive and the negative training reviews that contain g. Source: Wang and Manning 2012 (NB-SVM);
here w minimises a logistic regression whose penalty pulls it towards one value above 0, that is, towards naive Bayes
(their interpolation). An n-gram may skip tokens ("not _ good"); one in the last tokens of a review, where the verdict
often is, counts a second time, with a weight of its own. The model knows nothing else of the order: that is the GRU's
task. The GRU reads, at each token, w_g r_g of the n-grams that end there, and learns what has to be added to the logit.
For a training review all these come from a model that has not seen it (cross-fitting); otherwise the GRU would learn to
trust them blindly.
"""

import numpy as np
import torch
from scipy import optimize, sparse, special
from torch import Tensor, nn

NO_NGRAM = torch.iinfo(torch.int64).max  # the key of padding, of repetitions, and of unused rows of the table
PATTERNS = ((0,), (0, 1), (0, 1, 2), (0, 2), (0, 3))  # the tokens of an n-gram, as places before its last
AT_THE_END = ((0,), (0, 1))  # the patterns that count again in the last tokens
LAST = 64  # the number of these tokens
KINDS = len(PATTERNS) + len(AT_THE_END)
FOLDS = 4
# Chosen by cross-validation over the labelled reviews in ten blocks: see the README.
SMOOTHING = 3.0  # a
PRIOR = 0.01  # the value that each w is pulled towards
INVERSE_STRENGTH = 0.1  # of that pull: C of a logistic regression


class NGrams(nn.Module):
    """The table of n-grams: `fit` before use.

    Args:
        count: the number of rows of the table, which keeps the most frequent n-grams.
        vocabulary_size: V; token ids are smaller.

    Raises:
        ValueError: (V + 1) ** 4 does not fit into 63 bits.
    """

    keys: Tensor
    weights: Tensor
    cross_fitted: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, count: int, vocabulary_size: int):
        super().__init__()
        if (vocabulary_size + 1) ** 4 >= NO_NGRAM:
            raise ValueError(f"four tokens out of {vocabulary_size} do not fit into 63 bits")
        self.base = vocabulary_size + 1
        self.register_buffer("keys", torch.full((count,), NO_NGRAM))  # ascending
        self.register_buffer("weights", torch.zeros(count))  # w_g r_g
        self.register_buffer("cross_fitted", torch.zeros(count))  # the same, averaged over the models of all folds
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("scale", torch.ones(KINDS))  # makes the mean square of each kind's evidence 1

    @torch.no_grad()
    def fit(self, tokens: list[Tensor], targets: Tensor, importance: Tensor, seed: int) -> tuple[list[Tensor], Tensor]:
        """Chooses the n-grams and fits their weights.

        Args:
            tokens: of the training reviews.
            targets: shape (N,), the probability of each of being positive.
            importance: shape (N,), of each review; those with 1 are cross-fitted, the others are soft-labelled.
            seed: determines the folds.

        Returns:
            The evidence (T, kinds) of each review, and their logits (N,), by the models that have not seen it.
        """
        by_token = [self._keys(row[None], torch.tensor([len(row)]))[0] for row in tokens]
        distinct = [np.unique(keys)[:-1] for keys in by_token]  # without NO_NGRAM: no pair ends at the first token
        keys, total = np.unique(np.concatenate(distinct), return_counts=True)
        kept = np.sort(np.argsort(-total, kind="stable")[: len(self.keys)])
        self.keys[: len(kept)] = torch.from_numpy(keys[kept])
        rows = [_rows(self.keys, torch.from_numpy(keys)) for keys in distinct]
        rows = [row[row >= 0].numpy() for row in rows]
        held, offsets = np.concatenate(rows), np.cumsum([0, *map(len, rows)])
        x = sparse.csr_array((np.ones(len(held)), held, offsets), shape=(len(tokens), len(kept)))
        y, weight = targets.double().numpy(), importance.double().numpy()
        weights, bias = _logistic_regression(x, y, weight)
        self.weights[: len(kept)] = torch.from_numpy(weights)
        self.bias.fill_(bias)

        labelled = np.flatnonzero(weight == 1)
        fold = np.full(len(tokens), FOLDS)  # the mean of all is for those that no model has seen
        fold[labelled] = np.random.default_rng(seed).permutation(len(labelled)) % FOLDS
        others = [labelled[fold[labelled] != k] for k in range(FOLDS)]
        fits = [np.append(*_logistic_regression(x[some], y[some], weight[some])) for some in others]
        tables = torch.from_numpy(np.stack([*fits, np.mean(fits, 0)])).float()
        self.cross_fitted[: len(kept)] = tables[-1, :-1]
        logits = torch.from_numpy(x @ tables[:, :-1].double().numpy().T).float() + tables[:, -1]
        logits = logits[torch.arange(len(tokens)), torch.from_numpy(fold)]
        evidence = [_lookup(self.keys[: len(kept)], tables[k], keys) for keys, k in zip(by_token, fold, strict=True)]
        squares = torch.stack([each.double().square().sum(0) for each in evidence]).sum(0)
        self.scale.copy_((sum(map(len, evidence)) / squares.clamp(min=1e-12)).sqrt())
        return [each * self.scale for each in evidence], logits

    def _keys(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Keys (B, T, kinds) of the n-grams that end at each token; those in the last tokens have negative keys."""
        steps = tokens.shape[1]
        place, end = torch.arange(steps, device=tokens.device), lengths[:, None]
        keys = []
        for patterns, sign, begin in (
            (PATTERNS, 1, torch.zeros_like(end)),
            (AT_THE_END, -1, (end - LAST).clamp(min=0)),
        ):
            for pattern in patterns:  # a token is a digit in base V + 1, from 1 to V; one that is skipped is 0
                digits = (nn.functional.pad(tokens, (n, 0))[:, :steps] + 1 for n in pattern)
                key = sum(digit * self.base**n for n, digit in zip(pattern, digits, strict=True))
                known = (place >= begin + pattern[-1]) & (place < end)
                keys.append(torch.where(known, sign * key, NO_NGRAM))
        return torch.stack(keys, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The logit (B,) of a review being positive, from tokens (B, T) and lengths (B,)."""
        keys = self._keys(tokens, lengths).flatten(1).sort(1).values
        keys[:, 1:] = keys[:, 1:].masked_fill(keys[:, 1:] == keys[:, :-1], NO_NGRAM)
        return _lookup(self.keys, self.weights, keys).sum(1) + self.bias

    def evidence(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """For each token the scaled evidence (B, T, kinds) of the n-grams that end there."""
        return _lookup(self.keys, self.cross_fitted, self._keys(tokens, lengths)) * self.scale

    def contributions(self, tokens: Tensor) -> Tensor:
        """Each token's share (T,) of the logit without the bias, from tokens (T,).

        An n-gram's weight is divided evenly among the tokens of all its occurrences.
        """
        keys = self._keys(tokens[None], torch.tensor([len(tokens)], device=tokens.device))[0]
        _, which, occurrences = keys.unique(return_inverse=True, return_counts=True)
        shares = _lookup(self.keys, self.weights, keys) / occurrences[which]
        total = torch.zeros(len(tokens), device=tokens.device)
        for kind, pattern in enumerate(PATTERNS + AT_THE_END):
            for back in pattern:
                total[: max(0, len(tokens) - back)] += shares[back:, kind] / len(pattern)
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
    positive, negative = (x.T @ (weight * each) + SMOOTHING for each in (y, 1 - y))
    ratios = np.log(positive / positive.sum()) - np.log(negative / negative.sum())

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = parameters[:-1], parameters[-1]
        logit = x @ (ratios * w) + b
        error = weight * (special.expit(logit) - y)
        loss = INVERSE_STRENGTH * np.sum(weight * (np.logaddexp(0, logit) - y * logit)) + np.sum((w - PRIOR) ** 2) / 2
        return loss, np.append(INVERSE_STRENGTH * ratios * (x.T @ error) + w - PRIOR, INVERSE_STRENGTH * error.sum())

    start = np.append(np.full(x.shape[1], PRIOR), 0.0)
    found = optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    return ratios * found[:-1], found[-1]
