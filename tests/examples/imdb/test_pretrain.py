"""Pre-training, checked against plain loops over words; interrupted runs; damaged files."""

import json
import shutil
from types import SimpleNamespace

import imdb
import pretrain
import pytest
import torch
from config import UserError
from data import load, split_by_blocks
from model import Segments
from safetensors.torch import load_file
from torch import nn

TEXTS = [torch.randint(2, 40, (n,), generator=torch.Generator().manual_seed(n)) for n in (7, 1, 4, 9)]
TEXTS[0][3], TEXTS[3][6] = 20, 19  # 20 is the first word that is predicted
SIZES = {"embedding_size": 6, "hidden_size": 5, "dropout": 0.5, "segment": 4, "crop": 4}


def reader(evidence=0, gru="grucore"):
    return Segments(40, SimpleNamespace(gru=gru, embedding_dropout=0.0, word_dropout=0.0, **SIZES), evidence)


def shorten(patch):
    for name, value in (("REACH", 3), ("STRIDE", 2), ("BATCH", 4)):
        patch.setattr(pretrain, name, value)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    shorten(monkeypatch)


def test_windows_are_segments_with_what_stands_around_them():
    windows = iter(pretrain.windows_of(TEXTS, 4).tolist())
    for text in TEXTS:
        for begin in range(0, len(text), 4):
            places = range(begin - 3, begin + 7)
            assert next(windows) == [int(text[i]) if 0 <= i < len(text) else 1 for i in places]
    assert next(windows, None) is None


@pytest.mark.parametrize("begin", [0, 1])
@pytest.mark.parametrize("gru", ["grucore", "torch"])
def test_the_loss_is_that_of_the_words_ahead(begin, gru):
    torch.manual_seed(2)
    model = pretrain.WordsAhead(reader(gru=gru))
    reference = nn.GRU(6, 5, batch_first=True, bidirectional=True)
    reference.load_state_dict(model.reader.gru.state_dict())
    losses = [[], []]
    for text in TEXTS:
        for start in range(0, len(text), 4):
            piece = text[start : start + 4]
            y = reference(model.reader.embedding(piece)[None])[0][0]
            for place in range(begin, len(piece), 2):
                for direction, sign in enumerate((1, -1)):
                    h = y[place, 5 * direction : 5 * (direction + 1)]
                    log_p = model.out[direction](h).log_softmax(0)
                    ahead = [start + place + sign * n for n in (1, 2, 3)]
                    words = [int(text[i]) for i in ahead if 0 <= i < len(text)]
                    losses[direction] += [-log_p[word - 20] for word in words if word >= 20]
    expected = torch.stack([torch.stack(each).mean() for each in losses]).mean()
    torch.testing.assert_close(model(pretrain.windows_of(TEXTS, 4).long(), begin), expected)


def test_all_that_is_trained_has_a_gradient():
    """Else a second process waits for it."""
    model = pretrain.WordsAhead(reader())
    model(pretrain.windows_of(TEXTS, 4).long(), 0).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_a_member_starts_from_it():
    torch.manual_seed(3)
    source, plain, told = reader(), reader(), reader(evidence=2)
    before = told.gru.weight_ih_l0.clone()
    pretrained = {name: each for name, each in source.state_dict().items() if not name.startswith("out.")}
    for member in (plain, told):
        member.start_from(pretrained)
        assert torch.equal(member.embedding.weight, source.embedding.weight)
        assert torch.equal(member.gru.weight_hh_l0_reverse, source.gru.weight_hh_l0_reverse)
        assert torch.equal(member.gru.weight_ih_l0[:, :6], source.gru.weight_ih_l0)
        assert not torch.equal(member.out.weight, source.out.weight)
    assert torch.equal(told.gru.weight_ih_l0[:, 6:], before[:, 6:])


@pytest.fixture(scope="module")
def flags(data, best):
    return ["--data", data, *imdb.SEMI, "--teacher", best, "--checkpoint-every", 3]


