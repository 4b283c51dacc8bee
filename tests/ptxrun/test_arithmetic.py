"""Single instructions from registers to registers, against the PTX ISA's definition, computed in Python."""

import math
import random

import numpy as np
import pytest
import torch
from ptxrun import build
from ptxrun.bodies import as_float, each_lane, execute, float_bits, signed

pytestmark = pytest.mark.skipif(build.UNAVAILABLE is not None, reason=build.UNAVAILABLE or "")

rng = random.Random(0)
SPECIAL32 = [0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 0x8000, 0x12345678]
WORDS = SPECIAL32 + [rng.getrandbits(32) for _ in range(21)]
OTHERS = [rng.choice([*SPECIAL32, rng.getrandbits(32)]) for _ in range(32)]
LONGS = [0, 1, 2**63, 2**64 - 1, 2**32] + [rng.getrandbits(64) for _ in range(27)]


def quotient(a, b):
    """Toward zero; -1 where b is 0, which PTX leaves open."""
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER = {
    "add.s32 %r4, %r1, %r2;": lambda a, b, c: a + b,
    "sub.s32 %r4, %r1, %r2;": lambda a, b, c: a - b,
    "mul.lo.s32 %r4, %r1, %r2;": lambda a, b, c: a * b,
    "mad.lo.s32 %r4, %r1, %r2, %r3;": lambda a, b, c: a * b + c,
    "mul.hi.u32 %r4, %r1, %r2;": lambda a, b, c: a * b >> 32,
    "mul.hi.s32 %r4, %r1, %r2;": lambda a, b, c: signed(a, 32) * signed(b, 32) >> 32,
    "div.s32 %r4, %r1, %r2;": lambda a, b, c: quotient(signed(a, 32), signed(b, 32)),
    "div.u32 %r4, %r1, %r2;": lambda a, b, c: quotient(a, b),
    "rem.s32 %r4, %r1, %r2;": lambda a, b, c: signed(a, 32) - quotient(signed(a, 32), signed(b, 32)) * signed(b, 32),
    "rem.u32 %r4, %r1, %r2;": lambda a, b, c: a - quotient(a, b) * b,
    "and.b32 %r4, %r1, %r2;": lambda a, b, c: a & b,
    "or.b32 %r4, %r1, %r2;": lambda a, b, c: a | b,
    "xor.b32 %r4, %r1, %r2;": lambda a, b, c: a ^ b,
    "not.b32 %r4, %r1;": lambda a, b, c: ~a,
    "neg.s32 %r4, %r1;": lambda a, b, c: -a,
    "shl.b32 %r4, %r1, %r2;": lambda a, b, c: a << b if b < 32 else 0,
    "shr.u32 %r4, %r1, %r2;": lambda a, b, c: a >> b if b < 32 else 0,
    "shr.s32 %r4, %r1, %r2;": lambda a, b, c: signed(a, 32) >> min(b, 31),
    "min.s32 %r4, %r1, %r2;": lambda a, b, c: min(signed(a, 32), signed(b, 32)),
    "max.s32 %r4, %r1, %r2;": lambda a, b, c: max(signed(a, 32), signed(b, 32)),
    "max.u32 %r4, %r1, %r2;": lambda a, b, c: max(a, b),
    "max.u16x2 %r4, %r1, %r2;": lambda a, b, c: max(a & 65535, b & 65535) | max(a >> 16, b >> 16) << 16,
    "setp.lt.s32 %p1, %r1, %r2; selp.b32 %r4, %r1, %r3, %p1;": lambda a, b, c: (
        a if signed(a, 32) < signed(b, 32) else c
    ),
    "setp.lt.u32 %p1, %r1, %r2; selp.b32 %r4, 1, 0, %p1;": lambda a, b, c: a < b,
    "setp.ge.s32 %p1, %r1, %r2; selp.b32 %r4, 1, 0, %p1;": lambda a, b, c: signed(a, 32) >= signed(b, 32),
    "setp.gt.s32 %p1, %r1, -1; @%p1 mov.b32 %r4, 7;": lambda a, b, c: 7 if signed(a, 32) > -1 else 0,
    "setp.ne.b32 %p1, %r1, %r2; @!%p1 mov.b32 %r4, 7;": lambda a, b, c: 7 if a == b else 0,
    "mov.b32 {%h1, %h2}, %r1; mov.b32 %r4, {%h2, %h1};": lambda a, b, c: a >> 16 | (a & 65535) << 16,
    "mov.b32 {_, %h2}, %r1; cvt.u32.u16 %r4, %h2;": lambda a, b, c: a >> 16,
    "cvt.u16.u32 %h2, %r1; cvt.s32.s16 %r4, %h2;": lambda a, b, c: signed(a, 16),
}


