"""Compiles every plan of the fused kernels ahead of time, without a GPU, and compares the result with a budget.

    python -m benchmarks.tuning.compile_report --arch 90 [--json FILE]
    python -m benchmarks.tuning.compile_report --arch 90 --record    after a change of the kernels; --arch 80, 100 too
    python -m benchmarks.tuning.compile_report --arch 90 --changed   as the tests do

Prints registers, spilled bytes, shared memory and the instructions of the step loop (per warp, from the machine code).
Exits with 1 if a kernel spills, takes more shared memory than plans.json says, has asynchronous products, reads an
operand from shared memory with conflicts, or has more instructions in its loop than compile_budget.json allows. Spills,
conflicts and instructions (sm_90) are checked only with the Triton version that the budget names (3.4 spills 8 bytes in
three kernels), everything else with every version.

All rows take two or three minutes. compile_passed.json says with which sources they all passed (`--record`); as long as
nothing has changed, `--changed` compiles every twentieth row only, without dropout and zoneout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import grucore
from grucore.kernels.triton.backward import _gru_backward_kernel
from grucore.kernels.triton.forward import _gru_forward_kernel
from grucore.kernels.triton.plan import H100, TABLE, Device, Plan, plan
from grucore.kernels.triton.step import _gru_step_kernel

# A100, H100 and B200: multiprocessors, and bytes of shared memory per block (CUDA programming guide).
DEVICES = {80: Device(80, 108, 166_912), 90: H100, 100: Device(100, 148, 232_448)}
LARGE = 2048  # the hidden size for which a row without an upper limit is compiled
BUDGET = Path(__file__).parent / "compile_budget.json"
PASSED = Path(__file__).parent / "compile_passed.json"  # of each architecture: the sources with which all rows passed
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"  # ptxas, cuobjdump
KERNELS = {
    "forward": _gru_forward_kernel,
    "backward": _gru_backward_kernel,
    "step": _gru_step_kernel,
}
# Products that go on while the program does, of sm_90 and sm_100. Triton leaves the loop with a wgmma in flight whose A
# registers the next iteration writes to (triton-lang/triton#9433): wrong gradients, by 15 % and more, where the product
# is late. No tile of a recurrence is high enough to gain from either: they are refused altogether.
ASYNCHRONOUS = re.compile(r"\b(?:wgmma\.mma_async|tcgen05\.mma)\b")
DTYPES = {"half": ("bf16", "fp16"), "tf32": ("tf32",), "ieee": ("fp32",)}


def arguments(kernel: Any, dtype: str) -> dict[str, str]:
    """Returns the kernel's run-time arguments and their types."""
    element = "fp32" if dtype == "tf32" else dtype
    fixed = {"h_ptr": "*fp32", "dh_ptr": "*fp32", "dh_reset_ptr": "*fp32", "flags_ptr": "*u8", "span_ptr": "*i32"}
    fixed |= {"slots_ptr": "*u32" if element == "fp32" else "*u16", "counters_ptr": "*i32", "failed_ptr": "*i32"}
    fixed |= {"keep_ptr": "*fp32", "zoneout": "fp32"}
    names = [name for name in kernel.arg_names if not name.isupper() or name in ("B", "C")]
    return {name: fixed.get(name, f"*{element}" if name.endswith("_ptr") else "i32") for name in names}


