"""Compiled kernels in which stores, counts or a program are lost: the launch ends, and the host is told."""

import json

import pytest
from ptxrun.child import UNAVAILABLE, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or "")]


def test_a_launch_ends_whatever_is_lost():
    """Rows of that group are NaN, the others correct. Without the count, its accesses are a race."""
    result = run("-m", "ptxrun.lost")
    assert result.returncode == 0, result.stderr
    ended = json.loads(result.stdout)
    right = {"fault": "", "is_reported": False, "is_nan": False, "others_are_right": True}
    assert ended["nothing"] == right
    assert ended["stores"] == ended["a program"] == right | {"is_reported": True, "is_nan": True}
    assert ended["counts"]["is_reported"]
    assert "race" in ended["counts"]["fault"] and "deadlock" not in ended["counts"]["fault"]
