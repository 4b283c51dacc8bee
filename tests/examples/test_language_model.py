"""The character language model learns, reads pages separately, and writes the same as with torch.nn.GRU."""

import math

import one_file
import pytest
import torch
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.slow

example = one_file.load("language_model")


@pytest.fixture(scope="module")
def trained():
    """A model after a few updates, and the bits after each."""
    torch.manual_seed(0)
    model = example.LanguageModel()
    return model, list(example.train(model, 40))


def test_learns_more_than_the_frequency_of_characters(trained):
    model, bits = trained
    assert len(bits) == 40
    assert bits[0] == pytest.approx(math.log2(len(example.ALPHABET)), abs=0.2)
    assert example.held_out_bits(model) < example.ngram_bits(0) - 0.3


def test_pages_are_read_each_by_itself(trained):
    model, _ = trained
    gru, nats, count = model.gru.to_torch(), 0.0, 0
    for page in example.HELD_OUT.split(example.PAGE)[1:]:
        text = example.PAGE + page + example.PAGE  # the end of every page but the last is predicted too
        codes = torch.tensor([example.CODES[character] for character in text])[: len(example.HELD_OUT) - count]
        with torch.no_grad():
            y, _ = gru(torch.eye(len(example.ALPHABET))[codes[:-1]])
            nats += cross_entropy(model.out(y), codes[1:], reduction="sum").item()
        count += len(codes) - 1
    assert count == len(example.HELD_OUT) - 1
    assert example.held_out_bits(model) == pytest.approx(nats / count / math.log(2), rel=1e-5)


def test_writes_what_nn_gru_writes(trained):
    model, _ = trained
    with model.gru.packed_weights():
        page = example.write(model, model.gru.step, 200)
    assert len(set(page)) > 5 and page == example.write(model, model.gru.to_torch(), 200)


def test_bits_of_single_characters():
    counts = {character: example.TRAIN.count(character) for character in example.ALPHABET}
    bits = [
        -math.log2((counts[character] + 1 / len(counts)) / (len(example.TRAIN) + 1)) for character in example.HELD_OUT
    ]
    assert example.ngram_bits(0) == pytest.approx(sum(bits) / len(bits))
    assert example.ngram_bits(2) < example.ngram_bits(1) < example.ngram_bits(0)


def test_as_a_program():
    result = one_file.run("language_model", "--steps", 2)
    assert result.returncode == 0, result.stderr
    assert "held-out pages" in result.stdout and "the same page: True" in result.stdout
    assert one_file.run("language_model", "--steps", 0).stderr.endswith("--steps must be at least 1, got 0\n")
