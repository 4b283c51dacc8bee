"""Memory and control: copies, late stores, races, bounds, branches and barriers."""

import numpy as np
import pytest
from ptxrun import build
from ptxrun.bodies import execute
from ptxrun.machine import Fault

pytestmark = pytest.mark.skipif(build.UNAVAILABLE is not None, reason=build.UNAVAILABLE or "")

LOAD = "mad.wide.u32 %d2, %r0, 4, %d0;\n"


def test_cp_async_fills_with_zeros_and_comes_late():
    body = LOAD + "shl.b32 %r1, %r0, 4; add.s32 %r1, %r1, global_smem; mad.wide.u32 %d2, %r0, 16, %d0;\n"
    body += "and.b32 %r2, %r0, 1; shl.b32 %r2, %r2, 4;\n"
    body += "cp.async.cg.shared.global [ %r1 + 0 ], [ %d2 + 0 ], 0x10, %r2;\n"
    body += "cp.async.commit_group;\ncp.async.wait_group 0;\nld.shared.v4.b32 {%r5,%r6,%r7,%r8}, [%r1];\n"
    body += "mad.wide.u32 %d3, %r0, 16, %d1;\nst.global.v4.b32 [%d3+0], {%r5,%r6,%r7,%r8};\n"
    words = np.arange(128, dtype=np.uint32) + 1
    want = np.where(np.arange(128) // 4 % 2 == 1, words, 0)
    for seed in range(8):
        assert np.array_equal(execute(body, words, 128, seed=seed), want)
    with pytest.raises(Fault, match=r"read of shared bytes that a cp\.async is to write"):
        execute(body.replace("cp.async.wait_group 0;", ""), words, 128)


def test_divergent_branches_meet_again():
    """A loop with a different number of rounds per lane, then a nested if."""
    body = """
        mov.b32 %r1, 0; mov.b32 %r2, 0;
    $L_loop:
        setp.ge.s32 %p1, %r1, %r0;
        @%p1 bra $L_end;
        add.s32 %r1, %r1, 1;
        add.s32 %r2, %r2, %r1;
        bra.uni $L_loop;
    $L_end:
        and.b32 %r3, %r0, 1;
        setp.eq.b32 %p2, %r3, 0;
        @%p2 bra $L_even;
        add.s32 %r2, %r2, 1000;
        setp.gt.s32 %p3, %r0, 15;
        @%p3 bra $L_join;
        add.s32 %r2, %r2, 10000;
        bra $L_join;
    $L_even:
        add.s32 %r2, %r2, 2000;
    $L_join:
        redux.sync.max.s32 %r4, %r2, -1;
        mad.wide.u32 %d3, %r0, 8, %d1;
        st.global.v2.b32 [%d3+0], {%r2, %r4};
    """
    out = execute(body, [0], 64).reshape(32, 2)
    want = [i * (i + 1) // 2 + (2000 if i % 2 == 0 else 1000 if i > 15 else 11000) for i in range(32)]
    assert out[:, 0].tolist() == want and set(out[:, 1].tolist()) == {max(want)}


def test_barriers_are_for_all_warps():
    body = "setp.lt.s32 %p1, %r0, 32;\n@%p1 bra $L_skip;\nbar.sync 0;\n$L_skip:\n"
    with pytest.raises(Fault, match=r"exit while|left without"):
        execute(body, [0], 1, threads=64)
    body = "setp.lt.s32 %p1, %r0, 16;\n@%p1 bra $L_skip;\nbar.sync 0;\n$L_skip:\n"
    with pytest.raises(Fault, match="without all lanes"):
        execute(body, [0], 1)


def test_unknown_opcodes_stop_the_run():
    with pytest.raises(Fault, match=r"not implemented: popc\.b32"):
        execute("popc.b32 %r1, %r0;", [0], 1)
    with pytest.raises(Fault, match=r"not implemented: add\.sat\.s32"):
        execute("add.sat.s32 %r1, %r0, %r0;", [0], 1)


PASS_ON = """
    mov.u32 %r1, %ctaid.x;
    setp.ne.b32 %p1, %r0, 0;
    @%p1 bra $L_out;
    setp.eq.b32 %p2, %r1, 1;
    @%p2 bra $L_read;
    mov.b32 %r2, 1;
    STORE.b32 [%d1+64], %r2;
    SIGNAL
    mov.b32 %r6, 0;
$L_linger:
    add.s32 %r6, %r6, 1;
    setp.lt.s32 %p4, %r6, 100;
    @%p4 bra $L_linger;
    bra $L_out;
$L_read:
    ld.acquire.gpu.global.s32 %r3, [%d1];
    setp.eq.b32 %p3, %r3, 0;
    @%p3 bra $L_read;
    ld.volatile.global.b32 %r4, [%d1+64];
    st.global.b32 [%d1+128], %r4;
$L_out:
"""
SIGNALS = {
    "release": "atom.global.gpu.release.add.u32 %r5, [%d1], %r2;",
    "relaxed": "atom.global.gpu.relaxed.add.u32 %r5, [%d1], %r2;",
    "store": "st.relaxed.gpu.global.b32 [%d1], %r2;",
}


def passed_on(store, signal, seed):
    """The data that one program reads after another stored it before a signal."""
    body = PASS_ON.replace("STORE", store).replace("SIGNAL", SIGNALS[signal])
    return int(execute(body, [0], 64, grid=(2, 1, 1), seed=seed, resident=2)[32])


def test_stores_become_visible_late_and_in_any_order_but_a_release_orders_them():
    seen = {signal: {passed_on("st.relaxed.gpu.global", signal, s) for s in range(60)} for signal in SIGNALS}
    assert seen == {"release": {1}, "relaxed": {0, 1}, "store": {0, 1}}


def test_a_weak_store_that_nothing_orders_is_a_race():
    assert {passed_on("st.global", "release", s) for s in range(20)} == {1}
    with pytest.raises(Fault, match="race: read after write"):
        for seed in range(20):
            passed_on("st.global", "relaxed", seed)


# For 64 threads: %d2 and %d3 point to a thread's words of what is given and of the result, %r9 to its word of shared
# memory, %r8 to that of another warp's thread, %r7 to that of its neighbour.
SETUP = """
    mad.wide.u32 %d2, %r0, 4, %d0;
    mad.wide.u32 %d3, %r0, 4, %d1;
    shl.b32 %r9, %r0, 2;
    add.s32 %r9, %r9, global_smem;
    xor.b32 %r8, %r9, 128;
    xor.b32 %r7, %r9, 4;
"""
KEEP = "st.shared.b32 [%r9], %r0;"
FAULTS = {  # what is said, and a body that has the fault; buffers are numbered by their addresses
    "read past the end": (r"read of 4 bytes at byte 256 of buffer \d", "ld.global.b32 %r1, [%d2+4];"),
    "write before the beginning": (r"write of 4 bytes at byte -4 of buffer \d", "st.global.b32 [%d3+-4], %r0;"),
    "no pointer": ("in no buffer", "mov.b64 %d4, 64; ld.global.b32 %r1, [%d4];"),
    "misaligned": ("misaligned read of 8 bytes", "ld.global.v2.b32 {%r1, %r2}, [%d2+0];"),
    "past shared memory": (r"at shared byte \d+ of 4096", "ld.shared.b32 %r1, [%r9+4096];"),
    "memory that nobody wrote": ("read of uninitialised global memory", "ld.global.b32 %r1, [%d2];"),
    "shared memory that nobody wrote": ("read of uninitialised shared memory", "ld.shared.b32 %r1, [%r9];"),
    "no barrier before a read": ("shared race", f"{KEEP} ld.shared.b32 %r1, [%r8];"),
    "no barrier before a write": (
        "shared race: write after read",
        f"{KEEP} bar.sync 0; ld.shared.b32 %r1, [%r8]; st.shared.b32 [%r9], %r1;",
    ),
    "no barrier in a warp": ("in a warp: read after write", f"{KEEP} ld.shared.b32 %r1, [%r7];"),
    "written by two warps": ("shared race: write after write", "and.b32 %r6, %r9, -129; st.shared.b32 [%r6], %r0;"),
    "written by two lanes": ("in a warp: write after write", "and.b32 %r6, %r9, -5; st.shared.b32 [%r6], %r0;"),
    "written by two programs": ("race: write after write", "mov.u32 %r1, %ctaid.x; st.global.b32 [%d3], %r1;"),
    "read by one, written by another": ("race: ", "ld.global.b32 %r1, [%d1]; st.global.b32 [%d3], %r0;"),
    "a deadlock": (
        "deadlock",
        "$L_wait: ld.volatile.global.b32 %r1, [%d1]; setp.eq.b32 %p1, %r1, 0; @%p1 bra $L_wait;",
    ),
    "different barriers": (
        "warps wait at different barriers",
        "setp.lt.s32 %p1, %r0, 32; @%p1 bra $L_other; bar.sync 1; $L_other: bar.sync 0;",
    ),
}


@pytest.mark.parametrize("said, body", FAULTS.values(), ids=FAULTS)
def test_faults_are_found(said, body):
    given = [0x7ED57ED5 if "uninitialised global" in said else 0] * 64
    for seed in range(4):
        with pytest.raises(Fault, match=said):
            execute(SETUP + body, given, 64, threads=64, grid=(2, 1, 1), seed=seed, resident=2, most_polls=1000)
