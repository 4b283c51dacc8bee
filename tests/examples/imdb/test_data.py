"""Tokens, vocabulary, splits and batches: those of the published pipeline against plain Python, and ours."""

from collections import Counter

import data as module
import imdb
import pytest
import torch
from config import UserError
from data import Encoded, Reviews, load
from sample import corpus, generate

TEXTS = ["A GOOD film,\tbut<br /><br />long.\n", "b b b b b a a a a a c c c c", "B C d\u2003e\u0085E e e \u0130 a"]


def test_words_are_those_of_the_published_pipeline():
    """torchtext: `str.split`, lower-cased, 5 or more, by frequency, then by the alphabet; all others are <unk>, 0."""
    words = [word.lower() for text in TEXTS for word in text.split()]
    counts = Counter(words)
    kept = sorted((word for word in counts if counts[word] >= 5), key=lambda word: (-counts[word], word))
    tokenizer = module.learn_vocabulary(TEXTS, None)
    ids = {word: i for i, word in enumerate(["<unk>", "<pad>", *kept])}
    assert len(kept) == 3 and tokenizer.get_vocab() == ids
    encoded = module.encode(tokenizer, Reviews(TEXTS, [0, 1, 1]))
    for text, row in zip(TEXTS, encoded.tokens, strict=True):
        assert row.tolist() == [ids.get(word.lower(), 0) for word in text.split()]
    assert encoded.targets.tolist() == [0, 1, 1]


def test_words_and_marks():
    tokenizer = module.learn_vocabulary(["It isn't bad?! <br />\uff26\uff29\uff2c\uff2d's film film"], 4)
    found = module.pieces(tokenizer, "It isn't bad?! <br />\uff26\uff29\uff2c\uff2d's")
    assert found == ["it", "isn't", "bad", "?", "!", "film's"]
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[:3] == ["<unk>", "<pad>", "film"]
    assert module.encode(tokenizer, Reviews(["", "film \0"], [0, 0])).tokens[0].tolist() == [module.PADDING]


def test_the_random_split_is_four_to_one_and_repeatable():
    reviews = Reviews([str(i) for i in range(13)], [0] * 13)
    train, validation = module.split_at_random(reviews, seed=1)
    assert (len(train.texts), len(validation.texts)) == (10, 3)
    assert sorted(train.texts + validation.texts) == sorted(reviews.texts)
    assert module.split_at_random(reviews, seed=1) == (train, validation) != module.split_at_random(reviews, seed=2)


def test_blocks_are_consecutive_and_share_no_text_with_training():
    texts = [str(i) for i in range(400)]
    texts[0] = texts[21]  # which is held out
    train, validation = module.split_by_blocks(Reviews(texts, [0] * 200 + [1] * 200))
    rows = [texts.index(text, 1) for text in validation.texts]
    expected = [k * 40 + 18 + i for k in range(10) for i in range(4)]
    assert rows == expected and validation.labels == [0] * 20 + [1] * 20
    assert len(train.texts) == 400 - 40 - 1 and not set(train.texts) & set(validation.texts)


def test_unlabelled_reviews_come_once_and_never_from_what_is_scored():
    reviews = Reviews(["a", "b", "a", "c", "d"], [-1] * 5)
    assert module.without(reviews, Reviews(["c"], [0]), Reviews(["d"], [1])) == Reviews(["a", "b"], [-1, -1])


