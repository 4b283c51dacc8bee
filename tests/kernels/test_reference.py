"""One step of the reference equals the equations; test_contract.py compares its sequences with torch.nn.GRU."""

import pytest
import torch

from grucore.kernels import Form, State, Steps, Weights, reference


@pytest.mark.parametrize("reset_after", [True, False], ids=["reset-after", "reset-before"])
def test_reference_is_the_equations(reset_after):
    """One step, written out with scalars."""
    T, B, H = 1, 1, 1
    x, h, w, u, b, c = (torch.randn(3, dtype=torch.float64) for _ in range(6))
    x, h = x[:1], h[:1]
    r = 1 / (1 + torch.exp(-(w[0] * x + b[0] + u[0] * h + c[0])))
    z = 1 / (1 + torch.exp(-(w[1] * x + b[1] + u[1] * h + c[1])))
    inner = r * (u[2] * h + c[2]) if reset_after else u[2] * (r * h) + c[2]
    n = torch.tanh(w[2] * x + b[2] + inner)
    want = (1 - z) * n + z * h
    weights = Weights(w.view(1, 3, 1), u.view(1, 3, 1), b.view(1, 3), c.view(1, 3))
    y, h_n, gates = reference.gru_layer(x.view(T, B, 1), State(h.view(1, B, H)), weights, Steps(), Form(reset_after))
    torch.testing.assert_close(y.view(1), want, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(h_n.view(1), want, rtol=1e-14, atol=1e-14)
    for gate, value in zip(gates, (r, z, n), strict=True):
        torch.testing.assert_close(gate.view(1), value, rtol=1e-14, atol=1e-14)


def test_cuts_of_the_reference():
    """A reset in padding acts at the next non-padding step; one followed only by padding has no effect."""
    start = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool).unsqueeze(1)
    real = torch.tensor([1, 1, 0, 1, 1, 0], dtype=torch.bool).unsqueeze(1)
    assert reference.cuts(start, real, False).squeeze(1).tolist() == [True, False, False, True, False, False]
    assert reference.cuts(start, real, True).squeeze(1).tolist() == [False, True, False, False, True, False]
