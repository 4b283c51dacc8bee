"""The names of a layer's parameters, those of torch.nn.GRU and those of layer normalisation."""

from __future__ import annotations

GAINS = ("layer_norm_ih", "layer_norm_hh")


def of_weights(bias: bool) -> tuple[str, ...]:
    """The kinds of weights and biases, in torch.nn.GRU's order."""
    return ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if bias else ("weight_ih", "weight_hh")


def parameter_names(layers: int, directions: int, kinds: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The names of the parameters of some kinds, a group for each layer and direction."""
    suffixes = [f"_l{k}{'_reverse' if d else ''}" for k in range(layers) for d in range(directions)]
    return [tuple(kind + suffix for kind in kinds) for suffix in suffixes]
