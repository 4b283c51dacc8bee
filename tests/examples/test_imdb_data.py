"""The IMDB example's data: tokens, vocabulary, split and batches as the published pipeline has them."""

import imdb
import pytest
import torch
from batches import EvaluationBatches, TrainingBatches, loader
from data import DataError, Encoded, Reviews, build_vocabulary, encode, load, split, tokenize
from sample import corpus, generate


def test_tokens_are_lower_cased_words_between_spaces():
    assert tokenize("A GOOD film,\tbut<br /><br />long.\n") == ["a", "good", "film,", "but<br", "/><br", "/>long."]


def test_vocabulary_is_by_frequency_then_alphabet():
    texts = ["b b b a a a c c", "B C d"]
    assert build_vocabulary(texts, min_frequency=3) == ["<unk>", "<pad>", "b", "a", "c"]
    assert build_vocabulary(["x " * 4, "y " * 5]) == ["<unk>", "<pad>", "y"]


def test_unknown_words_are_0():
    encoded = encode(Reviews(["b z a"], [1]), ["<unk>", "<pad>", "a", "b"])
    assert encoded.tokens[0].tolist() == [3, 0, 2] and encoded.labels.tolist() == [1]


def test_split_is_four_to_one_and_repeatable():
    reviews = Reviews([str(i) for i in range(13)], [0] * 13)
    train, validation = split(reviews, seed=1)
    assert (len(train.texts), len(validation.texts)) == (10, 3)
    assert sorted(train.texts + validation.texts) == sorted(reviews.texts)
    assert split(reviews, seed=1) == (train, validation) and split(reviews, seed=2) != (train, validation)


def lengths(count, longest=300):
    return torch.randint(1, longest, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def padding_share(batches, lengths):
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize("bucketed", [False, True])
def test_training_batches_hold_every_review_once_and_differ_between_epochs(bucketed):
    batches = TrainingBatches(lengths(1000), 64, seed=5, bucketed=bucketed)
    epochs = []
    for batches.epoch in (1, 2):
        epoch = list(batches)
        assert len(epoch) == len(batches) == 16
        assert sorted(i for batch in epoch for i in batch) == list(range(1000))
        epochs.append(epoch)
    assert epochs[0] != epochs[1]
    batches.epoch = 1
    assert list(batches) == epochs[0]


def test_only_bucketed_batches_save_padding():
    sizes = lengths(6400)
    as_published, bucketed = (list(TrainingBatches(sizes, 64, 0, bucketed)) for bucketed in (False, True))
    assert padding_share(as_published, sizes) > 0.4
    assert padding_share(bucketed, sizes) < 0.03


def test_bucketing_stays_within_chunks_of_100_batches():
    batches = list(TrainingBatches(lengths(12_800), 64, 0, bucketed=True))
    order = [i for batch in TrainingBatches(lengths(12_800), 64, 0, bucketed=False) for i in batch]
    assert {i for batch in batches[:100] for i in batch} == set(order[:6400])


def test_evaluation_is_by_length_with_each_batch_reversed():
    sizes = lengths(150)
    batches = list(EvaluationBatches(sizes, 64))
    assert [len(batch) for batch in batches] == [64, 64, 22]
    ascending = [sizes[i] for batch in batches for i in batch[::-1]]
    assert ascending == sorted(sizes)


def test_a_batch_is_padded_on_the_right_with_pad():
    encoded = Encoded(
        [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([], dtype=torch.long)], torch.tensor([1, 0, 1])
    )
    (batch,) = loader(encoded, EvaluationBatches([3, 1, 0], 3))
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 1, 1], [1, 1, 1]]
    assert batch.lengths.tolist() == [3, 1, 1]
    assert batch.labels.tolist() == [1, 0, 1] and batch.weights.tolist() == [1, 1, 1] and batch.total == 3


def test_processes_share_each_batch():
    encoded = Encoded([torch.tensor([i]) for i in range(9)], torch.zeros(9, dtype=torch.long))
    order = EvaluationBatches([1] * 9, 4)  # the last batch has one review
    shares = [list(loader(encoded, order, rank, 2)) for rank in range(2)]
    for whole, *parts in zip(loader(encoded, order), *shares, strict=True):
        seen = torch.cat([part.tokens[part.weights > 0] for part in parts]).flatten()
        assert sorted(seen.tolist()) == sorted(whole.tokens.flatten().tolist())
        assert {part.total for part in parts} == {len(whole.tokens)}
    assert shares[1][-1].weights.tolist() == [0]


@pytest.mark.slow
def test_every_source_gives_the_same_reviews(tmp_path):
    imdb.write_tree(tmp_path / "tree")
    imdb.write_parquet(tmp_path / "parquet")
    assert load(str(tmp_path / "tree")) == load(str(tmp_path / "parquet"))
    assert [len(part.texts) for part in load(str(tmp_path / "tree"))] == [40, 12]


def test_sample_is_repeatable_balanced_and_split_without_overlap():
    (train, train_labels), (test, test_labels) = corpus()
    assert (len(train), len(test)) == (5000, 1000)
    assert not set(train) & set(test) and len(set(train)) == 5000
    assert sum(train_labels) == 2500 and sum(test_labels) == 500
    assert generate(50, seed=3) == generate(50, seed=3) != generate(50, seed=4)


def bad(folder, kind):
    if kind == "no folder":
        return folder / "nothing", "must be 'sample', 'hub' or a folder, got .*nothing"
    if kind == "empty":
        return folder, "must hold train.parquet .*; found nothing"
    if kind == "one part":
        imdb.write_parquet(folder)
        (folder / "test.parquet").unlink()
        return folder, "test.parquet must be a parquet file"
    if kind == "corrupt":
        imdb.write_parquet(folder)
        (folder / "train.parquet").write_bytes(b"PAR1 and no more")
        return folder, "train.parquet must be a parquet file"
    if kind == "columns":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"review": ["a"], "label": [1]}), folder / "train.parquet")
        return folder, "train.parquet must .*columns text and label"
    if kind == "labels":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": [-1]}), folder / "train.parquet")
        return folder, r"labels 0 and 1, got 1 reviews with labels \[-1\]"
    if kind == "no texts":
        imdb.write_tree(folder)
        for path in (folder / "train" / "neg").iterdir():
            path.unlink()
        return folder, "train/neg must hold the reviews as .*found none"
    imdb.write_tree(folder)
    (folder / "train" / "pos" / "1.txt").write_bytes(b"\xff\xfe\xff")
    return folder, "1.txt must be a UTF-8 text"


KINDS = ["no folder", "empty", "one part", "corrupt", "columns", "labels", "no texts", "not UTF-8"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_data(tmp_path, kind):
    folder, message = bad(tmp_path, kind)
    with pytest.raises(DataError, match=message):
        load(str(folder))


@pytest.mark.slow
def test_hub_without_a_network_says_what_to_do(monkeypatch):
    import datasets

    def refuse(name):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"stanfordnlp/imdb from the hub: no route.*\n--data sample needs no network"):
        load("hub")


def test_hub_rows_are_read(monkeypatch):
    import datasets

    def two_parts(name):
        assert name == "stanfordnlp/imdb"
        return datasets.DatasetDict(
            {
                part: datasets.Dataset.from_dict({"text": [f"b {part}", f"a {part}"], "label": [1, 0]})
                for part in ("train", "test")
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", two_parts)
    train, test = load("hub")
    assert train == Reviews(["a train", "b train"], [0, 1]) and test.texts == ["a test", "b test"]
