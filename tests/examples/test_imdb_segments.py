"""The parts of `--preset best` and `semi`: n-grams, segments, objective, vocabulary, cache; each against an oracle."""

import math
import threading
from collections import Counter

import imdb  # noqa: F401  (makes the example's modules importable)
import pytest
import torch
from batches import Batch, EndlessBatches, TrainingBatches, loader
from cache import encoded as cached
from cache import key
from data import Encoded, Reviews, load_unlabelled, overlap, split_stratified
from evaluation import calibration, calibration_error
from language_model import LanguageModel, streams
from ngrams import NGrams
from objective import Objective, Part, direction, spread
from run_folder import RunError, RunFolder
from segments import SegmentClassifier
from torch import nn
from torch.nn.functional import cross_entropy
from trainer import learning_rate_factor
from vocabularies import learn, read

VOCABULARY = 12


def reviews(count=20, longest=11):
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(2, VOCABULARY, (size,), generator=generator) for size in sizes]


def padded(rows):
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1), torch.tensor([len(r) for r in rows])


def grams(row, order):
    row = row.tolist()
    return {tuple(row[i : i + n]) for n in range(1, order + 1) for i in range(len(row) - n + 1)}


def test_ngram_logits_are_naive_bayes_ratios_times_weights():
    rows, labels = reviews(), torch.tensor([0, 1] * 10)
    path = NGrams(1000, VOCABULARY, 3)
    path.fit(rows, labels)
    p, q = Counter(), Counter()
    for row, label in zip(rows, labels.tolist(), strict=True):
        (p if label else q).update(grams(row, 3))
    known = p.keys() | q.keys()
    total_p, total_q = (sum(c[g] + 1 for g in known) for c in (p, q))
    ratio = {g: math.log((p[g] + 1) / total_p) - math.log((q[g] + 1) / total_q) for g in known}
    with torch.no_grad():
        path.weight.uniform_(0.5, 1.5)
        path.bias.fill_(0.25)
    base = VOCABULARY + 1
    key = {g: sum((token + 1) * base**i for i, token in enumerate(reversed(g))) for g in known}
    weight = dict(zip(path.keys.tolist(), path.weight.tolist(), strict=True))
    unseen = [torch.tensor([5, 5, 5, 5]), torch.tensor([2])]
    got = path(*padded(rows + unseen))
    want = [0.25 + sum(weight[key[g]] * ratio[g] for g in grams(row, 3) if g in known) for row in rows + unseen]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-5)


def test_the_most_frequent_ngrams_are_kept():
    rows = [torch.tensor([2, 3]), torch.tensor([2, 4]), torch.tensor([2, 3, 3])]
    path = NGrams(2, VOCABULARY, 1)
    path.fit(rows, torch.tensor([1, 0, 1]))
    assert path.keys.tolist() == [3, 4]  # tokens 2 (three reviews) and 3 (two), plus 1


def test_evidence_adds_up_to_the_logit_and_lies_on_its_words():
    rows = reviews()
    path = NGrams(1000, VOCABULARY, 3)
    path.fit(rows, torch.tensor([0, 1] * 10))
    tokens, lengths = padded(rows)
    evidence = path.evidence(tokens, lengths)
    torch.testing.assert_close(evidence.sum(1), path(tokens, lengths) - path.bias, rtol=1e-5, atol=1e-6)
    assert not evidence[torch.arange(tokens.shape[1]) >= lengths[:, None]].any()
    single = NGrams(1000, VOCABULARY, 1)
    single.fit(rows, torch.tensor([0, 1] * 10))
    row = torch.tensor([[2, 7, 2]])
    assert single.evidence(row, torch.tensor([3]))[0, 1] == pytest.approx(
        (single(torch.tensor([[7]]), torch.tensor([1])) - single.bias).item()
    )


def test_ngrams_too_long_to_number_are_refused():
    with pytest.raises(ValueError, match="n-grams of 5 tokens out of 30000 do not fit"):
        NGrams(10, 30_000, 5)


def classifier(**options):
    torch.manual_seed(0)
    settings = {"embedding_size": 6, "hidden_size": 5, "bidirectional": True, "segment": 4, "crop": None}
    settings |= {"last": False, "head_size": 0, "dropout": 0.0, "embedding_dropout": 0.0, "word_dropout": 0.0}
    settings |= {"ngrams": 0, "ngram_order": 2, "gru": "grucore"} | options
    return SegmentClassifier(VOCABULARY, **settings)


