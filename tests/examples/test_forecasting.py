"""The forecasts: masked steps have no effect, the future is not read, and the loss and the plot are correct."""

import one_file
import pytest
import torch

pytestmark = pytest.mark.slow

example = one_file.load("forecasting")


@pytest.fixture
def batch():
    """Histories before random weeks, some of them early: x, mask and the last measurement."""
    return example.histories(torch.cat([torch.tensor([60]), torch.randint(example.YEAR, example.SPLIT, (31,))]))


def test_what_the_mask_hides_has_no_effect(batch):
    x, mask, _ = batch
    model = example.Forecaster().eval()
    assert not mask[0].any() or x[~mask].isnan().any()
    forecast = model(x, mask)
    forecast.sum().backward()
    assert forecast.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(model(x.masked_fill(~mask.unsqueeze(2), 1e6), mask), forecast)


def test_equals_nn_gru_on_what_is_there(batch):
    x, mask, _ = batch
    gru = example.Forecaster().gru
    theirs = gru.to_torch()
    h_n, want = gru(x, mask=mask)[1], example.with_nn_gru(theirs, x, mask)
    torch.testing.assert_close(h_n, want, rtol=0, atol=1e-6)
    h_n.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(gru.weight_hh_l0.grad, theirs.weight_hh_l0.grad, rtol=1e-4, atol=1e-4)


def test_a_history_knows_its_last_measurement_and_nothing_later(monkeypatch):
    ends = torch.tensor([60, 500, example.SPLIT])
    torch.manual_seed(3)
    x, mask, last = example.histories(ends)
    for row, end in enumerate(ends):
        step = mask[:, row].nonzero().max().item()
        assert last[row] == example.VALUES[end - example.PAST + step] and x[step, row, 0] == 0
        values = example.VALUES[(end - example.PAST + torch.arange(example.PAST)).clamp(0)]
        torch.testing.assert_close(x[:, row, 0][mask[:, row]], (values - last[row])[mask[:, row]])
        later = example.VALUES.clone()
        later[end:] = 0
        monkeypatch.setattr(example, "VALUES", later)
        torch.manual_seed(3)
        changed, _, _ = example.histories(ends)
        assert torch.equal(changed[:, row][mask[:, row]], x[:, row][mask[:, row]])
        monkeypatch.undo()


def test_the_loss_is_least_at_the_quantiles():
    truth = torch.randn(1, 20_001)
    exact = truth.quantile(example.QUANTILES).expand(1, 20_001, 3)
    least = example.pinball(exact, truth)
    for change in torch.eye(3) * 0.05:
        assert example.pinball(exact + change, truth) > least < example.pinball(exact - change, truth)
    missing = torch.cat([truth, torch.full((1, 9), torch.nan)], 1)
    assert torch.equal(example.pinball(torch.nn.functional.pad(exact, (0, 0, 0, 9)), missing), least)


def test_learns():
    torch.manual_seed(0)
    losses = list(example.train(example.Forecaster(), 40))
    assert losses[0] > 0.8 and sum(losses[-5:]) / 5 < 0.5


def test_as_a_program(tmp_path):
    plot = tmp_path / "forecast.png"
    result = one_file.run("forecasting", "--steps", 2, "--output", plot)
    assert result.returncode == 0, result.stderr
    assert plot.read_bytes()[:4] == b"\x89PNG" and "inside the 80% interval" in result.stdout
    for path in (plot, tmp_path / "none" / "forecast.png", tmp_path / "forecast.txt"):
        refused = one_file.run("forecasting", "--output", path)
        assert refused.returncode == 2 and refused.stderr.endswith(f"in a folder that exists, got {path}\n")
