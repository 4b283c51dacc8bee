"""Checks the table of what options cost that torch.nn.GRU does not have."""

from benchmarks.measuring import options
from benchmarks.publishing.options import summary
from benchmarks.results import Row
from grucore.kernels import regularised


def test_step_by_step_is_without_the_native_kernels(monkeypatch):
    ran, run = [], regularised.gru_layer
    monkeypatch.setattr(regularised, "gru_layer", lambda *a, **k: (ran.append(a), run(*a, **k))[1])
    for (_, provider, name), call in options.runs_of((3, 2, 4, 5)).items():
        before = len(ran)
        call()
        assert provider == options.NATIVE or len(ran) == before + 1, name


def test_the_table():
    times = {("inference", options.NATIVE, options.PLAIN): 2.0, ("inference", options.NATIVE, "relu"): 3.0}
    times |= {("inference", options.STEPWISE, "relu"): 12.0, ("training", options.NATIVE, "relu"): 7.0}
    times |= {("training", options.KERAS, "relu"): 21.0}
    rows = [
        Row(provider, mode, 250, 16, 64, 128, ms_cpu_p50=ms, note=note, device="cpu", commit="abc", date="today")
        for (mode, provider, note), ms in times.items()
    ]
    lines = summary(rows).splitlines()
    assert lines[0].startswith("cpu, float32") and "Commit abc, measured today." in lines[0]
    assert "| 250 x 16, 64 -> 128 |" in lines[2] and lines[4] == "| none | 2 | 1.00 | - | - | - | - | - |"
    assert lines[5] == "| relu | 3 | 1.50 | 4.00 | 7 | - | - | 3.00 |"