@pytest.mark.parametrize("gru", ["grucore", "torch"])
def test_a_review_is_read_in_independent_segments_and_pooled(gru):
    model = classifier(gru=gru).eval()
    oracle = nn.GRU(6, 5, batch_first=True, bidirectional=True)
    oracle.load_state_dict(model.gru.state_dict())
    rows = reviews()
    got = model(*padded(rows))
    for row, logits in zip(rows, got, strict=True):
        states = torch.cat([oracle(piece[None])[0][0] for piece in model.embedding(row).split(4)])
        pooled = torch.cat([states.amax(0), states.mean(0)])
        torch.testing.assert_close(logits, model.out(pooled), rtol=1e-5, atol=1e-6)


def test_last_states_are_pooled_with_a_head():
    model = classifier(last=True, head_size=7, segment=20, bidirectional=False).eval()
    row = reviews()[0]
    states = model.gru(model.embedding(row)[None])[0][0]
    pooled = torch.cat([states.amax(0), states.mean(0), states[-1]])
    want = model.out(torch.relu(model.head[0](pooled)))
    torch.testing.assert_close(model(*padded([row]))[0], want, rtol=1e-5, atol=1e-6)


def test_windows():
    tokens, lengths = torch.arange(40).view(2, 20), torch.tensor([20, 3])
    model = classifier(crop=8)
    starts = set()
    for _ in range(200):
        seen, size = model.window(tokens, lengths)
        assert size.tolist() == [8, 3] and seen[1, :3].tolist() == [20, 21, 22]
        assert (seen[0].diff() == 1).all()
        starts.add(seen[0, 0].item())
    assert starts == set(range(13))
    assert model.eval().window(tokens, lengths)[0] is tokens
    seen, size = classifier(crop=8, last=True).eval().window(tokens, lengths)
    assert seen[0].tolist() == list(range(12, 20)) and size.tolist() == [8, 3]


def test_word_dropout_takes_whole_words():
    model = classifier(word_dropout=0.5)
    x = model.embed(torch.full((50, 8), 4))
    dropped = (x == 0).all(2)
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(x[~dropped], (2 * model.embedding.weight[4]).expand_as(x[~dropped]))


def part(rows, labels):
    tokens, lengths = padded(rows)
    return Part(tokens, lengths, labels, torch.ones(len(rows)), 1 / len(rows))


def objective(model, adversarial):
    return Objective(model, model, adversarial, lambda loss: loss, lambda: torch.autocast("cpu", enabled=False))


@pytest.mark.parametrize("adversarial", [0.0, 0.7])
def test_gradients_are_those_of_the_written_loss(adversarial):
    rows, labels = reviews(6), torch.tensor([0, 1, 1, 0, 1, 0])
    model = classifier(ngrams=100)
    model.ngrams.fit(rows, labels)
    logits, losses = objective(model, adversarial).supervised(part(rows, labels), last=True)
    got = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    tokens, lengths = padded(rows)
    x = model.embedding(tokens)
    clean = cross_entropy(model.read(x, lengths), labels)
    loss = clean + cross_entropy(model.wide(tokens, lengths), labels)
    if adversarial:
        (g,) = torch.autograd.grad(clean, x, retain_graph=True)
        length = [row[:size].square().mean().sqrt() for row, size in zip(x.detach(), lengths, strict=True)]
        d = torch.stack([s * adversarial * row / row.norm() for s, row in zip(length, g, strict=True)])
        loss = loss + cross_entropy(model.read(x + d, lengths), labels)
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-7)
    assert losses.mean().item() == pytest.approx((clean + cross_entropy(model.wide(tokens, lengths), labels)).item())
    torch.testing.assert_close(logits, model.eval()(tokens, lengths).detach())


def test_the_share_of_each_path_is_the_one_that_predicts_best():
    """In the likelihood of labels drawn from 0.3 a + 0.7 b, that mixture is the best in expectation."""
    model, margins = classifier(ngrams=100), 6 * torch.randn(2, 200_000)
    labels = torch.bernoulli((0.3 * margins[0] + 0.7 * margins[1]).sigmoid())
    model.choose_share(margins, labels)
    assert model.share.item() == pytest.approx(0.3)
    torch.testing.assert_close(model.combine(margins), 0.3 * margins[0] + 0.7 * margins[1])
    assert torch.equal(classifier().combine(margins[:1]), margins[0])


def test_directions_have_length_one_and_nothing_stays_nothing():
    gradient = torch.randn(3, 4, 5) * torch.tensor([1.0, 1e-30, 0.0])[:, None, None]
    norms = direction(gradient).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 1.0, 0.0]))
    x = torch.full((2, 3, 4), 2.0)
    x[1, 1:] = math.nan
    assert spread(torch.where(x.isnan(), 9.0, x), torch.tensor([3, 1])).flatten().tolist() == [2, 2]


