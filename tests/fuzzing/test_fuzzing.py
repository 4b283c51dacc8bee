"""A few seconds of `make fuzz`, and checks that it finds planted bugs."""

import contextlib
import re

import pytest
import torch
from fuzzing import compare, files, kernels, modules, options, quantised

from grucore import GRU, QuantizedGRU
from grucore.convert import onnx_import


@pytest.fixture(autouse=True)
def _as_users_have_it():
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_programs(backend):
    assert not [failure for seed in range(60) for failure in modules.one(seed, backend)]


def test_random_options():
    assert not [failure for seed in range(150) for failure in options.one(seed)]


def test_random_quantised_layers():
    assert not [failure for seed in range(40) for failure in quantised.one(seed)]


def test_a_quantised_layer_that_is_far_is_found(monkeypatch):
    def other(self, *arguments, **call):
        y, h_n = QUANTIZED(self, *arguments, **call)
        return y * 1.2, h_n

    monkeypatch.setattr(QuantizedGRU, "forward", other)
    found = [failure for seed in range(5) for failure in quantised.one(seed)]
    assert any(failure.startswith("far: ") for failure in found)


def test_random_cases_of_the_contract():
    assert not [failure for seed in range(60) for failure in kernels.one(seed)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return files.write_all(tmp_path_factory.mktemp("files"))


def test_the_files_can_be_read_before_they_are_changed(paths):
    assert len(paths) == 8 and all(isinstance(files.read(path), GRU) for path in paths)


def test_damaged_files(paths):
    assert not [failure for seed in range(300) for failure in files.one(seed, paths)]


FORWARD, QUANTIZED = GRU.forward, QuantizedGRU.forward


def other_numbers(self, *args, **call):
    y, h_n = FORWARD(self, *args, **call)
    return y * 1.01, h_n


def another_error(self, *args, **call):
    raise KeyError("x")


def no_error(self, *args, **call):
    return None


PROGRAM = ["gru = GRU(3, 4)", "gru.eval()", "out = 3", "out = gru(r(2, 3, 2, 3){})"]
FAULTS = {
    "other numbers": (other_numbers, "", r"out\[0\]: other numbers, by"),
    "an error": (another_error, "", "only ours raises KeyError"),
    "another error": (another_error, ", r(2, 5, 5, 5)", "ours raises KeyError, torch.nn RuntimeError"),
    "no error": (no_error, ", r(2, 5, 5, 5)", "only torch.nn raises RuntimeError"),
}


@pytest.mark.parametrize("fault, argument, what", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_told_in_two_statements(fault, argument, what, monkeypatch):
    program = [*PROGRAM[:-1], PROGRAM[-1].format(argument)]
    assert compare.failure(program, "auto") is None
    monkeypatch.setattr(GRU, "forward", fault)
    found = compare.failure(program, "auto")
    assert found.statement == 3 and re.match(what, found.what)
    shorter, found = compare.smaller(program, found, "auto")
    assert shorter == [program[0], program[3]]
    assert "\n".join(shorter) in compare.snippet(shorter, found, "auto")


def test_an_error_of_another_library_is_found(paths, monkeypatch):
    monkeypatch.setattr(onnx_import, "reading", lambda source: contextlib.nullcontext())
    assert [failure for seed in range(100) for failure in files.one(seed, paths)]
