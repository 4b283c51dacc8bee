"""The n-grams, checked against explicit counting and the condition for a minimum."""

import math

import ngrams
import pytest
import torch
from ngrams import NGrams
from torch.nn.functional import binary_cross_entropy_with_logits

LETTERS = 6  # the vocabulary


@pytest.fixture(scope="module")
def reviews():
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(2, LETTERS, (n % 9 + 1,), generator=generator) for n in range(60)]
    return rows, torch.tensor([float(row.float().mean() > 3.4) for row in rows])


@pytest.fixture(autouse=True)
def _short_endings(monkeypatch):
    monkeypatch.setattr(ngrams, "LAST", 4)


def grams(row):
    """The distinct n-grams of 1 to 3 tokens, those with one or two gaps, and apart the words and pairs of the end."""
    row = row.tolist()
    found = {tuple(row[i : i + n]) for n in (1, 2, 3) for i in range(len(row) - n + 1)}
    found |= {(row[i], *[None] * gap, row[i + gap + 1]) for gap in (1, 2) for i in range(len(row) - gap - 1)}
    end = row[-4:]
    return found | {("end", *end[i : i + n]) for n in (1, 2) for i in range(len(end) - n + 1)}


def fitted(rows, targets, importance=None, count=2000):
    model = NGrams(count, LETTERS)
    return model, *model.fit(rows, targets, torch.ones(len(rows)) if importance is None else importance, seed=0)


def test_weights_are_the_minimum_of_the_regularised_loss(reviews):
    rows, targets = reviews
    importance = torch.ones(len(rows))
    importance[40:] = 0.5
    targets = targets.clone()
    targets[40:] = targets[40:] * 0.6 + 0.2  # soft labels
    model, *_ = fitted(rows, targets, importance)
    names = sorted(set().union(*map(grams, rows)), key=str)
    x = torch.tensor([[float(name in grams(row)) for name in names] for row in rows], dtype=torch.float64)
    p, q = (ngrams.SMOOTHING + (importance * each).double() @ x for each in (targets, 1 - targets))
    ratios = (p / p.sum()).log() - (q / q.sum()).log()

    def logits_of(w):
        return x @ (ratios * w[:-1]) + w[-1]

    w = torch.zeros(len(names) + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        losses = binary_cross_entropy_with_logits(logits_of(w), targets.double(), reduction="none")
        loss = ngrams.INVERSE_STRENGTH * (importance * losses).sum() + (w[:-1] - ngrams.PRIOR).square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    found = torch.cat([model(row[None], torch.tensor([len(row)])) for row in rows])
    torch.testing.assert_close(found.double(), logits_of(w).detach(), atol=2e-3, rtol=0)  # measured: 5e-4


def test_padding_and_repetitions_do_not_count(reviews):
    model, *_ = fitted(*reviews)
    row = torch.tensor([2, 3, 2, 3])
    padded = torch.tensor([[2, 3, 2, 3, 1, 1]])
    alone = model(row[None], torch.tensor([4]))
    torch.testing.assert_close(model(padded, torch.tensor([4])), alone)
    expected = model.bias + sum(weight_of(model, gram) for gram in grams(row))
    torch.testing.assert_close(alone, expected[None])


def key_of(model, gram):
    sign, gram = (-1, gram[1:]) if gram[0] == "end" else (1, gram)
    tokens = ((n, token) for n, token in enumerate(reversed(gram)) if token is not None)
    return sign * sum((token + 1) * model.base**n for n, token in tokens)


def weight_of(model, gram):
    return model.weights[model.keys == key_of(model, gram)].sum()


def test_a_reviews_evidence_does_not_follow_from_its_own_label(reviews):
    rows, targets = reviews
    model, before, logits = fitted(rows, targets)
    flipped = targets.clone()
    flipped[7] = 1 - flipped[7]
    again, after, others = fitted(rows, flipped)
    same = [(a / model.scale - b / again.scale).abs().max().item() for a, b in zip(before, after, strict=True)]
    assert same[7] < 1e-6 and max(same) > 1e-2  # other folds' reviews see the flipped label
    changes = (logits - others).abs()
    assert changes[7] < 1e-5 and changes.max() > 1e-2


def test_logits_of_training_reviews_are_sums_of_their_evidence(reviews):
    """Reviews without repetitions have it; soft-labelled ones are seen by no model, and get the mean."""
    rows, targets = reviews
    importance = torch.ones(len(rows))
    importance[40:] = 0.5
    model, evidence, logits = fitted(rows, targets, importance)
    distinct = [len(grams(row)) == (each != 0).sum() for row, each in zip(rows, evidence, strict=True)]
    biases = logits - torch.stack([(each / model.scale).sum() for each in evidence])
    assert any(distinct[:40]) and any(distinct[40:])
    assert len(biases[distinct].round(decimals=3).unique()) <= 5  # four folds and their mean


def test_evidence_has_a_mean_square_of_one_and_others_read_the_mean_table(reviews):
    model, evidence, _ = fitted(*reviews)
    torch.testing.assert_close(torch.cat(evidence).square().mean(0), torch.ones(7), atol=1e-4, rtol=0)
    tokens = torch.tensor([[2, 3, 4, 2, 3]])
    found = model.evidence(tokens, torch.tensor([5]))[0]
    assert found.shape == (5, 7)
    assert found[0, 1:].eq(0).all() and found[1, 2] == 0  # no pair ends at the first token, which is before the end
    row = (model.keys == 3).nonzero().item()  # of the token 2: 2 + 1
    torch.testing.assert_close(found[0, 0], model.cross_fitted[row] * model.scale[0])


def test_contributions_add_up(reviews):
    model, *_ = fitted(*reviews)
    for row in (torch.tensor([2]), torch.tensor([2, 3, 2, 3, 5])):
        total = model(row[None], torch.tensor([len(row)])) - model.bias
        torch.testing.assert_close(model.contributions(row).sum(), total[0])


def test_only_the_most_frequent_are_kept(reviews):
    rows, _ = reviews
    model, *_ = fitted(*reviews, count=4)
    counts = {gram: sum(gram in grams(row) for row in rows) for gram in set().union(*map(grams, rows))}
    kept = sorted(counts.values())[-4:]
    found = sorted(number for gram, number in counts.items() if (model.keys == key_of(model, gram)).any())
    assert found == kept and math.isfinite(model.weights.sum())


def test_keys_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit into 63 bits"):
        NGrams(10, 3_000_000)
