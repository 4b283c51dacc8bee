"""The first stage of `semi`: a language model on training and unlabelled reviews, none of them of the test part.

Its folder, language-model/ in the run's, is that of a run: config.json, metrics.jsonl (loss and perplexity),
best.safetensors, last.pt, with the same promises. Each stream goes on from the state that it ended in.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

import torch
from data import PADDING, Encoded
from language_model import LanguageModel, streams
from processes import Processes
from run_folder import RunError, RunFolder
from torch import Tensor, nn
from tqdm import tqdm
from trainer import PRECISIONS, learning_rate_factor
from vocabularies import Vocabulary

SETTINGS = ("preset", "seed", "gru", "embedding_size", "hidden_size", "embedding_dropout", "precision", "clip", "data")
END = PADDING  # between reviews of a stream, where no padding occurs


def pretrain(
    config: dict,
    corpus: dict[str, Encoded],
    vocabulary: Vocabulary,
    folder: RunFolder,
    processes: Processes,
    given: argparse.Namespace,
) -> None:
    """Trains the language model, or goes on with it; does nothing when it is finished."""
    settings = {name: config[name] for name in SETTINGS} | {k: v for k, v in config.items() if k.startswith("lm_")}
    settings["schedule"] = "cosine"
    if processes.first:
        folder.start(settings | {"epochs": config["lm_epochs"]}, vocabulary, given.resume)
    processes.barrier()
    count = config["lm_streams"]
    if count % processes.count:
        raise RunError(f"--lm-streams must be a multiple of the {processes.count} processes, got {count}")
    reviews = corpus["train"].tokens + corpus["unlabelled"].tokens
    validation = streams(corpus["validation"].tokens, END, count, torch.arange(len(corpus["validation"].tokens)))
    words = sum(len(row) + 1 for row in reviews)
    pieces = -(-(words // count - 1) // config["lm_steps"])
    if pieces < 1 or validation.shape[1] < 2:
        raise RunError(f"--lm-streams {count} is too many for {words} words of text")

    torch.manual_seed(config["seed"])
    model = LanguageModel(
        len(vocabulary.words),
        config["embedding_size"],
        config["hidden_size"],
        config["embedding_dropout"],
        config["gru"],
    ).to(processes.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lm_learning_rate"], fused=True)
    scaler = torch.amp.GradScaler(processes.device.type, enabled=config["precision"] == "fp16")
    wrapped = processes.wrap(model)
    torch.manual_seed(config["seed"] * 1000 + processes.rank)
    metrics: list[dict[str, Any]] = []
    h, done, total, spent = zero_state(config, processes), 0, 0.0, 0.0
    if (folder / "last.pt").exists():
        saved = folder.read_checkpoint()
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        processes.set_random_state(saved["random_states"])
        metrics, done, total, spent = (saved[name] for name in ("metrics", "done", "total", "spent"))
        h = processes.share(saved["h"])
        if processes.first and len(metrics) < config["lm_epochs"]:
            print(f"resuming the language model after epoch {len(metrics)}, piece {done}", flush=True)

    def save(done: int) -> None:
        whole, random_states = processes.gather(h), processes.random_states()
        if processes.first:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            state |= {"metrics": metrics, "random_states": random_states, "h": whole, "done": done, "total": total}
            folder.write_checkpoint(state | {"spent": time.perf_counter() - begin})

    for epoch in range(len(metrics) + 1, config["lm_epochs"] + 1):
        begin = time.perf_counter() - spent
        generator = torch.Generator().manual_seed(config["seed"] * 1000 + epoch)
        text = streams(reviews, END, count, torch.randperm(len(reviews), generator=generator))
        if done == 0:
            h, total = zero_state(config, processes), 0.0
        model.train()
        on_terminal = sys.stderr.isatty()
        silent = not (processes.first and on_terminal)
        bar = tqdm(
            total=pieces, initial=done, desc=f"language model {epoch}", unit="piece", leave=False, disable=silent
        )
        for i in range(done, pieces):
            step = (epoch - 1) * pieces + i
            factor = learning_rate_factor(step, pieces * config["lm_epochs"], 0.02, "cosine")
            for group in optimizer.param_groups:
                group["lr"] = config["lm_learning_rate"] * factor
            loss, h = forward(wrapped, piece(text, i, config, processes), h, config, processes)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for name, p in model.named_parameters() if name != "embedding.weight"], 1.0)
            scaler.step(optimizer)
            scaler.update()
            bar.update()
            if (i + 1) % 20 == 0 or i + 1 == pieces:  # reading the loss waits for the device
                total = loss.item()
                bar.set_postfix(loss=f"{total:.3f}")
                if processes.first and not on_terminal and (i + 1) % 100 == 0:
                    rate = count * config["lm_steps"] * (i + 1) / (time.perf_counter() - begin)
                    print(f"language model {epoch}: piece {i + 1}/{pieces}, loss {total:.3f}, {rate:,.0f} tokens/s")
            if given.checkpoint_every and (i + 1) % given.checkpoint_every == 0 and i + 1 < pieces:
                save(i + 1)
        bar.close()
        found = validate(model, validation, config, processes)
        if not math.isfinite(found):
            raise RunError(f"the language model's loss is {found}: try a lower learning rate. The checkpoint is older")
        best_so_far = all(found < line["validation_loss"] for line in metrics)
        line = {"epoch": epoch, "train_loss": total, "validation_loss": found, "perplexity": math.exp(found)}
        metrics.append(line | {"seconds": round(time.perf_counter() - begin, 2)})
        done, spent = 0, 0.0
        if processes.first:
            print(
                f"language model {epoch}/{config['lm_epochs']}: loss {found:.3f}, perplexity {line['perplexity']:.1f}"
            )
            if best_so_far:
                folder.write_model(model.state_dict(), vocabulary)
        save(0)
        if processes.first:
            folder.write_metrics(metrics)
        processes.barrier()


def zero_state(config: dict, processes: Processes) -> Tensor:
    """The state (1, B, H) before the first word, of this process's streams."""
    return torch.zeros(1, config["lm_streams"] // processes.count, config["hidden_size"], device=processes.device)


def piece(text: Tensor, i: int, config: dict, processes: Processes) -> Tensor:
    """The i-th piece of this process's streams, with the word that follows it: (B, T + 1)."""
    begin = i * config["lm_steps"]
    return text[processes.rank :: processes.count, begin : begin + config["lm_steps"] + 1].to(processes.device)


def forward(model: nn.Module, words: Tensor, h: Tensor, config: dict, processes: Processes) -> tuple[Tensor, Tensor]:
    """Loss and state after a piece."""
    dtype = PRECISIONS[config["precision"]]
    with torch.autocast(processes.device.type, dtype, enabled=dtype is not None):
        loss, h = model(words[:, :-1], words[:, 1:], h)
    return loss, h.float()


@torch.no_grad()
def validate(model: LanguageModel, text: Tensor, config: dict, processes: Processes) -> float:
    """The mean cross entropy over the validation part, in nats a word."""
    model.eval()
    h, sums = zero_state(config, processes), torch.zeros(2, dtype=torch.float64, device=processes.device)
    for i in range(-(-(text.shape[1] - 1) // config["lm_steps"])):
        words = piece(text, i, config, processes)
        loss, h = forward(model, words, h, config, processes)
        count = words[:, 1:].numel()
        sums += torch.stack([loss.double() * count, torch.tensor(float(count), device=sums.device).double()])
    loss_sum, words_seen = processes.sum(sums)
    return loss_sum / words_seen
