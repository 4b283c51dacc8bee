"""The models, checked against torch.nn.GRU run review by review."""

from types import SimpleNamespace

import imdb  # noqa: F401, it makes the example importable
import pytest
import torch
from model import Judge, LastState, Segments, margin
from torch import nn

LENGTHS = torch.tensor([9, 1, 5])
TOKENS = torch.randint(2, 30, (3, 9), generator=torch.Generator().manual_seed(0))
TOKENS[torch.arange(9) >= LENGTHS[:, None]] = 1


def config(**changes):
    values = {"gru": "grucore", "embedding_size": 6, "hidden_size": 5, "dropout": 0.5, "masked": True, "seed": 1}
    values |= {"segment": None, "crop": 4, "embedding_dropout": 0.3, "word_dropout": 0.1, "ngrams": None, "plain": 0}
    return SimpleNamespace(**values | {"ngram_share": None} | changes)


def test_the_published_classifier_reads_behind_the_padding_and_never_drops_out():
    model = LastState(30, config(masked=False)).train()
    reference = nn.GRU(6, 5, batch_first=True)
    reference.load_state_dict(model.gru.state_dict())
    expected = margin(model.out(reference(model.embedding(TOKENS))[0][:, -1]))
    torch.testing.assert_close(model(TOKENS, LENGTHS), expected)


@pytest.mark.parametrize("gru", ["grucore", "torch"])
def test_masked_it_reads_the_state_after_the_last_token(gru):
    torch.manual_seed(1)
    model = LastState(30, config(gru=gru)).eval()
    reference = nn.GRU(6, 5, batch_first=True)
    reference.load_state_dict(model.gru.state_dict())
    for row, length, log_odds in zip(TOKENS, LENGTHS, model(TOKENS, LENGTHS), strict=True):
        _, h = reference(model.embedding(row[None, :length]))
        torch.testing.assert_close(log_odds, margin(model.out(h[-1]))[0])


@pytest.mark.parametrize("gru", ["grucore", "torch"])
def test_segments_are_read_by_themselves_and_pooled(gru):
    torch.manual_seed(1)
    model = Segments(30, config(gru=gru, segment=4), evidence=3).eval()
    reference = nn.GRU(9, 5, batch_first=True, bidirectional=True)
    reference.load_state_dict(model.gru.state_dict())
    evidence = torch.randn(3, 9, 3)
    for b, length in enumerate(LENGTHS.tolist()):
        x = torch.cat([model.embedding(TOKENS[b, :length]), evidence[b, :length]], 1)
        y = torch.cat([reference(piece[None])[0][0] for piece in x.split(4)])
        expected = margin(model.out(torch.cat([y.amax(0), y.mean(0)])[None]))
        torch.testing.assert_close(model(TOKENS, LENGTHS, evidence)[b : b + 1], expected)


def test_in_training_a_window_of_each_review_is_read():
    model = Segments(30, config(segment=4, embedding_dropout=0.0, word_dropout=0.0, dropout=0.0), evidence=3).train()
    evidence, seen = TOKENS[:, :, None].repeat(1, 1, 3).float(), set()
    model.read = lambda x, lengths: (x, lengths)
    for _ in range(40):
        x, lengths = model(TOKENS, LENGTHS, evidence)
        assert lengths.tolist() == [4, 1, 4] and x.shape == (3, 4, 9)
        begin = [i for i in range(6) if torch.equal(x[0, :, 6], TOKENS[0, i : i + 4].float())]
        torch.testing.assert_close(x[0, :, :6], model.embedding(x[0, :, 6].long()))
        seen.update(begin)
    assert seen == set(range(6))


def test_dropout_acts_on_words():
    model = Segments(30, config(segment=4, embedding_dropout=0.0, word_dropout=0.5), evidence=0).train()
    x = model.embed(torch.full((1, 1000), 7))[0]
    dropped = (x == 0).all(1)
    assert 400 < dropped.sum() < 600
    torch.testing.assert_close(x[~dropped], (2 * model.embedding.weight[7]).expand(int((~dropped).sum()), -1))


def test_the_same_seed_gives_both_layers_the_same_weights():
    judges = [Judge(config(gru=gru, segment=4), 30, members=2).eval() for gru in ("grucore", "torch")]
    torch.testing.assert_close(*(judge(TOKENS, LENGTHS) for judge in judges))
    first, second = judges[0].margins(TOKENS, LENGTHS)
    assert not torch.allclose(first, second)


def test_the_judge_takes_the_weighted_mean_and_corrects_the_ngrams():
    judge = Judge(config(segment=4, ngrams=5, ngram_share=0.25, plain=1), 30, members=2).eval()
    judge.ngrams.bias.fill_(8.0)
    judge.sharpness.fill_(0.5)
    margins = judge.margins(TOKENS, LENGTHS)
    assert margins.shape == (3, 3) and margins[2].eq(8).all()
    assert [member.reads_evidence for member in judge.members] == [False, True]
    member = judge.members[1]
    alone = member(TOKENS, LENGTHS, judge.ngrams.evidence(TOKENS, LENGTHS))
    torch.testing.assert_close(margins[1], alone + 8)
    assert judge.weight_of_ngrams == 0.25 + 0.75 / 2
    expected = 0.5 * (0.375 * margins[0] + 0.375 * margins[1] + 0.25 * margins[2])
    torch.testing.assert_close(judge(TOKENS, LENGTHS), expected)
