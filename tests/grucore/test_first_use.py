"""The check of "auto" on an unmeasured GPU; in the interpreter if there is none."""

import itertools
import warnings

import pytest
import torch
from contract import DEVICE
from torch.utils.flop_counter import FlopCounterMode

from grucore import dispatch, first_use
from grucore.kernels import Form
from grucore.kernels.triton import layer, plan

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []


def case_of(dtype=torch.float32, hidden_size=20, directions=1, is_step=False, has_steps=False, wants_gradient=True):
    kind = plan.kind(dtype, "ieee")
    names = ["step" if is_step else "forward", "backward"]
    plans = tuple(plan.plan(name, 4, hidden_size, directions, kind, plan.H100) for name in names)
    sizes = first_use.rows_like(4, plans[0].block_b), hidden_size, directions
    return first_use.Case(torch.device(DEVICE), dtype, "ieee", *sizes, is_step, has_steps, wants_gradient, plans)


CASES = {
    "float32": case_of(),
    "a step": case_of(is_step=True),
    "flags, two directions": case_of(torch.float16, directions=2, has_steps=True),
    "inference": case_of(torch.bfloat16, hidden_size=33, wants_gradient=False),
    "dropout and zoneout": case_of()._replace(regularised=("recurrent_dropout", "zoneout"), training=True),
    "zoneout's expectation": case_of(torch.float16)._replace(regularised=("zoneout",)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_right_kernels_pass(case):
    assert first_use.difference(case) is None


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kind", ["half", "tf32", "ieee"])
def test_the_tiny_batch_has_the_plans_of_the_call(kind, capability):
    device = plan.H100._replace(capability=capability)
    for H, batch in itertools.product((16, 64, 128, 200, 512, 1500), (1, 20, 32, 33, 64, 256)):
        plans = [[plan.plan(name, batch, H, 1, kind, device) for name in ("step", "forward", "backward")]]
        rows = [first_use.rows_like(batch, each.block_b) for each in plans[0]]
        plans += [[plan.plan(name, n, H, 1, kind, device) for name in ("step", "forward", "backward")] for n in rows]
        assert all(each == plans[0] for each in plans), (H, batch, rows)
        assert max(rows) <= 65


def test_a_full_device_says_nothing_of_the_kernels(gpu):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    with gpu.context() as changed:
        changed.setattr(layer, "gru_forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            first_use.checked(case_of())
    assert first_use.checked(case_of()) is None


def test_a_wrong_gradient_is_named(monkeypatch):
    """Only the gradient of W_hh is a tenth too large."""
    right = layer.gru_backward

    def wrong(*args):
        made = right(*args)
        return made._replace(w_hh=1.1 * made.w_hh)

    monkeypatch.setattr(layer, "gru_backward", wrong)
    assert first_use.difference(case_of()) == "errors of dw_hh by 1.0e-01 (at most 1e-04)"


def test_what_the_kernels_raise_and_nan_are_differences(monkeypatch):
    monkeypatch.setattr(layer, "gru_forward", lambda *_: 1 / 0)
    assert first_use.difference(case_of()) == "ZeroDivisionError: division by zero"
    right = layer.gru_backward
    monkeypatch.undo()
    monkeypatch.setattr(layer, "gru_backward", lambda *args: right(*args)._replace(x=torch.tensor(float("nan"))))
    assert "dx by nan" in first_use.difference(case_of())


@pytest.fixture
def gpu(monkeypatch):
    """An H100, as far as the choice of a backend can tell."""
    monkeypatch.setattr(plan, "device", lambda _: plan.H100)
    monkeypatch.setattr(first_use, "MEASURED", frozenset())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    first_use.checked.cache_clear()
    yield monkeypatch
    first_use.checked.cache_clear()


def choose(backend="auto", **sizes):
    return dispatch.choose(backend, dispatch.Request(torch.device("cuda"), torch.float32, 20, Form(), **sizes))


def test_auto_goes_without_kernels_that_are_wrong_and_says_so_once(gpu):
    asked = []
    gpu.setattr(first_use, "difference", lambda case: (asked.append(case), "errors of y by 2.0e+00")[1])
    with pytest.warns(RuntimeWarning, match="errors of y by 2.0e.00. Please report it with Case"):
        choice = choose()
    assert choice == ("eager", "errors of y by 2.0e+00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose().name == "eager"  # the same plan: not checked again
        assert len(asked) == 1
        assert choose("triton").name == "triton"  # asked for by name
        assert len(asked) == 1


def test_auto_takes_kernels_that_are_right(gpu):
    asked = []
    gpu.setattr(first_use, "difference", asked.append)
    for sizes in [(5, 4, 1), (7, 3, 1), (1, 4, 1), (5, 4, 2)]:
        assert choose(sizes=sizes) == ("triton", "the implementation for cuda tensors")
    assert [(case.is_step, case.directions) for case in asked] == [(False, 1), (True, 1), (False, 2)]


def test_a_variant_is_another_case(gpu):
    """In training and not, but only of what acts; it never takes the kernel of a single step."""
    asked = []
    gpu.setattr(first_use, "difference", asked.append)
    for names, training in itertools.product(((), ("zoneout",)), (False, True)):
        assert choose(sizes=(1, 4, 1), regularised=names, training=training).name == "triton"
    assert [(case.is_step, case.regularised, case.training) for case in asked] == [
        (True, (), False),
        (False, ("zoneout",), False),
        (False, ("zoneout",), True),
    ]


def test_a_mask_that_is_forgotten_is_a_difference(monkeypatch):
    right = layer.gru_forward
    monkeypatch.setattr(layer, "gru_forward", lambda *args: right(*args[:5]))
    assert "y by" in first_use.difference(CASES["dropout and zoneout"])


def test_nothing_is_checked_where_it_would_be_recorded_or_was_measured(gpu):
    gpu.setattr(first_use, "difference", lambda case: 1 / 0)
    with gpu.context() as changed:
        changed.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose().name == "triton"
    with FlopCounterMode(display=False):
        assert choose().name == "triton"
    gpu.setattr(first_use, "MEASURED", {90})
    assert choose().name == "triton"