def lengths(count, longest=300):
    return torch.randint(1, longest, (count,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("bucketed", [False, True])
def test_training_batches_hold_every_review_once_and_differ_between_epochs(bucketed):
    first, second = (module.training_batches(lengths(1000), 64, 5, epoch, bucketed) for epoch in (1, 2))
    for epoch in (first, second):
        assert len(epoch) == 16 and sorted(i for batch in epoch for i in batch) == list(range(1000))
    assert first != second and first == module.training_batches(lengths(1000), 64, 5, 1, bucketed)


def test_only_bucketed_batches_save_padding_and_stay_within_their_chunk():
    sizes = lengths(12_800)
    plain, bucketed = (module.training_batches(sizes, 64, 0, 1, bucketed) for bucketed in (False, True))
    padding = [1 - sum(sizes) / sum(max(sizes[i] for i in b) * len(b) for b in each) for each in (plain, bucketed)]
    assert padding[0] > 0.4 and padding[1] < 0.03
    assert {i for batch in bucketed[:100] for i in batch} == {i for batch in plain[:100] for i in batch}


def test_processes_share_a_padded_batch():
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 9])]
    evidence = [torch.ones(len(row), 2) for row in rows]
    encoded = Encoded(rows, torch.tensor([1.0, 0.0, 1.0]), evidence)
    whole = module.collate(encoded, [0, 1, 2])
    assert whole.tokens.tolist() == [[5, 6, 7], [8, 1, 1], [9, 9, 1]] and whole.lengths.tolist() == [3, 1, 2]
    assert whole.evidence.sum((1, 2)).tolist() == [6, 2, 4]
    shares = [module.collate(encoded, [0, 1, 2], rank, 4) for rank in range(4)]
    assert [share.targets.tolist() for share in shares[:3]] == [[1], [0], [1]]
    assert shares[3].weights.tolist() == [0] and len(shares[3].tokens) == 1


def test_every_source_gives_the_same_reviews(tmp_path):
    tree, parquet = imdb.write_tree(tmp_path / "tree"), imdb.write_parquet(tmp_path / "parquet")
    for part, count in (("train", 40), ("test", 12)):
        found = [load(str(folder), part) for folder in (tree, parquet)]
        assert found[0].ordered() == found[1].ordered() and len(found[0].texts) == count
        assert found[0].digest() == found[1].digest()
    assert found[0].digest() != found[0]._replace(labels=found[0].labels[::-1]).digest()


def test_sample_is_repeatable_balanced_and_split_without_overlap():
    (train, train_labels), (test, test_labels) = corpus()
    assert (len(train), len(test)) == (5000, 1000)
    assert not set(train) & set(test) and len(set(train)) == 5000
    assert sum(train_labels) == 2500 and sum(test_labels) == 500
    assert generate(50, seed=3) == generate(50, seed=3) != generate(50, seed=4)


def bad(folder, kind):
    import pyarrow
    import pyarrow.parquet

    if kind == "no folder":
        return folder / "nothing", "must be sample, hub or a folder, got .*nothing"
    if kind == "empty":
        return folder, "must hold train.parquet, .*; found nothing"
    if kind == "corrupt":
        (folder / "train.parquet").write_bytes(b"PAR1 and no more")
        return folder, "could not read .*train.parquet, a parquet file: "
    if kind == "columns":
        pyarrow.parquet.write_table(pyarrow.table({"review": ["a"], "label": [1]}), folder / "train.parquet")
        return folder, "could not read .*train.parquet, .*'text'.*'review', 'label'"
    if kind == "labels":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": [-1]}), folder / "train.parquet")
        return folder, r"expected texts with labels \[0, 1\] in its train split, got 1 rows with labels \[-1\]"
    imdb.write_tree(folder)
    if kind == "no texts":
        for path in (folder / "train" / "neg").iterdir():
            path.unlink()
        return folder, "train/neg must hold the reviews as .*found none"
    (folder / "train" / "pos" / "1_9.txt").write_bytes(b"\xff\xfe\xff")
    return folder, "train/pos must hold UTF-8 texts"


@pytest.mark.parametrize("kind", ["no folder", "empty", "corrupt", "columns", "labels", "no texts", "not UTF-8"])
def test_bad_data(tmp_path, kind):
    folder, message = bad(tmp_path, kind)
    with pytest.raises(UserError, match=message):
        load(str(folder), "train")


def test_the_hub(monkeypatch):
    import datasets

    def two_rows(name, split):
        assert (name, split) == ("stanfordnlp/imdb", "train")
        return datasets.Dataset.from_dict({"text": ["b", "a"], "label": [1, 0]})

    def refuse(name, split):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(datasets, "load_dataset", two_rows)
    assert load("hub", "train") == Reviews(["b", "a"], [1, 0])
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"stanfordnlp/imdb from the hub \(--data sample needs no network\): no route"):
        load("hub", "train")
