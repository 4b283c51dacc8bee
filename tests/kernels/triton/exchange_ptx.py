"""The accesses to global memory that `kernels/triton/exchange.py` compiles to, for test_compile.py.

Prints, as JSON, those of a kernel that passes a tile on by the protocol "data", then by "counter".
"""

import json
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from grucore.kernels.triton.exchange import receive, store


@triton.jit
def pass_on(slots_ptr, B, patience, DTYPE: tl.constexpr, EXCHANGE: tl.constexpr):
    rows, columns = tl.arange(0, 16)[:, None], tl.arange(0, 64)[None, :]
    mask = rows < B
    ptrs = slots_ptr + rows * 64 + columns
    value, _ = receive(ptrs, mask, patience, DTYPE, EXCHANGE, False)
    store(ptrs + B * 64, value.to(tl.float32), mask, DTYPE, EXCHANGE, False)


dtype = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[sys.argv[1]]
accesses = []
for exchange in ("data", "counter"):
    signature = {"slots_ptr": f"*u{dtype.primitive_bitwidth}", "B": "i32", "patience": "i32"} | dict.fromkeys(
        ("DTYPE", "EXCHANGE"), "constexpr"
    )
    constants = {"DTYPE": dtype, "EXCHANGE": exchange}
    source = ASTSource(fn=pass_on, signature=signature, constexprs=constants, attrs={(0,): [["tt.divisibility", 16]]})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    accesses.append(re.findall(r"\b(?:ld|st)[.\w]*\.global[.\w]*", ptx))
print(json.dumps(accesses))
