"""Trains a recurrent policy that has to remember, by PPO (Schulman et al. 2017, arXiv:1707.06347).

A cue says left or right, a corridor of 10 to 30 steps of noise follows, and at its end a turn to the side of the cue is
worth 1. A row of experience begins in the middle of a corridor and contains several more: `reset=` marks where they
begin, and `reset_state=` makes the state there zero, not the row's initial state. An update reads them in one call.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, distributions, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.utils.benchmark import Timer

from grucore import GRU

ROWS, STEPS, HIDDEN = 64, 64, 32


class Corridors:
    """Parallel corridors, each followed by another."""

    def __init__(self) -> None:
        self.cue, self.left = torch.randint(2, (ROWS,)), torch.randint(10, 31, (ROWS,))  # left: steps to go
        self.first = self.left > 0

    def look(self) -> tuple[Tensor, Tensor]:
        """The observation, (B, 3): the cue (at first), whether to turn, noise; and which corridors begin, (B,)."""
        return torch.stack([self.first * (2 * self.cue - 1), self.left == 0, torch.randn(ROWS)], 1), self.first

    def act(self, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a step, or turns (0 or 1) at the end. Returns the rewards, and which corridors have ended, (B,)."""
        self.first = over = self.left == 0
        reward, new = (over & (turn == self.cue)).float(), Corridors()
        self.cue, self.left = torch.where(over, new.cue, self.cue), torch.where(over, new.left, self.left - 1)
        return reward, over


class Policy(nn.Module):
    """A GRU with a policy head and a value head."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.actor, self.critic = GRU(3, HIDDEN), nn.Linear(HIDDEN, 2), nn.Linear(HIDDEN, 1)

    def heads(self, y: Tensor) -> tuple[distributions.Categorical, Tensor]:
        """The distribution of turns, and the value (...), in states y (..., H)."""
        return distributions.Categorical(logits=self.actor(y)), self.critic(y).squeeze(-1)


@torch.no_grad()
def gather(policy: Policy, corridors: Corridors, h: Tensor) -> tuple[list[Tensor], Tensor]:
    """Acts from the state h (1, B, H) on. Returns the experience, each (T, B, ...), and the final state."""
    steps = []
    for _ in range(STEPS):
        x, first = corridors.look()
        y, h = policy.gru.step(x, h.masked_fill(first[:, None], 0))
        choice, value = policy.heads(y)
        turn = choice.sample()
        steps.append((x, first, turn, choice.log_prob(turn), value, *corridors.act(turn)))
    return [torch.stack(tensors) for tensors in zip(*steps, strict=True)], h


def advantages(value: Tensor, reward: Tensor, over: Tensor, discount: float = 0.99, decay: float = 0.95) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438), (T, B)."""
    found = [torch.zeros(ROWS)]  # after the last step, whose value is used instead of that of the next
    for t in reversed(range(STEPS)):
        found.append(reward[t] - value[t] + ~over[t] * discount * (value[min(t + 1, STEPS - 1)] + decay * found[-1]))
    return torch.stack(found[:0:-1])


def train(policy: Policy, updates: int) -> Iterator[float]:
    """Alternates acting and four updates on the experience; yields the share of correct turns."""
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    corridors, h, zeros = Corridors(), *torch.zeros(2, 1, ROWS, HIDDEN)
    for _ in range(updates):
        h0, ((x, first, turn, old, value, reward, over), h) = h, gather(policy, corridors, h)
        advantage = advantages(value, reward, over)
        goal, advantage = advantage + value, (advantage - advantage.mean()) / advantage.std()
        for _ in range(4):
            y, _ = policy.gru(x, h0, reset=first, reset_state=zeros)
            choice, value = policy.heads(y)
            ratio = (choice.log_prob(turn) - old).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            loss = (value - goal).square().mean() - gain - 0.01 * choice.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield float(reward.sum() / over.sum())


def with_nn_gru(gru: nn.GRU, x: Tensor, h0: Tensor, first: Tensor) -> Tensor:
    """All outputs, (T, B, H), by torch.nn.GRU: episodes are split, packed, unpacked and put together again."""
    begins = first.t() | (torch.arange(STEPS) == 0)  # (B, T)
    episodes = x.transpose(0, 1).flatten(0, 1).tensor_split(begins.flatten().nonzero()[1:, 0])
    states = (h0 * ~first.unsqueeze(2)).transpose(0, 1)[begins]  # the row's own where an episode continues, else zeros
    packed = pack_sequence(episodes, enforce_sorted=False)
    y, lengths = pad_packed_sequence(gru(packed, states[None])[0], batch_first=True)
    return y[torch.arange(y.shape[1]) < lengths[:, None]].view(ROWS, STEPS, HIDDEN).transpose(0, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="updates")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    torch.manual_seed(args.seed)
    policy = Policy()
    for i, right in enumerate(train(policy, args.steps), 1):
        if i % max(args.steps // 6, 1) == 0:
            print(f"update {i:3}: {right:4.0%} of the turns correct; without memory 50%")
    (x, first, *_), h0 = gather(policy, Corridors(), torch.zeros(1, ROWS, HIDDEN))
    theirs, zeros = policy.gru.to_torch(), torch.zeros_like(h0)
    f, g = lambda: policy.gru(x, h0, reset=first, reset_state=zeros)[0], lambda: with_nn_gru(theirs, x, h0, first)
    ms, nn_ms = (Timer("y().sum().backward()", globals={"y": y}).blocked_autorange().median * 1e3 for y in (f, g))
    print(f"one pass: grucore {ms:.1f} ms, torch.nn.GRU {nn_ms:.1f} ms; they differ by {(f() - g()).abs().max():.0e}")