@pytest.mark.parametrize("instruction", INTEGER)
def test_integers_of_32_bits(instruction):
    got = each_lane(instruction, WORDS, OTHERS, WORDS[::-1])["r"]
    for i in range(32):
        assert int(got[i]) == INTEGER[instruction](WORDS[i], OTHERS[i], WORDS[::-1][i]) % 2**32


LONG = {
    "add.s64 %d14, %d11, %d12;": lambda a, b, c: a + b,
    "sub.s64 %d14, %d11, %d12;": lambda a, b, c: a - b,
    "mul.lo.s64 %d14, %d11, %d12;": lambda a, b, c: a * b,
    "mad.lo.s64 %d14, %d11, %d12, %d13;": lambda a, b, c: a * b + c,
    "neg.s64 %d14, %d11;": lambda a, b, c: -a,
    "or.b64 %d14, %d11, %d12;": lambda a, b, c: a | b,
    "shl.b64 %d14, %d11, 3;": lambda a, b, c: a << 3,
    "mul.wide.s32 %d14, %r1, %r2;": lambda a, b, c: signed(a, 32) * signed(b, 32),
    "mul.wide.u32 %d14, %r1, %r2;": lambda a, b, c: (a % 2**32) * (b % 2**32),
    "mad.wide.s32 %d14, %r1, -6, %d13;": lambda a, b, c: signed(a, 32) * -6 + c,
    "mad.wide.u32 %d14, %r1, 6, %d13;": lambda a, b, c: (a % 2**32) * 6 + c,
    "cvt.s64.s32 %d14, %r1;": lambda a, b, c: signed(a, 32),
    "cvt.u64.u32 %d14, %r1;": lambda a, b, c: a % 2**32,
    "setp.lt.u64 %p1, %d11, %d12; selp.b64 %d14, %d11, %d12, %p1;": lambda a, b, c: min(a, b),
}


@pytest.mark.parametrize("instruction", LONG)
def test_integers_of_64_bits(instruction):
    others = LONGS[::-1]
    got = each_lane(instruction, LONGS, others, LONGS[7:] + LONGS[:7])["d"]
    for i in range(32):
        assert int(got[i]) == LONG[instruction](LONGS[i], others[i], (LONGS[7:] + LONGS[:7])[i]) % 2**64


SHORT = {
    "max.u16 %h4, %h1, %h2;": lambda a, b: max(a, b),
    "and.b16 %h4, %h1, 255;": lambda a, b: a & 255,
    "or.b16 %h4, %h1, %h2;": lambda a, b: a | b,
    "shl.b16 %h4, %h1, 3;": lambda a, b: a << 3,
    "shr.u16 %h4, %h1, 3;": lambda a, b: a >> 3,
    "setp.eq.b16 %p1, %h1, 0; selp.b16 %h4, 5, %h2, %p1;": lambda a, b: 5 if a == 0 else b,
}


@pytest.mark.parametrize("instruction", SHORT)
def test_integers_of_16_bits(instruction):
    got = each_lane(instruction, WORDS, OTHERS)["h"]
    for i in range(32):
        assert int(got[i]) == SHORT[instruction](WORDS[i] & 65535, OTHERS[i] & 65535) % 2**16
    wide = each_lane("mul.wide.u16 %r4, %h1, %h2;", WORDS, OTHERS)["r"]
    narrow = each_lane("mul.wide.s16 %r4, %h1, %h2;", WORDS, OTHERS)["r"]
    for i in range(32):
        assert int(wide[i]) == (WORDS[i] & 65535) * (OTHERS[i] & 65535)
        assert int(narrow[i]) == signed(WORDS[i], 16) * signed(OTHERS[i], 16) % 2**32