@pytest.fixture(scope="module")
def semi(flags, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        return imdb.train(tmp_path_factory.mktemp("runs") / "semi", *flags)


@pytest.mark.slow
def test_it_resumes_with_the_same_bits(semi, flags, tmp_path, monkeypatch):
    forward, steps = pretrain.WordsAhead.forward, iter(range(10))

    def killed(*given):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return forward(*given)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(pretrain.WordsAhead, "forward", killed)
        imdb.train(tmp_path / "run", *flags)
    assert (tmp_path / "run" / "pretraining.pt").exists()
    run = imdb.train(tmp_path / "run", *flags, "--resume")
    assert not (run / "pretraining.pt").exists()
    first, second = (imdb.state(each) for each in (semi, run))
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (load_file(each / "pretrained.safetensors") for each in (semi, run))
    assert all(torch.equal(first[name], second[name]) for name in first if name != "seconds")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrained.safetensors", "soft-labels.safetensors"])
def test_a_damaged_file_is_named(semi, flags, tmp_path, name):
    run = shutil.copytree(semi, tmp_path / "run")
    (run / name).write_bytes((run / name).read_bytes()[:50])
    with pytest.raises(UserError, match=f"{run / name} must be a file of this run .delete it"):
        imdb.train(run, *flags, "--resume")


@pytest.mark.slow
def test_the_grus_start_from_it(semi, flags, tmp_path):
    """A learning rate of 0 leaves them there."""
    run = imdb.train(tmp_path / "run", *flags, "--learning-rate", 0)
    members, start = imdb.state(run), load_file(run / "pretrained.safetensors")
    assert start.pop("seconds") > 0
    for name, weights in start.items():
        for member in (0, 1):
            of_member = members[f"members.{member}.{name}"]
            assert torch.equal(of_member[..., : weights.shape[-1]], weights)
    assert not torch.equal(imdb.state(semi)["members.0.embedding.weight"], start["embedding.weight"])


@pytest.mark.slow
def test_a_second_round_starts_from_the_first_ones(semi, flags, tmp_path, monkeypatch):
    """With new labels, and other options of what follows; a GRU of another size is trained."""
    shorten(monkeypatch)
    second = ["--teacher", semi, "--no-test"]
    run = imdb.train(tmp_path / "run", *flags, *second, "--clip", 2)
    first, again = (load_file(each / "pretrained.safetensors") for each in (semi, run))
    assert all(torch.equal(first[name], again[name]) for name in first)
    labels = [load_file(each / "soft-labels.safetensors")["probabilities"] for each in (semi, run)]
    assert not torch.equal(*labels)
    assert not {name for name in json.loads((run / "summary.json").read_text()) if name.startswith("test")}
    run = imdb.train(tmp_path / "wider", *flags, *second, "--hidden-size", 12)
    assert load_file(run / "pretrained.safetensors")["gru.weight_hh_l0"].shape == (36, 12)


@pytest.mark.slow
def test_without_it(flags, tmp_path):
    run = imdb.train(tmp_path / "run", *flags, "--pretraining-epochs", 0)
    assert not (run / "pretrained.safetensors").exists() and (run / "summary.json").exists()


@pytest.mark.slow
def test_best_reads_no_other_texts_for_it(data, tmp_path, monkeypatch):
    """Only those of the training split; its GRUs of both kinds start from there."""
    shorten(monkeypatch)
    seen, of = [], pretrain.windows_of
    monkeypatch.setattr(pretrain, "windows_of", lambda tokens, segment: seen.append(len(tokens)) or of(tokens, segment))
    flags = ["--data", data, *imdb.BEST, "--pretraining-epochs", 1, "--plain", 1, "--learning-rate", 0]
    run = imdb.train(tmp_path / "run", *flags)
    train_part, _ = split_by_blocks(load(str(data), "train"))
    assert seen == [len(train_part.texts)]
    members, start = imdb.state(run), load_file(run / "pretrained.safetensors")
    for member in (0, 1):
        of_member = members[f"members.{member}.embedding.weight"]
        assert torch.equal(of_member, start["embedding.weight"])
