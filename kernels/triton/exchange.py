"""How the programs of a group hand one another their parts of a step: two protocols behind three functions.

Slot i of the exchange buffer holds what all programs of a group need for step i; each writes its part of slot i + 1
once, and no slot is used twice in a launch. Before a step a program calls `await_group`, then `receive` for each tile
of the slot; after it, `store` for its part and `signal`.

EXCHANGE = "data": **the data is the flag.** A slot is filled with the bits 0xFF before the launch. No value written to
it has them: arithmetic and conversions make one NaN, 0x7FFF..., and a NaN of the caller's is replaced by it. `receive`
loads until no element is the filling, the largest unsigned number. No fence, no counter, one trip through memory. Both
sides are words of 32 bits, relaxed at the scope of the GPU or wider (volatile loads are, by PTX's memory model, relaxed
at that of the system), so that a load which meets a store is not a data race.

EXCHANGE = "counter": each program adds one to the group's counter after it has written (release), and waits until all
have (acquire). One more trip, but nothing to fill or compare, and loads that the compiler may prefetch.

Either way the programs of a group must all be running; or a launch runs one step, as in Triton's interpreter, which
runs programs one after another.
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
def await_group(counter_ptr, step, PROGRAMS: tl.constexpr, EXCHANGE: tl.constexpr):
    """Returns when all programs of the group have signalled each of `step` steps, where a counter says so."""
    if EXCHANGE == "counter":
        target = step * PROGRAMS
        if INTERPRETED:
            while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target:
                pass
        else:  # every thread acquires for itself, which needs no barrier; Triton's own atomics take two a poll
            tl.inline_asm_elementwise(
                """
                {
                    .reg .pred waiting;
                again:
                    ld.acquire.gpu.global.s32 $0, [$1];
                    setp.lt.s32 waiting, $0, $2;
                    @waiting bra again;
                }
                """,
                "=&r,l,r",
                [counter_ptr.to(tl.int64), target],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def receive(ptrs, mask, dtype: tl.constexpr, EXCHANGE: tl.constexpr, UPCAST: tl.constexpr):
    """What the group left behind ptrs (unsigned integers as wide as dtype), as an operand of a product."""
    if EXCHANGE == "counter":
        bits = tl.load(ptrs, mask=mask, other=0, cache_modifier=".cg")
    else:
        filling: tl.constexpr = 2**ptrs.dtype.element_ty.primitive_bitwidth - 1
        bits = tl.load(ptrs, mask=mask, other=0, volatile=True)
        while tl.max(bits) == filling:
            bits = tl.load(ptrs, mask=mask, other=0, volatile=True)
    value = bits.to(dtype, bitcast=True)
    return value.to(tl.float32) if UPCAST else value


@triton.jit
def store(ptrs, value, mask, dtype: tl.constexpr, EXCHANGE: tl.constexpr, UPCAST: tl.constexpr):
    """Leaves float32 value (rows, columns), rounded to dtype, behind ptrs, which run on along a row; mask (rows, 1)."""
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
    """Tells the group that all of this program's part is stored."""
    if EXCHANGE == "counter":
        tl.debug_barrier()
        tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")