def test_unlabelled_losses_push_beliefs_apart_from_an_even_one():
    rows = reviews(6)
    model = classifier()
    objective(model, 1.0).unlabelled(part(rows, torch.zeros(6, dtype=torch.long)), entropy=0.0)
    smooth = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(g.isfinite().all() for g in smooth.values()) and smooth["gru.weight_hh_l0"].any()
    model.zero_grad()
    torch.manual_seed(0)
    tokens, lengths = padded(rows)
    before = torch.distributions.Categorical(logits=model(tokens, lengths)[0]).entropy().mean().item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(10):
        optimizer.zero_grad()
        objective(model, 0.01).unlabelled(part(rows, torch.zeros(6, dtype=torch.long)), entropy=1.0)
        optimizer.step()
    after = torch.distributions.Categorical(logits=model(tokens, lengths)[0]).entropy().mean().item()
    assert after < before - 1e-4


def test_learning_rates():
    rates = [learning_rate_factor(step, 100, 0.1, "cosine") for step in range(100)]
    assert rates[0] == 0.1 and rates[8] == pytest.approx(0.9)
    assert rates[50] == pytest.approx(0.5) and rates[-1] < 0.001
    assert {learning_rate_factor(step, 100, 0.0, "constant") for step in range(100)} == {1.0}


@pytest.fixture(scope="module")
def words():
    return learn("words", ["A fine film, isn't it?", "a FINE film<br /><br />indeed!"], 30)


def test_words_are_normalised_and_cut(words):
    assert words.tokens("It's<br />A\x00 Film?! 10/10 電影 cafe\u0301") == [
        *("it's", "a", "\x00", "film", "?", "!", "10", "/", "10", "電影", "café")
    ]
    assert words.words[:2] == ["<unk>", "<pad>"] and words.words[2:5] == ["a", "film", "fine"]
    assert [row.tolist() for row in words.ids(["A zebra film", "", "<b>"])] == [[2, 0, 3], [], [0, 0, 0]]
    assert words.tokens("<unk>") == ["<", "unk", ">"]


@pytest.mark.parametrize("kind", ["words", "spaces"])
def test_a_vocabulary_comes_back_from_its_files(kind, tmp_path):
    learned = learn(kind, ["good good good good good film film"] * 5, 30)
    for name, contents in learned.files().items():
        (tmp_path / name).write_text(contents)
    again = read(tmp_path)
    assert type(again) is type(learned) and again.words == learned.words
    assert again.fingerprint() == learned.fingerprint()
    assert [row.tolist() for row in again.ids(["Good film , bad"])] == [
        row.tolist() for row in learned.ids(["Good film , bad"])
    ]


