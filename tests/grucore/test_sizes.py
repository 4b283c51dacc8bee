"""Sequences longer than other implementations support; the other sizes are in test_contract.py."""

import pytest
import torch
from oracle import assert_near, to_oracle

from grucore import GRU, InputError

pytestmark = pytest.mark.slow

BEYOND = 66_000  # 65,535 is the largest y or z axis of a CUDA grid, and cuDNN's T


def test_long_sequences():
    """Gradients of the last steps; nn.GRU begins 500 steps before the end, from its own state there: what is earlier
    has been forgotten.
    """
    layer, cut = GRU(2, 3, dtype=torch.float64), BEYOND - 500
    oracle, x = to_oracle(layer), torch.randn(BEYOND, 1, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        want, h_cut = oracle(x[:cut])
    y, h_n = layer(x)
    y_want, h_want = oracle(x[cut:], h_cut)
    assert_near("output", y, torch.cat([want, y_want]))
    assert_near("output", h_n, h_want)
    dy = torch.randn(100, 1, 3, dtype=torch.float64)
    got = torch.autograd.grad(y[-100:], [x, *layer.parameters()], dy)
    for a, b in zip(got, torch.autograd.grad(y_want[-100:], [x, *oracle.parameters()], dy), strict=True):
        assert_near("dx", a, b)
    assert got[0][-500].abs().max() < 1e-20


@pytest.mark.parametrize("kind", ["lengths", "mask", "reset"])
def test_long_sequences_with_flags(kind):
    T = BEYOND
    layer = GRU(1, 2, dtype=torch.float64)
    x = torch.randn(T, 2, 1, dtype=torch.float64)
    options = {"lengths": torch.tensor([T, 3])} if kind == "lengths" else {kind: torch.rand(T, 2) < 0.5}
    y, h_n = layer(x, **options)
    cut = 65_530
    if kind == "lengths":
        want, _ = layer(x[cut:, :1], h0_after(layer, x[:cut, :1]))
        torch.testing.assert_close(y[cut:, :1], want, rtol=0, atol=1e-12)
        assert y[3:, 1].count_nonzero() == 0
    elif kind == "mask":
        rows = options["mask"][:, 0]
        want, h_want = layer(x[rows, :1])
        torch.testing.assert_close(y[rows, :1], want, rtol=0, atol=1e-12)
        torch.testing.assert_close(h_n[:, :1], h_want, rtol=0, atol=1e-12)
    else:
        last = int(options["reset"][:, 1].nonzero()[-1])
        torch.testing.assert_close(y[last:, 1:], layer(x[last:, 1:])[0], rtol=0, atol=1e-12)


def h0_after(layer, x):
    return layer(x)[1]


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_reset_state_of_another_kind_is_refused(backend):
    gru, x, reset = GRU(3, 4, backend=backend), torch.randn(5, 2, 3), torch.ones(5, 2, dtype=torch.bool)
    state = torch.randn(1, 2, 4)
    with pytest.raises(InputError, match=r"reset_state dtype \(torch.complex64\) does not match"):
        gru(x, reset=reset, reset_state=state.to(torch.complex64))
    with pytest.raises(InputError, match="reset_state is on meta and the weights are on cpu"):
        gru(x, reset=reset, reset_state=state.to("meta"))
    y, _ = gru(x, reset=reset, reset_state=state.double())  # converted, as hx is
    assert torch.allclose(y, gru(x, reset=reset, reset_state=state)[0])
