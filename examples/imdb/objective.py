"""What a batch's gradients are taken of: the classification loss, and perturbations of the embedded words.

    L = L_ML + L_AT                              supervised: cross entropy, as it is and at the worst perturbation
    L = L_ML + L_AT + L_VAT + L_EM               with unlabelled reviews: virtual adversarial loss and entropy too

L_AT is the cross entropy at x + eps s g / |g|, where g is the gradient of L_ML with respect to the embedded review x,
dropout included, |g| its norm over the whole review, and s the standard deviation of the review's embedded words:
larger words do not escape a perturbation that is measured in them. g is a constant, so no gradient of a gradient is
needed.
Sources: Miyato et al. 2017 (arXiv:1605.07725), Sachan et al. 2019 (arXiv:2009.04007).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

POWER_STEP = 0.1  # the length, in units of s, of the random step that finds the virtual adversarial direction


class Part(NamedTuple):
    """Reviews on the device. `share` scales sums over reviews into this process's part of the batch's mean."""

    tokens: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    labels: Tensor  # (B,)
    weights: Tensor  # (B,)
    share: float


class Objective:
    """Gradients of the classification losses.

    Args:
        model: the classifier; for `adversarial` one with `window` and `embed`.
        wrapped: the same, in DistributedDataParallel where there are several processes.
        adversarial: eps, 0 for none.
        scale: of a loss before its backward pass (a GradScaler's, for float16).
        autocast: makes the context of forward passes.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        adversarial: float,
        scale: Callable[[Tensor], Tensor],
        autocast: Callable[[], AbstractContextManager],
    ):
        self.model, self.wrapped, self.adversarial = model, wrapped, adversarial
        self.scale, self.autocast = scale, autocast

    def _unsynchronised(self) -> AbstractContextManager:
        return self.wrapped.no_sync() if hasattr(self.wrapped, "no_sync") else nullcontext()

    def supervised(self, part: Part, last: bool) -> tuple[Tensor, Tensor]:
        """Adds the gradients of the labelled losses; processes exchange gradients in the `last` backward pass.

        Returns:
            Each review's logits (B, 2) and cross entropy (B,), as they are without a perturbation.
        """
        if self.adversarial:
            return self._with_perturbation(part, last)
        with nullcontext() if last else self._unsynchronised():
            with self.autocast():
                logits = self.wrapped(part.tokens, part.lengths)
            losses = _cross_entropies(logits, part.labels)
            self.scale((losses * part.weights).sum() * part.share).backward()
        return _prediction(logits, losses)

    def _with_perturbation(self, part: Part, last: bool) -> tuple[Tensor, Tensor]:
        with self._unsynchronised():
            with self.autocast():
                seen, lengths = self.model.window(part.tokens, part.lengths)
                x = self.model.embed(seen)
                x.retain_grad()
                logits = self.wrapped(part.tokens, part.lengths, x)
            losses = _cross_entropies(logits, part.labels)
            # The n-grams have no perturbation: all their paths' losses are in this pass.
            self.scale((losses * part.weights).sum() * part.share).backward(retain_graph=True)
        perturbed = x + self.adversarial * spread(x, lengths) * direction(x.grad)
        with nullcontext() if last else self._unsynchronised():
            with self.autocast():
                again = self.wrapped(part.tokens, part.lengths, perturbed)
            adversarial = cross_entropy(again[0].float(), part.labels, reduction="none") * part.weights
            # Times 0: every parameter has to have a gradient for processes to exchange.
            self.scale(adversarial.sum() * part.share + 0 * again[1:].sum()).backward()
        return _prediction(logits, losses)

    def unlabelled(self, part: Part, entropy: float) -> None:
        """Adds the gradients of the losses that need no label; never the last backward pass of a step.

        Args:
            part: reviews; the labels are not read.
            entropy: the weight of L_EM.
        """
        with self._unsynchronised():
            with self.autocast():
                seen, lengths = self.model.window(part.tokens, part.lengths)
                x = self.model.embed(seen)
                clean = self.wrapped(part.tokens, part.lengths, x)[0].float()
            uncertainty = torch.distributions.Categorical(logits=clean).entropy() * part.weights
            self.scale(entropy * uncertainty.sum() * part.share).backward(retain_graph=True)
            scale, belief = spread(x, lengths), clean.detach().log_softmax(1)
            step = direction(torch.randn_like(x) * real_steps(x, lengths))
            step.requires_grad_()
            with self.autocast():
                near = self.model(part.tokens, part.lengths, x.detach() + POWER_STEP * scale * step)[0].float()
            (toward,) = torch.autograd.grad(_divergence(near, belief).sum(), step)
            with self.autocast():
                far = self.wrapped(part.tokens, part.lengths, x + self.adversarial * scale * direction(toward))[0]
            divergence = _divergence(far.float(), belief) * part.weights
            self.scale(divergence.sum() * part.share).backward()


def real_steps(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, 1) bool, True where a step is a word."""
    return (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, :, None]


def spread(x: Tensor, lengths: Tensor) -> Tensor:
    """The standard deviation (B, 1, 1) around 0 of each review's elements of x (B, T, E), padding left out."""
    squares = (x.detach().float().square() * real_steps(x, lengths)).sum((1, 2))
    return (squares / (lengths * x.shape[2])).sqrt()[:, None, None]


def direction(gradient: Tensor) -> Tensor:
    """Each review's gradient (B, T, E) at length 1 over all its words; 0 stays 0."""
    gradient = gradient.detach().float()
    largest = gradient.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = gradient / largest  # squares of small gradients vanish in float32
    return scaled / scaled.square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-12)


def _divergence(logits: Tensor, belief: Tensor) -> Tensor:
    return kl_div(logits.log_softmax(1), belief, reduction="none", log_target=True).sum(1)


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Each review's loss (B,), summed over the paths where logits are (paths, B, 2)."""
    if logits.dim() == 2:
        return cross_entropy(logits.float(), labels, reduction="none")
    return torch.stack([cross_entropy(path.float(), labels, reduction="none") for path in logits]).sum(0)


def _prediction(logits: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    return (logits if logits.dim() == 2 else logits.mean(0)).detach().float(), losses.detach()
