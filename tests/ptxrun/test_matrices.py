"""Matrices between shared memory and registers, and their products, element by element from the ISA's figures."""

import numpy as np
import pytest
import torch
from ptxrun import build
from ptxrun.bodies import as_float, execute, float_bits

pytestmark = pytest.mark.skipif(build.UNAVAILABLE is not None, reason=build.UNAVAILABLE or "")

LOAD = "mad.wide.u32 %d2, %r0, 4, %d0;\n"


def shared_words(n):
    """Copies n words a thread into shared memory."""
    body = "shl.b32 %r90, %r0, 2; add.s32 %r90, %r90, global_smem;\n" + LOAD
    for i in range(n):
        body += f"ld.global.b32 %r91, [%d2+{128 * i}]; st.shared.b32 [%r90+{128 * i}], %r91;\n"
    return body + "bar.sync 0;\n"


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix(n, trans):
    values = np.arange(n * 64, dtype=np.uint16)
    perm = np.random.default_rng(0).permutation(8 * n)  # where each row lies
    memory = values.reshape(8 * n, 8)[np.argsort(perm)]
    words = memory.copy().view(np.uint32).ravel()
    table = np.resize(perm, 32).astype(np.uint32) * 16
    body = shared_words(n) + LOAD + f"ld.global.b32 %r1, [%d2+{128 * n}]; add.s32 %r1, %r1, global_smem;\n"
    registers = ", ".join(f"%r{10 + i}" for i in range(n))
    body += f"ldmatrix.sync.aligned.m8n8.x{n}{'.trans' if trans else ''}.shared.b16 {{{registers}}}, [%r1];\n"
    body += "mad.wide.u32 %d3, %r0, 4, %d1;\n"
    body += "".join(f"st.global.b32 [%d3+{128 * i}], %r{10 + i};\n" for i in range(n))
    out = execute(body, np.concatenate([words, table]), 32 * n).reshape(n, 32)
    for i in range(n):
        matrix = values.reshape(n, 8, 8)[i]
        for lane in range(32):
            row, column = lane // 4, 2 * (lane % 4)
            low, high = (matrix[column, row], matrix[column + 1, row]) if trans else matrix[row, column : column + 2]
            assert out[i, lane] == int(low) | int(high) << 16


def test_stmatrix_is_the_inverse_of_ldmatrix():
    words = np.arange(128, dtype=np.uint32) * 7919
    body = LOAD + "".join(f"ld.global.b32 %r{10 + i}, [%d2+{128 * i}];\n" for i in range(4))
    body += "shl.b32 %r1, %r0, 4; add.s32 %r1, %r1, global_smem;\n"
    body += "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r1], {%r10, %r11, %r12, %r13};\nbar.warp.sync -1;\n"
    body += "shl.b32 %r2, %r0, 2; add.s32 %r2, %r2, global_smem; mad.wide.u32 %d3, %r0, 4, %d1;\n"
    body += "".join(f"ld.shared.b32 %r3, [%r2+{128 * i}]; st.global.b32 [%d3+{128 * i}], %r3;\n" for i in range(4))
    assert np.array_equal(execute(body, words, 128), words)  # row r of matrix i is thread 4r..4r+3's, in order


def mma_case(kind, K, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(16, K, generator=g), torch.randn(K, 8, generator=g), torch.randn(16, 8, generator=g)
    if kind == "tf32":
        a, b = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (a, b))
        return a, b, c, [t.view(torch.int32).numpy().astype(np.uint32) for t in (a, b)]
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    a, b = a.to(dtype), b.to(dtype)
    return a, b, c, [t.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) for t in (a, b)]


def product(kind, K):
    """%r10 to %r13 times %r14 and %r15, added to %r16 to %r19, as the result."""
    body = f"mma.sync.aligned.m16n8k{K}.row.col.f32.{kind}.{kind}.f32 {{%r20, %r21, %r22, %r23}}, "
    body += "{%r10, %r11, %r12, %r13}, {%r14, %r15}, {%r16, %r17, %r18, %r19};\nmad.wide.u32 %d3, %r0, 4, %d1;\n"
    return body + "".join(f"st.global.b32 [%d3+{128 * i}], %r{20 + i};\n" for i in range(4))


@pytest.mark.parametrize("kind, K", [("f16", 16), ("bf16", 16), ("tf32", 8)])
def test_mma(kind, K):
    a, b, c, (ab, bb) = mma_case(kind, K)
    words = np.zeros((10, 32), np.uint32)
    for lane in range(32):
        group, member = lane >> 2, lane % 4
        for i in range(4):
            row = group if i % 2 == 0 else group + 8
            if kind == "tf32":
                words[i, lane] = ab[row, member + (4 if i >= 2 else 0)]
            else:
                k = member * 2 + (8 if i >= 2 else 0)
                words[i, lane] = ab[row, k] | ab[row, k + 1] << 16
        for i in range(2):
            if kind == "tf32":
                words[4 + i, lane] = bb[member + 4 * i, group]
            else:
                k = member * 2 + 8 * i
                words[4 + i, lane] = bb[k, group] | bb[k + 1, group] << 16
        for i in range(4):
            words[6 + i, lane] = float_bits(float(c[group + (8 if i >= 2 else 0), member * 2 + (i & 1)]))
    body = LOAD + "".join(f"ld.global.b32 %r{10 + i}, [%d2+{128 * i}];\n" for i in range(10))
    body += product(kind, K)
    out = execute(body, words, 128, round_to_zero=False).reshape(4, 32)
    want = (a.double() @ b.double() + c.double()).float()
    for lane in range(32):
        for i in range(4):
            row, column = lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)
            assert as_float(out[i, lane]) == float(want[row, column])


def test_tf32_ignores_low_bits():
    *_, (ab, bb) = mma_case("tf32", 8)
    assert (ab & 0x1FFF == 0).all()
    rnd = np.random.default_rng(0).integers(0, 0x2000, (6, 32), dtype=np.uint32)
    body = LOAD + "".join(f"ld.global.b32 %r{10 + i}, [%d2+{128 * i}];\n" for i in range(6))
    body += "mov.b32 %r9, 0;\nmma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r20,%r21,%r22,%r23}, {%r10,%r11,%r12,%r13}, {%r14,%r15}, {%r9,%r9,%r9,%r9};\n"  # noqa: E501
    body += "mad.wide.u32 %d3, %r0, 4, %d1;\n" + "".join(
        f"st.global.b32 [%d3+{128 * i}], %r{20 + i};\n" for i in range(4)
    )
    words = np.concatenate([np.resize(ab.ravel(), 128), np.resize(bb.ravel(), 64)]).reshape(6, 32)
    assert np.array_equal(execute(body, words, 128), execute(body, words | rnd, 128))
