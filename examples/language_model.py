"""Trains a character language model on a stream of documents, then writes one character at a time.

The text is the reference that comes with Python; `help("with")` shows a page of it. It is read in 32 rows, 32
characters at a time: `truncated_bptt` carries the state and detaches it, and `reset=` clears it where a page begins, in
the middle of a row. Writing takes one `step` per character, on weights that are packed once.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from math import log, log2
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.benchmark import Timer

from grucore import GRU, truncated_bptt

PAGE = "\f"  # begins every page: a page is predicted without the one before
TRAIN = "".join(PAGE + text for i, text in enumerate(topics.values()) if i % 10)
HELD_OUT = "".join(PAGE + text for i, text in enumerate(topics.values()) if i % 10 == 0)
ALPHABET = sorted({*TRAIN, *HELD_OUT})
CODES = {character: code for code, character in enumerate(ALPHABET)}
ROWS, PART, HIDDEN = 32, 32, 256


def ngram_bits(order: int) -> float:
    """Bits per held-out character, each predicted from the `order` before it, or from fewer if those are rare."""
    predicted = [1 / len(ALPHABET)] * (len(HELD_OUT) - order)
    for n in range(order + 1):
        grams, contexts = (Counter(TRAIN[i : i + k] for i in range(len(TRAIN) - k + 1)) for k in (n + 1, n))
        for i in range(len(predicted)):
            gram = HELD_OUT[i + order - n : i + order + 1]
            predicted[i] = (grams[gram] + predicted[i]) / (contexts[gram[:-1]] + 1)
    return -sum(map(log2, predicted)) / len(predicted)


class LanguageModel(nn.Module):
    """A GRU on one-hot characters that predicts the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = GRU(len(ALPHABET), HIDDEN), nn.Linear(HIDDEN, len(ALPHABET))


def stream(text: str, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The text in rows, time first: one-hot characters (T, B, V), where pages begin, and the next characters."""
    codes = torch.tensor([CODES[character] for character in text])
    steps = (len(codes) - 1) // rows
    now, following = (part[: steps * rows].view(rows, steps).t() for part in (codes, codes[1:]))
    return one_hot(now, len(ALPHABET)).float(), now == CODES[PAGE], following


def train(model: LanguageModel, steps: int) -> Iterator[float]:
    """Updates the model after each part of the stream, repeatedly; yields bits per character."""
    optimizer = torch.optim.Adam(model.parameters(), 8e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x, page, following = stream(TRAIN, ROWS)
    parts = (part for _ in range(steps) for part in truncated_bptt(model.gru, x, steps=PART, reset=page))
    for part in islice(parts, steps):
        loss = cross_entropy(model.out(part.y).flatten(0, 1), following[part.steps].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item() / log(2)


@torch.no_grad()
def held_out_bits(model: LanguageModel) -> float:
    """Bits per character of all held-out documents, read as one sequence."""
    x, page, following = stream(HELD_OUT, 1)
    y, _ = model.gru(x, reset=page)
    return cross_entropy(model.out(y).flatten(0, 1), following.flatten()).item() / log(2)


@torch.no_grad()
def write(model: LanguageModel, step: Callable, characters: int) -> str:
    """Draws a page, character by character; `step(x, h)` returns the output and the state after one step."""
    generator, one_hots = torch.Generator().manual_seed(0), torch.eye(len(ALPHABET)).unsqueeze(1)
    code, h, page = CODES[PAGE], None, ""
    for _ in range(characters):
        y, h = step(one_hots[code], h)
        code = int(torch.multinomial((2 * model.out(y)).softmax(-1), 1, generator=generator))  # temperature 0.5
        page += ALPHABET[code]
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200, help="updates")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    torch.manual_seed(args.seed)
    model = LanguageModel()
    for i, bits in enumerate(train(model, args.steps), 1):
        if i % max(args.steps // 6, 1) == 0:
            print(f"update {i:4}: {bits:.2f} bits per character")
    print(f"held-out pages: {held_out_bits(model):.2f} bits per character;", end=" ")
    print("n-grams of order", ", ".join(f"{order}: {ngram_bits(order):.2f}" for order in (0, 2, 4)), end="\n\n")

    theirs, x, pages = model.gru.to_torch(), stream(TRAIN, ROWS)[0][:PART], []
    for name, gru, step in (("grucore", model.gru, model.gru.step), ("torch.nn.GRU", theirs, theirs)):
        with model.gru.packed_weights():
            pages.append(write(model, step, 400))
            ways = "write(model, step, 100)", "gru(x)[0].sum().backward()"
            timers = (Timer(way, globals=globals() | {"gru": gru}) for way in ways)
            page_ms, part_ms = (timer.blocked_autorange(min_run_time=1).median * 1e3 for timer in timers)
        print(f"{name:12}: {page_ms / 100:.2f} ms per character, {part_ms:.1f} ms per part, forward and backward")
    print(f"both write the same page: {pages[0] == pages[1]}\n{pages[0]}")
