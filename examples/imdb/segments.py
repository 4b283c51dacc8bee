"""The classifier of `best` and `semi`: a GRU over segments of a review, its states pooled, and n-grams beside it."""

from __future__ import annotations

import torch
from ngrams import NGrams
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from grucore import GRU


class SegmentClassifier(nn.Module):
    """Sentiment from a review cut into segments, which a GRU reads independently of one another.

    With segments of 64 tokens the recurrence is 64 steps long whatever the review, and the batch that much larger.
    Source: Johnson and Zhang 2016 (arXiv:1602.02373), who cut into 50. The states of all words are pooled: the largest
    and the mean value of each unit, and the state after the last word where `last` is set.

    The two paths, GRU and n-grams, are each trained on its own loss, since the n-grams fit the training part long
    before the GRU and would leave it nothing to learn. The prediction is a weighted mean of their logits: the GRU has
    the `share` of it that `choose_share` found, the n-grams the rest.

    Args:
        vocabulary_size: V.
        embedding_size: E.
        hidden_size: H, of each direction.
        bidirectional: whether the GRU also runs from each segment's end.
        segment: tokens in a segment.
        crop: tokens of a review that the GRU sees, None for all: a window drawn anew each time in training,
            in evaluation all of the review; with `last` the review's end in both.
        last: also pool the state after the last word.
        head_size: units of a ReLU layer before the output, 0 for none.
        dropout: probability of zeroing a pooled value.
        embedding_dropout: the same for an element of an embedded word.
        word_dropout: the same for a whole embedded word.
        ngrams: how many n-grams the wide path knows, 0 for no wide path.
        ngram_order: the longest of them.
        gru: "grucore" or "torch", for torch.nn.GRU. The same seed gives both the same weights.
    """

    masked = True
    share: Tensor

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding_size: int,
        hidden_size: int,
        bidirectional: bool,
        segment: int,
        crop: int | None,
        last: bool,
        head_size: int,
        dropout: float,
        embedding_dropout: float,
        word_dropout: float,
        ngrams: int,
        ngram_order: int,
        gru: str,
    ):
        super().__init__()
        self.segment, self.crop, self.last, self.word_dropout = segment, crop, last, word_dropout
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        nn.init.normal_(self.embedding.weight, std=0.1)  # small, so that a few thousand steps can place the words
        self.gru = {"grucore": GRU, "torch": nn.GRU}[gru](
            embedding_size, hidden_size, batch_first=True, bidirectional=bidirectional
        )
        self.embedding_dropout, self.dropout = nn.Dropout(embedding_dropout), nn.Dropout(dropout)
        pooled = (3 if last else 2) * hidden_size * (2 if bidirectional else 1)
        self.head = nn.Sequential(nn.Linear(pooled, head_size), nn.ReLU()) if head_size else nn.Identity()
        self.out = nn.Linear(head_size or pooled, 2)
        self.ngrams = NGrams(ngrams, vocabulary_size, ngram_order) if ngrams else None
        if ngrams:
            self.register_buffer("share", torch.tensor(0.5))

    def window(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (B, T) and lengths (B,) that the GRU sees of each review."""
        if self.crop is None or tokens.shape[1] <= self.crop or not (self.training or self.last):
            return tokens, lengths
        spare = (lengths - self.crop).clamp(min=0)
        begin = spare if self.last else (torch.rand(len(spare), device=spare.device) * (spare + 1)).long()
        places = begin[:, None] + torch.arange(self.crop, device=tokens.device)
        return tokens.gather(1, places), lengths.clamp(max=self.crop)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedded words (B, T, E), with dropout in training."""
        x = self.embedding_dropout(self.embedding(tokens))
        if self.training and self.word_dropout:
            kept = torch.rand(tokens.shape, device=x.device) >= self.word_dropout
            x = x * (kept / (1 - self.word_dropout))[:, :, None]
        return x

    def read(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, 2) of the GRU alone, from embedded words (B, T, E) and lengths (B,), each at least 1."""
        batch, steps, _ = x.shape
        segments = -(-steps // self.segment)
        x = nn.functional.pad(x, (0, 0, 0, segments * self.segment - steps))
        begin = torch.arange(segments, device=x.device) * self.segment
        inside = (lengths[:, None] - begin).clamp(0, self.segment).flatten()  # (B * segments,)
        y = self._states(x.view(batch * segments, self.segment, -1), inside)
        y = y.reshape(batch, segments * self.segment, -1)  # 0 in the padding
        real = torch.arange(y.shape[1], device=x.device) < lengths[:, None]
        # Below every state, so that padding is never the largest.
        largest = y.masked_fill(~real[:, :, None], -2.0).amax(1)
        pooled = [largest, y.sum(1) / lengths[:, None]]
        if self.last:
            pooled.append(y[torch.arange(batch, device=x.device), lengths - 1])
        return self.out(self.head(self.dropout(torch.cat(pooled, 1))))

    def _states(self, x: Tensor, lengths: Tensor) -> Tensor:
        if isinstance(self.gru, GRU):
            return self.gru(x, lengths=lengths)[0]
        real = lengths > 0  # a PackedSequence has no empty rows
        packed = pack_padded_sequence(x[real], lengths[real].cpu(), batch_first=True, enforce_sorted=False)
        filled, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
        return filled.new_zeros(len(x), *filled.shape[1:]).masked_scatter(real[:, None, None], filled)

    def wide(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, 2) of the n-grams alone."""
        half = self.ngrams(tokens, lengths) / 2
        return torch.stack([-half, half], 1)

    def paths(self, tokens: Tensor, lengths: Tensor, x: Tensor | None = None) -> Tensor:
        """Logits of the GRU and, if there is the wide path, of the n-grams: (1 or 2, B, 2). Arguments as `forward`."""
        if x is None:
            seen, window_lengths = self.window(tokens, lengths)
            x = self.embed(seen)
        else:
            window_lengths = lengths.clamp(max=x.shape[1])
        logits = [self.read(x, window_lengths)]
        if self.ngrams is not None:
            logits.append(self.wide(tokens, lengths).to(logits[0].dtype))
        return torch.stack(logits)

    def combine(self, paths: Tensor) -> Tensor:
        """The weighted mean of what `paths` returns, or of what is made of it: (1 or 2, ...) to (...)."""
        return paths[0] if self.ngrams is None else torch.lerp(paths[1], paths[0], self.share.to(paths.dtype))

    @torch.no_grad()
    def choose_share(self, margins: Tensor, labels: Tensor) -> None:
        """Sets the GRU's share to the twentieth with the lowest cross entropy.

        Args:
            margins: shape (2, N): of each path, the logit of positive less that of negative. Reviews that neither path
                has been trained on belong here: on others both are surer than they should be.
            labels: shape (N,), 0 or 1.
        """
        shares = torch.linspace(0, 1, 21, device=margins.device)
        combined = torch.lerp(margins[1], margins[0], shares[:, None])
        target = labels.to(combined.dtype).expand_as(combined)
        losses = binary_cross_entropy_with_logits(combined, target, reduction="none").mean(1)
        self.share.copy_(shares[losses.argmin()])

    def forward(self, tokens: Tensor, lengths: Tensor, x: Tensor | None = None) -> Tensor:
        """Logits of tokens (B, T), padded on the right, and lengths (B,), each at least 1.

        Args:
            tokens: the reviews.
            lengths: how long each is.
            x: the embedded `window` of each review, to be read in place of a new one.

        Returns:
            In evaluation the prediction, (B, 2); in training the logits of each path, as `paths`.
        """
        paths = self.paths(tokens, lengths, x)
        return paths if self.training else self.combine(paths)
