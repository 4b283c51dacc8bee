"""The contract of `kernels/__init__.py`: one table of cases, for every implementation, against torch.nn.GRU in float64.

The equations of `kernels/reference.py` are one of them. The fused kernels run natively on a GPU, else in Triton's
interpreter. Tests of one implementation (chunks, packing, plans, exchanges) are in its folder here.
"""

import pytest
import torch
from contract import DEVICE, IMPLEMENTATIONS, Case, check, draw

BEYOND = 66_000  # 65,535 is the largest y or z axis of a CUDA grid

CASES = {
    "one step": Case(T=1),
    "one step, two-way": Case(T=1, two_way=True),
    "one row": Case(T=3, B=1),
    "one step, one row": Case(T=1, B=1, I=20, H=24),  # an error is that of many numbers: a few may cancel
    "one unit": Case(T=20, B=9, I=1, H=1),
    "one of everything": Case(1, 1, 1, 1),
    "H = 33": Case(T=5, B=17, I=3, H=33, two_way=True),
    "H = 100": Case(T=3, B=2, H=100),
    "H = 128": Case(T=2, B=2, H=128),
    "prime sizes": Case(T=7, B=5, I=3, H=17, two_way=True),
    "T = 101": Case(T=101, B=1, I=3),
    "T = 1009": Case(T=1009, B=2, I=3, H=5, two_way=True, large=True),
    "B = 1500": Case(T=3, B=1500, H=6, two_way=True, large=True),
    "B past 65,535": Case(T=2, B=BEYOND, I=2, H=3, two_way=True, large=True),
    "I past 65,535": Case(T=2, B=1, I=BEYOND, H=16, large=True),
    "large": Case(T=20, B=64, I=128, H=256, two_way=True, large=True),
    "two-way": Case(two_way=True),
    "no bias": Case(bias=False),
    "no bias, two-way": Case(bias=False, two_way=True),
    "T = 0": Case(T=0, two_way=True),
    "B = 0": Case(B=0, two_way=True),
    "T = 0, B = 0": Case(T=0, B=0),
    "B = 0 with flags": Case(B=0, flags="padding"),
    "loss on h_n": Case(loss="h_n", two_way=True),
    "loss on y": Case(loss="y", two_way=True),
    "loss on the first step": Case(loss="first y"),
    "no dx": Case(need_dx=False, two_way=True),
    "strided": Case(layout="strided", two_way=True),
    "strided, no padding of units": Case(H=16, layout="strided"),
    "expanded": Case(layout="expanded"),
    "lengths": Case(T=4, B=17, flags="lengths"),
    "lengths, two-way": Case(flags="lengths", two_way=True, B=5),
    "lengths, loss on h_n": Case(flags="lengths", loss="h_n", B=5),
    "lengths, loss on y": Case(flags="lengths", loss="y", B=5),
    "lengths, strided": Case(flags="lengths", layout="strided", B=5),
    "lengths, no dx": Case(flags="lengths", need_dx=False),
    "all padding": Case(flags="padding", two_way=True),
    "left padding": Case(flags="left", two_way=True, B=5),
    "gaps": Case(flags="gaps", two_way=True, B=5),
    "resets": Case(flags="resets", two_way=True, B=5),
    "one step, cut": Case(T=1, flags="resets", two_way=True),
    "one step, cut, one-way": Case(T=1, flags="resets state"),
    "gaps and resets": Case(T=7, B=17, flags="gaps resets", two_way=True),
    "left padding and resets": Case(T=9, flags="left resets", two_way=True, B=5),
    "lengths, resets, no bias": Case(flags="lengths resets", bias=False, B=5),
    "a state to reset to": Case(flags="resets state", two_way=True, B=5),
    "a state to reset to, gaps": Case(T=9, flags="gaps resets state", two_way=True, B=5),
    "a state to reset to, loss on h_n": Case(flags="resets state", loss="h_n", B=5),
    "a state to reset to, no resets": Case(flags="lengths state"),
    "a state to reset to, no flags": Case(flags="state", two_way=True),
    "two heads": Case(heads=2),
    "three heads, two-way": Case(T=5, B=17, I=3, H=5, heads=3, two_way=True),
    "heads, lengths, two-way": Case(B=5, flags="lengths", heads=2, two_way=True),
    "heads, gaps, resets, a state": Case(T=7, B=5, flags="gaps resets state", heads=3, two_way=True),
    "heads, strided, no dx": Case(layout="strided", need_dx=False, heads=3),
    "heads, T = 0": Case(T=0, heads=2, two_way=True),
    "heads, B = 0": Case(B=0, heads=2, two_way=True),
    "eight heads, large": Case(T=20, B=64, I=64, H=32, heads=8, large=True),
}
RESET_BEFORE = {
    "sizes of 1": Case(1, 1, 1, 1),
    "odd": Case(9, 3, 4, 5, two_way=True),
    "no bias": Case(bias=False),
    "large": Case(5, 64, 128, 256),
    "T = 0": Case(T=0, two_way=True),
    "B = 0": Case(B=0, two_way=True),
    "H = 100": Case(70, 33, 5, 100),
    "loss on h_n": Case(loss="h_n"),
    "no dx, strided": Case(layout="strided", need_dx=False),
    "flags": Case(T=9, flags="gaps resets state", two_way=True, B=5),
    "heads": Case(T=9, B=5, H=5, flags="gaps resets state", heads=3, two_way=True),
}
# Triton's interpreter is slow: the cases that it runs unmarked, and those also in 16 bits. A GPU runs everything.
QUICK = ["one step, one row", "one step, cut, one-way", "two-way", "T = 0", "strided", "lengths, two-way", "resets"]
QUICK += ["two heads"]
IN_16_BITS = ["one step, two-way", "H = 33", "H = 128", "strided", "lengths", "left padding and resets"]
CASES |= {f"reset before, {name}": case._replace(reset_after=False) for name, case in RESET_BEFORE.items()}


