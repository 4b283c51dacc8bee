"""The models: the published classifier, a GRU over segments, and the ensemble of GRUs and n-grams."""

from collections.abc import Sequence
from typing import Any

import torch
from ngrams import KINDS, NGrams
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from grucore import GRU

LAYERS = {"grucore": GRU, "torch": nn.GRU}  # the same seed gives both the same weights


class LastState(nn.Module):
    """Sentiment from the state of a GRU after the last token: the classifier of the published pipeline.

    With `masked=False` the state is read after the padding and dropout has no effect, as in the published pipeline,
    which computes `self.dropout(h_t)` but does not use it. With `masked=True` the state is that after the last token of
    each review, and dropout acts on it and on the embedded words.
    """

    reads_evidence = False

    def __init__(self, vocabulary_size: int, config: Any):
        super().__init__()
        self.masked = config.masked
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)  # <pad> has a learned row too
        self.gru = LAYERS[config.gru](config.embedding_size, config.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.hidden_size, 2)

    def embed(self, tokens: Tensor, evidence: Tensor | None = None) -> Tensor:
        """The GRU's input (B, T, E) from tokens (B, T)."""
        x = self.embedding(tokens)
        return self.dropout(x) if self.masked else x

    def cut(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that the GRU reads, and their lengths."""
        return x, lengths if self.masked else torch.full_like(lengths, x.shape[1])

    def read(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Log-odds (B,) of positive, from the result of `embed`."""
        if not self.masked:
            y, _ = self.gru(x)
            return margin(self.out(y[:, -1]))
        if isinstance(self.gru, nn.GRU):
            # Not a PackedSequence, whose backward on CPU is several times as slow (benchmarks/RESULTS.md). In one
            # direction the state after the last token is the same without it.
            y, _ = self.gru(x)
            h = y[torch.arange(len(y), device=y.device), lengths - 1]
        else:
            _, h_n = self.gru(x, lengths=lengths)
            h = self.gru.final_state(h_n)
        return margin(self.out(self.dropout(h)))

    def forward(self, tokens: Tensor, lengths: Tensor, evidence: Tensor | None = None) -> Tensor:
        """Log-odds (B,) of tokens (B, T), padded on the right, and lengths (B,), each at least 1."""
        return self.read(self.embed(tokens, evidence), lengths)


class Segments(nn.Module):
    """Sentiment from a review split into segments, which a bidirectional GRU reads independently.

    With segments of 64 tokens the recurrence is 64 steps long for any review, and the batch is correspondingly larger.
    Source: Johnson and Zhang 2016 (arXiv:1602.02373), who use segments of 50. Each unit is pooled by its maximum and
    mean over all words. In training a random window of each review is read, otherwise all of it.

    Args:
        vocabulary_size: V.
        config: the run's.
        evidence: the number of further inputs for each embedded word; 0 for words only.
    """

    masked = True

    def __init__(self, vocabulary_size: int, config: Any, evidence: int):
        super().__init__()
        self.segment, self.crop, self.word_dropout = config.segment, config.crop, config.word_dropout
        self.reads_evidence = evidence > 0
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        nn.init.normal_(self.embedding.weight, std=0.1)  # small, so that a few thousand steps suffice
        self.gru = LAYERS[config.gru](
            config.embedding_size + evidence, config.hidden_size, batch_first=True, bidirectional=True
        )
        self.embedding_dropout, self.dropout = nn.Dropout(config.embedding_dropout), nn.Dropout(config.dropout)
        self.out = nn.Linear(4 * config.hidden_size, 2)

    def embed(self, tokens: Tensor, evidence: Tensor | None = None) -> Tensor:
        """The GRU's input (B, T, E + kinds) from tokens (B, T) and evidence (B, T, kinds)."""
        x = self.embedding(tokens)
        if evidence is not None:
            x = torch.cat([x, evidence.to(x.dtype)], 2)
        x = self.embedding_dropout(x)
        if self.training and self.word_dropout:
            kept = torch.rand(tokens.shape, device=x.device) >= self.word_dropout
            x = x * (kept / (1 - self.word_dropout))[:, :, None]
        return x

    def cut(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The segments that the GRU reads (B * segments, segment, E + kinds), and their lengths, which may be 0."""
        segments = -(-x.shape[1] // self.segment)
        x = nn.functional.pad(x, (0, 0, 0, segments * self.segment - x.shape[1]))
        begin = torch.arange(segments, device=x.device) * self.segment
        inside = (lengths[:, None] - begin).clamp(0, self.segment).flatten()
        return x.view(len(inside), self.segment, -1), inside

    def read(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Log-odds (B,) of positive, from the result of `embed`."""
        rows, inside = self.cut(x, lengths)
        y = self.states(rows, inside)  # (B * segments, segment, 2 H), 0 in the padding
        real = torch.arange(self.segment, device=x.device) < inside[:, None]
        largest = (y - 3.0 * ~real[:, :, None]).amax(1)  # padding is below every state
        largest, total = (each.unflatten(0, (len(x), -1)) for each in (largest, y.sum(1)))
        return margin(self.out(self.dropout(torch.cat([largest.amax(1), total.sum(1) / lengths[:, None]], 1))))

    def states(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The GRU's output (B, T, 2 H) of x (B, T, E + kinds), 0 after each row's length."""
        if not isinstance(self.gru, nn.GRU):
            return self.gru(x, lengths=lengths)[0]
        real = lengths > 0  # a PackedSequence has no empty rows
        packed = pack_padded_sequence(x[real], lengths[real].cpu(), batch_first=True, enforce_sorted=False)
        filled, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
        return filled.new_zeros(len(x), *filled.shape[1:]).masked_scatter(real[:, None, None], filled)

    @torch.no_grad()
    def start_from(self, pretrained: dict[str, Tensor]) -> None:
        """Takes over the weights of a `Segments` that reads words only; those of the evidence stay as they are."""
        for name, parameter in self.named_parameters():
            if name in pretrained:
                parameter[..., : pretrained[name].shape[-1]] = pretrained[name]

    def forward(self, tokens: Tensor, lengths: Tensor, evidence: Tensor | None = None) -> Tensor:
        """Log-odds (B,) of tokens (B, T), padded on the right, lengths (B,), each at least 1, and their evidence."""
        if self.training and tokens.shape[1] > self.crop:
            spare = (lengths - self.crop).clamp(min=0)
            begin = (torch.rand(len(spare), device=spare.device) * (spare + 1)).long()
            places = begin[:, None] + torch.arange(self.crop, device=tokens.device)
            tokens, lengths = tokens.gather(1, places), lengths.clamp(max=self.crop)
            if evidence is not None:
                evidence = evidence.gather(1, places[:, :, None].expand(-1, -1, evidence.shape[2]))
        return self.read(self.embed(tokens, evidence), lengths)


class Judge(nn.Module):
    """The ensemble that a run trains: the n-grams, and one or more GRUs.

    A GRU that reads the n-grams' evidence is trained to correct them: its log-odds are what it computes plus theirs.
    The prediction is a mean over GRUs and, with a share of their own, n-grams.

    Args:
        config: the run's.
        vocabulary_size: V.
        members: the number of GRUs; smaller than the run's until it has ended.
    """

    sharpness: Tensor

    def __init__(self, config: Any, vocabulary_size: int, members: int):
        super().__init__()
        self.share = config.ngram_share if config.ngrams else 0.0
        self.members = nn.ModuleList(build_member(config, vocabulary_size, index) for index in range(members))
        self.ngrams = NGrams(config.ngrams, vocabulary_size) if config.ngrams else None
        self.register_buffer("sharpness", torch.ones(()))  # of the probabilities; fitted on the validation split

    def margins(self, tokens: Tensor, lengths: Tensor, members: Sequence[nn.Module] | None = None) -> Tensor:
        """Log-odds of positive by each of the given `members`; or by all members and, last, by the n-grams.

        Returns:
            Shape (parts, B).
        """
        evidence, by_ngrams = None, torch.zeros(())
        if self.ngrams is not None:
            evidence, by_ngrams = self.ngrams.evidence(tokens, lengths), self.ngrams(tokens, lengths)
        margins = []
        for member in self.members if members is None else members:
            by_gru = member(tokens, lengths, evidence if member.reads_evidence else None)
            margins.append(by_gru + member.reads_evidence * by_ngrams)
        if members is None and self.ngrams is not None:
            margins.append(by_ngrams)
        return torch.stack(margins)

    def combine(self, margins: Tensor) -> Tensor:
        """Log-odds (B,) from the result of `margins`, (parts, B)."""
        of_members, by_ngrams = margins[: len(self.members)].mean(0), margins[-1]
        return torch.lerp(of_members, by_ngrams, self.share) * self.sharpness

    @property
    def weight_of_ngrams(self) -> float:
        """The factor of the n-grams' log-odds in the prediction, corrected GRUs included, before the sharpness."""
        corrected = sum(member.reads_evidence for member in self.members) / len(self.members)
        return self.share + (1 - self.share) * corrected

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Log-odds (B,) of tokens (B, T), padded on the right, and lengths (B,), each at least 1."""
        return self.combine(self.margins(tokens, lengths))


def build_member(config: Any, vocabulary_size: int, index: int) -> LastState | Segments:
    """Builds a member of a run's ensemble, with weights drawn from the seed."""
    torch.manual_seed(config.seed + index)
    if config.segment is None:
        return LastState(vocabulary_size, config)
    return Segments(vocabulary_size, config, KINDS if config.ngrams and index >= config.plain else 0)


def margin(logits: Tensor) -> Tensor:
    """Log-odds (B,) of positive, in float32, from logits (B, 2)."""
    return (logits[:, 1] - logits[:, 0]).float()


def parameter_count(model: nn.Module) -> int:
    """The number of parameters trained by gradient descent."""
    return sum(p.numel() for p in model.parameters())
