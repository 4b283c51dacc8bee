"""How programs that share a tile exchange slices of the state: two protocols with one interface.

Slot i of the exchange buffer holds the data that all programs of a group need for step i; each writes its slice of slot
i + 1 once, and no slot is reused in a launch. Before a step a program calls `await_group`, then `receive` for each tile
of the slot; after it, `store` for its slice and `signal`.

EXCHANGE = "data": **the data is the flag.** Before the launch every slot is filled with the bits 0xFF. No value written
to it has these bits: arithmetic and conversions only make the NaN 0x7FFF..., which also replaces the caller's NaNs.
`receive` loads until no element is the filling, the largest unsigned number. This needs no fence and no counter, only
one trip through memory. Loads and stores are 32-bit words, relaxed at the scope of the GPU or wider (in PTX's memory
model volatile loads are relaxed at system scope), so a load concurrent with a store is not a data race.

EXCHANGE = "counter": each program adds one to the group's counter after writing (release), and waits until all have
(acquire). This takes another trip, but nothing has to be filled or compared, and the compiler may prefetch loads.

With both, either all programs of a group run at the same time, or each launch runs one step, as in Triton's
interpreter, which runs programs one after another.

No launch hangs: `patience` counts the polls that a program has left. At 0 the program stops waiting and takes the
missing data as NaN, which spreads to all later steps of its rows. In the end it `report`s this to the host, whose next
call raises.
"""

import triton
import triton.language as tl

from .activations import rounded

INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)
LINE: tl.constexpr = tl.constexpr(32)  # int32 of a counter: a cache line each


def _store_word(make: str) -> tl.constexpr:
    """PTX that stores one word, made of $2 and $3, to address $1 if $4; tl.store has no such order."""
    begin = "{ .reg .pred wanted; .reg .b32 word; setp.ne.s32 wanted, $4, 0; "
    return tl.constexpr(begin + make + " @wanted st.relaxed.gpu.global.b32 [$1], word; mov.b32 $0, 0; }")


STORE_FLOAT32: tl.constexpr = _store_word("mov.b32 word, $2;")
STORE_FLOAT16: tl.constexpr = _store_word("cvt.rn.f16x2.f32 word, $3, $2;")
STORE_BFLOAT16: tl.constexpr = _store_word("cvt.rn.bf16x2.f32 word, $3, $2;")


@triton.jit
def await_group(counter_ptr, step, patience, PROGRAMS: tl.constexpr, EXCHANGE: tl.constexpr):
    """With "counter", waits until all programs of the group have signalled each of `step` steps, or patience ends.

    Returns the patience left, which then differs between threads.
    """
    if EXCHANGE == "counter":
        target = step * PROGRAMS
        if INTERPRETED:
            while (tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target) & (patience > 0):
                patience -= 1
        else:  # every thread acquires for itself, without a barrier; Triton's atomics take two barriers per poll
            patience = tl.inline_asm_elementwise(
                """
                {
                    .reg .pred waiting, patient;
                    .reg .b32 count;
                    mov.b32 $0, $3;
                again:
                    ld.acquire.gpu.global.s32 count, [$1];
                    setp.lt.s32 waiting, count, $2;
                    setp.gt.s32 patient, $0, 0;
                    and.pred waiting, waiting, patient;
                    @waiting add.s32 $0, $0, -1;
                    @waiting bra again;
                }
                """,
                "=&r,l,r,r",
                [counter_ptr.to(tl.int64), target, patience],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
    return patience


@triton.jit
def receive(ptrs, mask, patience, dtype: tl.constexpr, EXCHANGE: tl.constexpr, UPCAST: tl.constexpr):
    """Loads from ptrs (unsigned integers as wide as dtype) an operand of a product; also returns the patience left.

    If patience ends, the filling remains, which is a NaN.
    """
    if EXCHANGE == "counter":
        bits = tl.load(ptrs, mask=mask, other=0, cache_modifier=".cg")
    else:
        filling: tl.constexpr = 2**ptrs.dtype.element_ty.primitive_bitwidth - 1
        bits = tl.load(ptrs, mask=mask, other=0, volatile=True)
        while (tl.max(bits) == filling) & (patience > 0):
            bits = tl.load(ptrs, mask=mask, other=0, volatile=True)
            patience -= 1
    value = bits.to(dtype, bitcast=True)
    if UPCAST:
        value = value.to(tl.float32)
    return value, patience


@triton.jit
def nan_without(patience):
    """A term for a step's sums: 0, or NaN if waiting for the counter was given up and the data is undefined."""
    return tl.where(patience > 0, 0.0, float("nan"))


@triton.jit
def store(ptrs, value, mask, dtype: tl.constexpr, EXCHANGE: tl.constexpr, UPCAST: tl.constexpr):
    """Stores float32 value (rows, columns), rounded to dtype, to ptrs, contiguous along a row; mask (rows, 1)."""
    if EXCHANGE == "counter" or INTERPRETED:
        tl.store(ptrs, rounded(value, dtype, UPCAST).to(ptrs.dtype.element_ty, bitcast=True), mask=mask)
    elif dtype == tl.float32:
        _store_words(ptrs.to(tl.int64), value, value, mask, STORE_FLOAT32)
    else:  # neighbours in one word
        shape: tl.constexpr = [value.shape[0], value.shape[1] // 2, 2]
        low, high = tl.split(value.reshape(shape))
        even, _ = tl.split(ptrs.to(tl.int64).reshape(shape))
        _store_words(even, low, high, mask, STORE_FLOAT16 if dtype == tl.float16 else STORE_BFLOAT16)


@triton.jit
def _store_words(address, low, high, mask, ASM: tl.constexpr):
    arguments = [address, low, high, mask.to(tl.int32)]
    tl.inline_asm_elementwise(ASM, "=r,l,f,f,r", arguments, dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def signal(counter_ptr, EXCHANGE: tl.constexpr):
    """Tells the group that this program has stored its slice."""
    if EXCHANGE == "counter":
        tl.debug_barrier()
        tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")


@triton.jit
def report(failed_ptr, patience):
    """Sets a flag in host memory if a thread's patience has ended."""
    if INTERPRETED:
        tl.store(failed_ptr, 1, mask=patience <= 0)
    else:
        tl.inline_asm_elementwise(
            """
            {
                .reg .pred lost;
                .reg .b32 word;
                mov.b32 word, 1;
                setp.le.s32 lost, $2, 0;
                @lost st.relaxed.sys.global.b32 [$1], word;
                mov.b32 $0, 0;
            }
            """,
            "=r,l,r",
            [failed_ptr.to(tl.int64), patience],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