def cases():
    """The cases that an implementation supports, in each of its dtypes."""
    for name, implementation in IMPLEMENTATIONS.items():
        interpreted = name == "triton" and DEVICE == "cpu"
        for title, case in CASES.items():
            if (interpreted and case.large) or (name not in ("eager", "native") and not case.reset_after):
                continue  # reset_after=False is checked against the reference, and Triton lacks it
            marks = [pytest.mark.gpu] if implementation.device == "cuda" else []
            for dtype in implementation.dtypes:
                if dtype.itemsize == 2 and (case.H == 1 or (interpreted and title not in IN_16_BITS)):
                    continue  # one number is off by 10 % in 16 bits where its terms cancel
                is_slow = case.large or (interpreted and (dtype.itemsize == 2 or title not in QUICK))
                label = f"{name}-{title}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(
                    implementation, case, dtype, marks=[*marks, pytest.mark.slow] if is_slow else marks, id=label
                )


@pytest.mark.parametrize("implementation, case, dtype", list(cases()))
def test_values_and_gradients(implementation, case, dtype):
    check(implementation, case, dtype)


def marked(name):
    return pytest.param(name, marks=[pytest.mark.gpu] if IMPLEMENTATIONS[name].device == "cuda" else [])


@pytest.fixture(params=[marked(name) for name in IMPLEMENTATIONS if name != "reference"])
def run(request):
    """An implementation with its own backward pass, in float32, on calls drawn on the CPU."""
    implementation = IMPLEMENTATIONS[request.param]
    return lambda call: flat(implementation.run(call.to(implementation.device)))


def flat(results):
    """y, h_n and all gradients as one list."""
    y, h_n, grads = results
    return [t.cpu() for t in (y, h_n, *grads) if t is not None]


def test_twice_is_bitwise_equal(run):
    call = draw(Case(T=5, B=9, H=33, two_way=True, flags="lengths resets"), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(run(call), run(call), strict=True))


def test_arguments_are_not_written_to(run):
    """H = 16: nothing is padded or cast, so the caller's memory could be written."""
    call = draw(Case(T=5, B=16, I=16, H=16), torch.float32)
    kept = call.to(torch.float64)
    run(call)
    for before, after in zip(
        (kept.x, kept.dy, kept.dh_n, kept.state.h0, *kept.weights),
        (call.x, call.dy, call.dh_n, call.state.h0, *call.weights),
        strict=True,
    ):
        assert torch.equal(before.float(), after)


@pytest.mark.parametrize("value", [2.0, torch.nan])
def test_a_row_depends_on_itself_only(value, run):
    """For any values in one row, even NaN, the results of the others are the same bit for bit."""
    call, others = draw(Case(T=4, H=10, two_way=True), torch.float32), [0, 2]
    x = call.x.clone()
    x[1, 1] = value
    (y, h_n, dx, dh0, *_), want = run(call._replace(x=x)), run(call)
    assert not torch.equal(y[1, 1], want[0][1, 1]) and not torch.equal(h_n[:, 1], want[1][:, 1])
    for got, same in zip((y, h_n, dx, dh0), want[:4], strict=True):
        assert torch.equal(got[:, others], same[:, others])
