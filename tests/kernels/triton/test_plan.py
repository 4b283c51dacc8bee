"""The launch table: the row that a layer uses, and that each row is used somewhere."""

import pytest

from benchmarks.tuning import compile_report
from grucore.kernels.triton import plan
from grucore.kernels.triton.plan import H100, Device

A100 = compile_report.DEVICES[80]

PLANS = [  # recurrence, batch, H, directions, kind, device; block_b, block_j, block_k, streamed
    (("forward", 1, 1, 1, "half", H100), (16, 0, 16, False)),
    (("forward", 64, 65, 2, "half", H100), (16, 0, 128, False)),
    (("forward", 64, 33, 1, "ieee", H100), (16, 0, 64, False)),
    (("forward", 64, 129, 1, "half", H100), (16, 32, 256, False)),
    (("backward", 64, 1024, 2, "half", H100), (32, 32, 128, True)),
    (("backward", 64, 1024, 1, "half", A100), (16, 16, 256, False)),
    (("forward", 32, 65, 1, "ieee", H100), (16, 32, 32, True)),  # more float32 weights than shared memory
    (("forward", 33, 1025, 1, "half", H100), (32, 64, 64, True)),
    (("backward", 33, 1025, 1, "half", H100), (32, 64, 128, True)),
    (("backward", 33, 100_000, 2, "tf32", A100), (32, 64, 32, True)),
    (("backward", 1, 1024, 2, "half", A100), (16, 32, 128, True)),  # 128 programs on 108 processors
    (("forward", 1, 1024, 1, "half", H100._replace(processors=31)), (16, 32, 128, True)),
    (("forward", 1, 128, 1, "half", Device(89, 142, 101_376)), (16, 32, 128, True)),
]


@pytest.mark.parametrize("case", PLANS, ids=str)
def test_plan_is_the_first_that_serves_and_fits(case):
    arguments, expected = case
    chosen = plan.plan(*arguments)
    assert (chosen.block_b, chosen.block_j, chosen.block_k, chosen.streamed) == expected


@pytest.mark.parametrize("device", [H100._replace(capability=75), H100._replace(shared_memory=4096)], ids=str)
def test_no_plan_says_for_what(device):
    message = f"no plan for 64 hidden units in half arithmetic .* capability {device.capability / 10} with {device[2]} "
    with pytest.raises(ValueError, match=message):
        plan.plan("backward", 1, 64, 1, "half", device)


def test_every_row_of_the_table_is_chosen_somewhere():
    devices = compile_report.DEVICES.values()
    assert all(any(compile_report.is_chosen(row, device) for device in devices) for row in plan.TABLE)
