"""Trains the embedding and the GRU of `best` and `semi` to predict words, before they are trained on sentiment.

From its state after a word, each direction predicts which words are among the next few that it will read. Source:
Johnson and Zhang 2016 (arXiv:1602.02373), who keep such GRUs as they are; here they are where training on sentiment
starts, as in Dai and Le 2015 (arXiv:1511.01432).
"""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from data import PADDING, seed_torch
from model import Segments
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

if TYPE_CHECKING:
    from run_folder import RunFolder
    from train import Run

REACH = 30  # the number of words that are predicted together
STRIDE = 16  # every so many words a prediction is made
COMMON = 100  # so many of the most frequent words say little, and are not predicted
PREDICTED = 10_000  # words, those that follow in frequency
BATCH = 128  # segments
LEARNING_RATE = 5e-3  # the highest of one cycle
PRETRAINED, CHECKPOINT = "pretrained.safetensors", "pretraining.pt"


def pretrained(run: "Run", tokens: list[Tensor], teacher: "RunFolder | None") -> dict[str, Tensor]:
    """The weights of an embedding and a GRU trained on the texts `tokens`, and how long it took, in seconds.

    Nothing is trained if the run's folder contains them, or the teacher's, made in the same way.
    """
    if not (run.folder / PRETRAINED).exists():
        if teacher and (teacher / PRETRAINED).exists() and _depends_on(teacher) == _depends_on(run.folder):
            state = teacher.read_tensors(PRETRAINED)
        else:
            state = _train(run, tokens)
        run.folder.write_tensors(PRETRAINED, state)
        run.accelerator.wait_for_everyone()
        (run.folder / CHECKPOINT).unlink(missing_ok=True)
    return run.folder.read_tensors(PRETRAINED)


def _depends_on(folder: "RunFolder") -> list[Any]:
    """Returns the part of a run's configuration that determines the weights."""
    names = ("reviews", "seed", "gru", "precision", "vocabulary_size", "segment", "embedding_size", "hidden_size")
    names += ("embedding_dropout", "word_dropout", "pretraining_epochs")
    return [folder.read_config().get(name) for name in names]


class WordsAhead(nn.Module):
    """The embedding and the GRU of a member, and a layer for each direction that predicts words from its state."""

    def __init__(self, reader: Segments):
        super().__init__()
        known, hidden = reader.embedding.num_embeddings, reader.gru.hidden_size
        self.first = min(COMMON, known // 2)  # the id of the first word that is predicted
        self.reader = reader
        reader.out.requires_grad_(False)  # it is not used here; several processes would wait for its gradient
        self.out = nn.ModuleList(nn.Linear(hidden, min(PREDICTED, known - self.first)) for _ in range(2))

    def forward(self, windows: Tensor, begin: int) -> Tensor:
        """The mean negative log-probability of the words to be predicted, from the states at begin, begin + STRIDE, ...

        Args:
            windows: (B, REACH + segment + REACH), segments with the words around them.
            begin: the first word whose state predicts.
        """
        tokens = windows[:, REACH:-REACH]
        lengths = (tokens != PADDING).sum(1).clamp(min=1)
        places = torch.arange(begin, tokens.shape[1], STRIDE, device=tokens.device)
        states = self.reader.states(self.reader.embed(tokens), lengths)[:, places]
        inside = (places < lengths[:, None])[:, :, None]
        losses = []
        for sign, out, h in zip((1, -1), self.out, states.chunk(2, 2), strict=True):
            ahead = sign * torch.arange(1, REACH + 1, device=tokens.device)
            targets = windows[:, REACH + places[:, None] + ahead] - self.first  # (B, places, REACH)
            counted = inside & (targets >= 0) & (targets < out.out_features)
            found = out(h).log_softmax(2, dtype=torch.float32).gather(2, targets.clamp(0, out.out_features - 1))
            losses.append(-(found * counted).sum() / counted.sum().clamp(min=1))
        return torch.stack(losses).mean()


def windows_of(tokens: list[Tensor], segment: int) -> Tensor:
    """All segments of all texts with the REACH tokens before and after, (N, REACH + segment + REACH) int32."""
    windows = []
    for row in tokens:
        padded = pad(row.int(), (REACH, REACH + -len(row) % segment), value=PADDING)
        windows.append(padded.unfold(0, REACH + segment + REACH, segment))
    return torch.cat(windows)


def _train(run: "Run", tokens: list[Tensor]) -> dict[str, Tensor]:
    config, accelerator = run.config, run.accelerator
    rank, processes = accelerator.process_index, accelerator.num_processes
    windows = windows_of(tokens, config.segment)
    per_epoch = -(-len(windows) // BATCH)
    total, done, seconds = per_epoch * config.pretraining_epochs, 0, 0.0
    torch.manual_seed(config.seed)
    bare = WordsAhead(Segments(run.tokenizer.get_vocab_size(), config, evidence=0)).to(accelerator.device)
    model, optimizer = accelerator.prepare(bare, torch.optim.Adam(bare.parameters(), fused=True))
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total, pct_start=0.05, cycle_momentum=False)
    parts = {"model": bare, "optimizer": optimizer, "schedule": schedule, "scaler": accelerator.scaler}
    parts = {name: part for name, part in parts.items() if part is not None}
    if (run.folder / CHECKPOINT).exists():
        saved = run.folder.read_checkpoint(CHECKPOINT)
        done, seconds = saved["done"], saved["seconds"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    start = time.perf_counter() - seconds
    run.say(f"pre-training on {len(windows):,} segments of {config.segment} words")
    bar = tqdm(range(done, total), initial=done, total=total, desc="pre-training", disable=run.without_bar)
    for step in bar:
        epoch, i = divmod(step, per_epoch)
        if step == done or i == 0:
            order = np.random.default_rng([config.seed, epoch]).permutation(len(windows))
        rows = order[i * BATCH : (i + 1) * BATCH]
        seed_torch(config.seed, step, rank)
        begin = int(torch.randint(min(STRIDE, config.segment), ()))
        optimizer.zero_grad(set_to_none=True)
        loss = model(windows[rows[rank::processes] if len(rows) > rank else rows].long().to(accelerator.device), begin)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if bar.disable and (step + 1) % 100 == 0:
            run.say(f"pre-training: step {step + 1:,} of {total:,}, loss {loss.item():.4f}")
        is_due = i == per_epoch - 1 or (run.checkpoint_every and (step + 1) % run.checkpoint_every == 0)
        if is_due:
            now = {name: part.state_dict() for name, part in parts.items()}
            now |= {"done": step + 1, "seconds": time.perf_counter() - start}
            run.folder.write(CHECKPOINT, partial(torch.save, now))
    state = {name: tensor.cpu() for name, tensor in bare.reader.state_dict().items() if not name.startswith("out.")}
    return state | {"seconds": torch.tensor(time.perf_counter() - start)}