@pytest.mark.parametrize("pos, length", [(0, 5), (4, 4), (28, 8), (31, 1), (5, 0), (0, 32), (40, 3)])
def test_bit_fields(pos, length):
    for kind in ("u", "s"):
        got = each_lane(f"bfe.{kind}32 %r4, %r1, {pos}, {length};", WORDS)["r"]
        for i, a in enumerate(WORDS):
            sign = 0 if kind == "u" or length == 0 else a >> min(pos + length - 1, 31) & 1
            bits = [(a >> (pos + k) & 1) if k < length and pos + k <= 31 else sign for k in range(32)]
            assert int(got[i]) == sum(bit << k for k, bit in enumerate(bits))


FLOATS = [0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, 1e-40, -1e-42, 3.4e38, 65504.0, 65520.0, 1e-8, 2.0**-25]
FLOATS += [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 6e-8] + [rng.uniform(-4, 4) for _ in range(13)]
FIRST = [float_bits(x) for x in FLOATS]
SECOND = [float_bits(x) for x in FLOATS[::-1]]
CANONICAL = 0x7FFFFFFF


def same_float(got, want):
    return int(got) == CANONICAL if math.isnan(want) else int(got) == float_bits(want)


def f32(x):
    with np.errstate(all="ignore"):
        return float(np.float32(x))


ARITHMETIC = {
    "add.f32 %r4, %r1, %r2;": lambda a, b: f32(np.float64(a) + np.float64(b)),
    "sub.f32 %r4, %r1, %r2;": lambda a, b: f32(np.float64(a) - np.float64(b)),
    "mul.f32 %r4, %r1, %r2;": lambda a, b: f32(np.float64(a) * np.float64(b)),
    "div.full.f32 %r4, %r1, %r2;": lambda a, b: f32(np.float64(a) / np.float64(b)),
    "ex2.approx.f32 %r4, %r1;": lambda a, b: f32(np.exp2(np.float64(a))),
    "tanh.approx.f32 %r4, %r1;": lambda a, b: f32(np.tanh(np.float64(a))),
}


@pytest.mark.parametrize("instruction", ARITHMETIC)
def test_arithmetic(instruction):
    got = each_lane(instruction, FIRST, SECOND)["r"]
    for i in range(32):
        with np.errstate(all="ignore"):
            want = ARITHMETIC[instruction](as_float(FIRST[i]), as_float(SECOND[i]))
        assert same_float(got[i], want), (as_float(FIRST[i]), as_float(SECOND[i]), hex(int(got[i])), want)


def test_fma_rounds_once():
    a = [1 + 2.0**-12] * 16 + [3.0] * 16
    c = [-1.0] * 16 + [math.nan, math.inf, 1e-45, 0.5] * 4
    got = each_lane("fma.rn.f32 %r4, %r1, %r1, %r2;", [float_bits(x) for x in a], [float_bits(x) for x in c])["r"]
    assert all(as_float(x) == 2.0**-11 + 2.0**-24 for x in got[:16])
    assert int(got[16]) == CANONICAL and as_float(got[17]) == math.inf and as_float(got[18]) == 9.0


def test_the_error_of_approximations_is_the_documented_one():
    xs = [float_bits(x) for x in np.linspace(-6, 6, 32)]
    for instruction, bound, exact in (
        ("tanh.approx.f32 %r4, %r1;", 2.0**-11, np.tanh),
        ("ex2.approx.f32 %r4, %r1;", 2.5 * 2.0**-23, np.exp2),
    ):
        body = f"mad.wide.u32 %d2, %r0, 4, %d0; ld.global.b32 %r1, [%d2+0]; {instruction}"
        body += "mad.wide.u32 %d3, %r0, 4, %d1; st.global.b32 [%d3+0], %r4;"
        errors = []
        for seed in range(20):
            out = execute(body, xs, 32, exact=False, seed=seed)
            want = exact(np.array(xs, np.uint32).view(np.float32).astype(np.float64))
            errors.append(np.abs(out.view(np.float32) / want - 1).max())
        assert max(errors) <= bound and max(errors) > bound / 3