def test_vocabulary_files_that_do_not_fit_are_named(words, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start({"seed": 0}, words, resume=False)
    (folder / "vocabulary.json").write_text('["<unk>", "<pad>"]')
    with pytest.raises(RunError, match=r"2 words, but tokenizer\.json beside it has 11 others"):
        folder.read_vocabulary()
    (folder / "vocabulary.json").write_text('{"a": 1}')
    with pytest.raises(RunError, match="expected a list of words, got dict"):
        folder.read_vocabulary()


def test_the_cache_gives_what_was_encoded(words, tmp_path):
    some, labels = ["a fine film", "", "no film"], [1, 0, 0]
    fresh = cached(Reviews(some, labels), words, None)
    for _ in range(2):
        kept = cached(Reviews(some, labels), words, tmp_path)
        assert [r.tolist() for r in kept.tokens] == [r.tolist() for r in fresh.tokens]
        assert kept.labels.tolist() == labels and {r.dtype for r in kept.tokens} == {torch.int64}
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    kept = cached(Reviews(some, labels), words, tmp_path)
    assert [r.tolist() for r in kept.tokens] == [r.tolist() for r in fresh.tokens]
    other = learn("words", ["film"], 30)
    keys = {key(Reviews(*reviews), v) for reviews in ((some, labels), (some, [0, 0, 0])) for v in (words, other)}
    assert len(keys) == 4 and key(Reviews(["ab", "c"], [0, 0]), words) != key(Reviews(["a", "bc"], [0, 0]), words)


def test_the_cache_is_whole_for_readers_at_any_time(words, tmp_path):
    """Writers and readers of the same file at once, from an empty folder: everyone gets the same."""
    some = Reviews([f"a fine film {i}" for i in range(200)], [0, 1] * 100)
    results, start = [], threading.Barrier(4)

    def work():
        start.wait()
        results.append(cached(some, words, tmp_path))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(torch.cat(result.tokens).tolist()) for result in results}) == 1 and len(results) == 4
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_a_cache_that_cannot_be_written_is_done_without(words, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    kept = cached(Reviews(["a film"], [1]), words, tmp_path / "file" / "below")
    assert kept.tokens[0].tolist() == [2, 3] and "going on without it" in capsys.readouterr().out


def test_stratified_split_keeps_copies_together():
    texts = [f"{i // 2}" for i in range(100)] + [f"n{i}" for i in range(100)]  # positive ones twice each
    train, validation = split_stratified(Reviews(texts, [1] * 100 + [0] * 100), 3, 0.9)
    assert abs(sum(validation.labels) - 10) <= 1 and len(validation.labels) - sum(validation.labels) == 10
    assert not set(train.texts) & set(validation.texts) and len(train.texts) + len(validation.texts) == 200
    assert split_stratified(Reviews(texts, [1] * 100 + [0] * 100), 4, 0.9) != (train, validation)


def test_unlabelled_reviews_leave_out_the_test_part():
    everything = load_unlabelled("sample", without=[])
    rest = load_unlabelled("sample", without=everything[:5])
    assert rest == everything[5:] and len(set(everything)) == len(everything)


def test_overlap_is_by_words():
    assert overlap(Reviews(["A  film\n", "b"], [0, 1]), Reviews(["a film", "c", "B "], [0, 0, 0])).tolist() == [1, 0, 1]


def test_batches_go_on_where_they_were_left():
    order = TrainingBatches([1 + i % 7 for i in range(50)], 8, 0, bucketed=True)
    order.epoch = 3
    whole = list(order)
    order.begin = 4
    assert list(order) == whole[4:] and len(order) == 3
    endless = EndlessBatches(TrainingBatches([1] * 20, 8, 0, bucketed=True))
    first = [batch for batch, _ in zip(endless, range(9), strict=False)]
    assert sorted(i for batch in first[3:6] for i in batch) == list(range(20)) and first[:3] != first[3:6]
    endless.begin = 4
    assert [batch for batch, _ in zip(endless, range(5), strict=False)] == first[4:]


@pytest.mark.slow
def test_workers_make_the_same_batches():
    encoded = Encoded(reviews(), torch.tensor([0, 1] * 10))
    order = TrainingBatches([len(row) for row in encoded.tokens], 6, 0, bucketed=True)
    for here, there in zip(loader(encoded, order), loader(encoded, order, workers=1), strict=True):
        assert isinstance(there, Batch) and here.total == there.total
        assert all(torch.equal(a, b) for a, b in zip(here[:4], there[:4], strict=True))


def test_calibration():
    probabilities, labels = torch.tensor([0.05, 0.15, 0.15, 0.95, 1.0]), torch.tensor([0, 1, 0, 1, 0])
    predicted, positive, count = calibration(probabilities, labels)
    assert count.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    torch.testing.assert_close(predicted[[0, 1, 9]], torch.tensor([0.05, 0.15, 0.975], dtype=torch.float64))
    assert positive[[0, 1, 9]].tolist() == [0, 0.5, 0.5]
    assert calibration_error(probabilities, labels) == pytest.approx((0.05 + 2 * 0.35 + 2 * 0.475) / 5)


def test_streams_hold_the_reviews_in_order():
    rows = [torch.tensor([5, 6]), torch.tensor([7]), torch.tensor([8, 9, 10])]
    assert streams(rows, 1, 2, torch.tensor([2, 0, 1])).tolist() == [[8, 9, 10, 1], [5, 6, 1, 7]]


def test_language_model_loss_is_the_next_words_cross_entropy(monkeypatch):
    import language_model

    monkeypatch.setattr(language_model, "LOGITS_AT_ONCE", 5)  # several uneven pieces
    model = LanguageModel(VOCABULARY, 6, 5, dropout=0.0, gru="grucore")
    oracle = nn.GRU(6, 5, batch_first=True)
    oracle.load_state_dict(model.gru.state_dict())
    words = torch.randint(0, VOCABULARY, (2, 9))
    h = torch.randn(1, 2, 5)
    loss, state = model(words[:, :-1], words[:, 1:], h)
    y, want_state = oracle(model.embedding(words[:, :-1]), h)
    want = cross_entropy(model.out(y).flatten(0, 1), words[:, 1:].flatten())
    torch.testing.assert_close((loss, state), (want, want_state.detach()), rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(loss, model.out.weight)[0]
    torch.testing.assert_close(got, torch.autograd.grad(want, model.out.weight)[0], rtol=1e-4, atol=1e-6)