def compiled(kernel: Any, dtype: str, row: dict[str, int], flags: bool, arch: int, noise: str = "") -> dict[str, Any]:
    """Compiles a kernel for one row of the table, with or without noise, and returns its properties."""
    hidden_size = row["max_hidden"] or LARGE
    constants = {"D": 1, "HEADS": 1, "I": hidden_size, "H": hidden_size, "UNITS": hidden_size}
    constants |= {"J": row["block_j"] or row["block_k"]}
    constants |= {name.upper(): row[name] for name in ("block_b", "block_k", "streamed", "exchange", "stages")}
    constants |= {"HAS_FLAGS": flags, "HAS_DY": True, "HAS_BIAS": True, "UPCAST": False}
    constants |= {"HAS_DROPOUT": noise == "dropout", "HAS_ZONEOUT": noise == "zoneout"}
    constants |= {"FAST": dtype != "fp32", "PRECISION": "tf32" if dtype == "tf32" else "ieee"}
    constants = {name: constants[name] for name in constants if name in kernel.arg_names}
    types = arguments(kernel, dtype)
    absent = () if row["exchange"] else ("slots_ptr", "counters_ptr", "failed_ptr")
    absent += () if noise == "dropout" else ("keep_ptr",)
    constants |= {name: None for name in absent if types.pop(name, None)}  # as the launcher passes
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name].startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": row["warps"]} | ({"maxnreg": 255} if row["block_j"] else {})
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        usage = subprocess.run([TOOLS / "cuobjdump", "--dump-resource-usage", cubin], capture_output=True, text=True)
        code = subprocess.run([TOOLS / "cuobjdump", "--dump-sass", cubin], capture_output=True, text=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups()
    return {
        "kernel": row["recurrence"],
        "arch": arch,
        "triton": triton.__version__,
        "dtype": dtype,
        "H": hidden_size,
        "max_batch": row["max_batch"],
        "flags": flags,
        "noise": noise,
        "block_j": row["block_j"] or hidden_size,
        "block_b": row["block_b"],
        "warps": row["warps"],
        "registers": int(registers),
        "spill_bytes": int(stack),  # these kernels use the stack only for spills
        "shared_bytes": binary.metadata.shared,
        "asynchronous_products": len(ASYNCHRONOUS.findall(binary.asm["ptx"])),
        "conflicting_operands": conflicting_operands(binary.asm["ttgir"]),
        "loop_instructions": loop_instructions(code.stdout),
    }


def conflicting_operands(ttgir: str) -> int:
    """Counts right operands of products without tensor cores that are stored in shared memory by columns.

    Neighbouring lanes then read columns that begin in the same bank: conflicts of 8 lanes or more.
    """
    by_columns = set(re.findall(r"^(#\w+) = #ttg\.swizzled_shared<.*order = \[0, 1\]", ttgir, re.MULTILINE))
    read = re.findall(r"ttg\.local_load .*memdesc<[^#]*(#\w+),.*-> .*opIdx = 1, parent = #blocked", ttgir)
    return sum(layout in by_columns for layout in read)


def loop_instructions(sass: str) -> int:
    """Counts the instructions of the widest backward branch in the machine code: the step loop."""
    addresses, widest = [], (0, -1)
    for line in sass.splitlines():
        if found := re.match(r"\s*/\*([0-9a-f]{4,5})\*/", line):
            addresses.append(int(found[1], 16))
            target = re.search(r"BRA.*? (0x[0-9a-f]+)", line)
            if target and int(target[1], 16) < addresses[-1]:
                widest = max(widest, (int(target[1], 16), addresses[-1]), key=lambda span: span[1] - span[0])
    return sum(widest[0] <= address <= widest[1] for address in addresses)


def is_chosen(row: dict[str, Any], device: Device) -> bool:
    """Whether a device uses that row of the table, rather than an earlier one, for the largest sizes it covers."""
    sizes = (row["max_batch"] or 2**20, row["max_hidden"] or LARGE)
    return plan(row["recurrence"], *sizes, 1, row["kind"], device) == Plan(*(row[name] for name in Plan._fields))


def faults(result: dict[str, Any], row: dict[str, int], budget: dict[str, Any]) -> list[str]:
    """Lists the limits that a kernel exceeds."""
    instructions = result["loop_instructions"]
    key = f"{result['kernel']} {result['dtype']} H={result['H']}"
    key += f" B<={result['max_batch']}" if result["max_batch"] else ""
    key += " flags" if result["flags"] else ""
    key += f" {result['noise']}" if result["noise"] else ""
    found = []
    measured = result["triton"] == budget["triton"]
    if measured and result["spill_bytes"]:
        found.append(f"spills {result['spill_bytes']} bytes")
    if result["shared_bytes"] > row["shared_bytes"]:
        found.append(f"takes {result['shared_bytes']} bytes of shared memory, plans.json says {row['shared_bytes']}")
    if result["asynchronous_products"]:
        found.append(f"has {result['asynchronous_products']} asynchronous products (see ASYNCHRONOUS)")
    if measured and result["conflicting_operands"]:
        found.append(f"reads {result['conflicting_operands']} operands with conflicts (see conflicting_operands)")
    allowed = budget["loop_instructions"].get(key, 0)
    if measured and result["arch"] == 90 and instructions > allowed:
        found.append(f"has {instructions} instructions in its loop, the budget is {allowed}")
    return [f"sm_{result['arch']} {key}: {fault}" for fault in found]


def sources() -> str:
    """Returns a digest of what the result depends on: the kernels, their plans, the budget, this file and Triton."""
    kernels = Path(str(sys.modules[plan.__module__].__file__)).parent
    digest = hashlib.sha256(triton.__version__.encode())
    compiled = [file for file in sorted(kernels.glob("*.py")) if "triton.jit" in file.read_text()]
    for file in (*compiled, kernels / "plan.py", kernels / "plans.json", BUDGET, Path(__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Compiles the plans of an architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, choices=list(DEVICES), default=90)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--changed", action="store_true", help="a few kernels only, if all passed with these sources")
    parser.add_argument("--record", action="store_true", help=f"write to {PASSED.name} that all passed")
    options = parser.parse_args()
    budget, passed = json.loads(BUDGET.read_text()), json.loads(PASSED.read_text())
    rows, noises = [row for row in TABLE if is_chosen(row, DEVICES[options.arch])], ["dropout", "zoneout"]
    if options.changed and passed.get(str(options.arch)) == sources():
        rows, noises = rows[::20], []
    results, wrong = [], []
    print(f"grucore {grucore.__version__}, triton {triton.__version__}, sm_{options.arch}")
    print("kernel    dtype   H  batch  flags  noise    warps  registers  spills  shared  loop instructions")
    for row in rows:
        kernel = KERNELS[row["recurrence"]]
        # float16 differs from bfloat16 only in a type: without flags is enough. So is one dtype off sm_90, whose loop
        # the budget is for, and the kernels with flags there, which hold more in registers. Zoneout is its expectation.
        (first, *others), has_flags = DTYPES[row["kind"]], "HAS_FLAGS" in kernel.arg_names
        noisy = [(first, True, noise) for noise in noises if f"HAS_{noise.upper()}" in kernel.arg_names]
        wanted = [(first, False, ""), *[(first, True, "")] * has_flags, *((dtype, False, "") for dtype in others)]
        for dtype, flags, noise in [*(wanted if options.arch == 90 else [(first, has_flags, "")]), *noisy]:
            result = compiled(kernel, dtype, row, flags, options.arch, noise)
            results.append(result)
            wrong += faults(result, row, budget)
            print(
                f"{result['kernel']:9} {dtype} {result['H']:4}  {row['max_batch'] or 'any':>5}"
                f"  {'yes' if flags else 'no':5}  {noise or '-':7}  {row['warps']:5}"
                f"  {result['registers']:9}  {result['spill_bytes']:6}  {result['shared_bytes']:6}"
                f"  {result['loop_instructions']:6}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))
    if options.record:
        PASSED.write_text(json.dumps(passed | {str(options.arch): sources()}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