def test_comparisons_of_floats():
    for name, want in {
        "eq": lambda a, b: a == b, "lt": lambda a, b: a < b, "ge": lambda a, b: a >= b,
        "num": lambda a, b: not (math.isnan(a) or math.isnan(b)), "nan": lambda a, b: math.isnan(a) or math.isnan(b),
        "ne": lambda a, b: a < b or a > b,
    }.items():  # fmt: skip
        got = each_lane(f"setp.{name}.f32 %p1, %r1, %r2; selp.b32 %r4, 1, 0, %p1;", FIRST, SECOND)["r"]
        assert [int(x) for x in got] == [
            int(want(as_float(a), as_float(b))) for a, b in zip(FIRST, SECOND, strict=True)
        ]


@pytest.mark.parametrize("kind, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_conversions_of_halves(kind, dtype):
    x = torch.tensor(FIRST, dtype=torch.int64).to(torch.int32).view(torch.float32)
    want = [0x7FFF if v.isnan() else int(v.view(torch.int16)) & 0xFFFF for v in x.to(dtype)]
    got = each_lane(f"cvt.rn.{kind}.f32 %h4, %r1;", FIRST)["h"]
    assert [int(v) for v in got] == want
    both = each_lane(f"cvt.rn.{kind}x2.f32 %r4, %r1, %r2;", FIRST, SECOND)["r"]
    for i in range(32):  # the first in the upper half
        assert int(both[i]) == want[i] << 16 | want[31 - i]
    halves = [rng.getrandbits(16) for _ in range(28)] + [0x7C00, 0x7FFF, 0x8001, 0xFFFF]
    back = each_lane(f"cvt.f32.{kind} %r4, %h1;", halves)["r"]
    exact = torch.tensor(halves, dtype=torch.int32).to(torch.int16).view(dtype).float()
    assert all(same_float(b, float(e)) for b, e in zip(back, exact, strict=True))
    product = each_lane(f"mul.{kind} %h4, %h1, %h2;", halves, halves[::-1])["h"]
    h = torch.tensor(halves, dtype=torch.int32).to(torch.int16).view(dtype)
    wanted = (h.double() * h.flip(0).double()).float().to(dtype)  # the product is exact in float32 or nearly
    for i in range(32):
        assert int(product[i]) == (0x7FFF if wanted[i].isnan() else int(wanted[i].view(torch.int16)) & 0xFFFF)
    words = [low | high << 16 for low, high in zip(halves, halves[3:] + halves[:3], strict=True)]
    minus_zeros = "mov.b32 %r9, -2147450880;"
    fused = each_lane(f"{minus_zeros} fma.rn.{kind}x2 %r4, %r1, %r2, %r9;", words, words[::-1])["r"]
    for i in range(32):
        assert int(fused[i]) & 0xFFFF == int(each_lane(f"mul.{kind} %h4, %h1, %h2;", words, words[::-1])["h"][i])


def test_bytes_are_permuted():
    got = each_lane("prmt.b32 %r4, %r1, %r2, 29712;", WORDS, OTHERS)["r"]  # 0x7410
    for i in range(32):
        source = WORDS[i].to_bytes(4, "little") + OTHERS[i].to_bytes(4, "little")
        assert int(got[i]).to_bytes(4, "little") == bytes(source[k] for k in (0, 1, 4, 7))


def test_shuffles():
    lanes = list(range(100, 132))
    got = each_lane("shfl.sync.bfly.b32 %r4, %r1, 4, 31, -1;", lanes)["r"]
    assert [int(v) for v in got] == [100 + (i ^ 4) for i in range(32)]
    index = [rng.randrange(32) for _ in range(32)]
    got = each_lane("shfl.sync.idx.b32 %r4, %r1, %r2, 31, -1;", lanes, index)["r"]
    assert [int(v) for v in got] == [100 + i for i in index]
    got = each_lane("shfl.sync.idx.b32 %r4, %r1, 1, 6175, -1;", lanes)["r"]  # 0x181f: segments of 8
    assert [int(v) for v in got] == [100 + (i // 8 * 8 + 1) for i in range(32)]
    got = each_lane("redux.sync.max.s32 %r4, %r1, -1;", [5, 2**32 - 1, 7])["r"]
    assert {int(v) for v in got} == {7}
