"""Bodies of PTX run by themselves, for the tests of single instructions."""

import struct

import numpy as np

from .machine import Region, Settings, launch
from .ptx import parse

HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
.param .u64 k_param_0,
.param .u64 k_param_1
)
.reqntid %d
{
.reg .pred %%p<9>;
.reg .b16 %%h<99>;
.reg .b32 %%r<99>;
.reg .b64 %%d<99>;
ld.param.b64 %%d0, [k_param_0];
ld.param.b64 %%d1, [k_param_1];
mov.u32 %%r0, %%tid.x;
"""


def execute(body, given, out_words, threads=32, grid=(1, 1, 1), shared=4096, **settings):
    """Runs a body with arrays of 32-bit words: %d0 points to those given, %d1 to the result, %r0 is the thread."""
    given = np.asarray(given, np.uint32).ravel().copy()
    out = np.zeros(out_words, np.uint32)
    kernel = parse(HEAD % threads + body + "\nret;\n}\n")
    params = [Region(a.ctypes.data, a.nbytes, 4) for a in (given, out)]
    launch(kernel, grid, params, shared, Settings(**{"exact": True, **settings}))
    return out


def each_lane(instruction, a, b=(), c=(), wide=1):
    """An instruction on %r1, %r2, %r3 (or %d11, %d12, %d13, %h1...) lane by lane; results from %r4 (or %d14, %h4)."""
    rows = [np.resize(np.asarray(v, np.uint64), 32) for v in (a, b, c) if len(v)]
    words = np.stack([np.stack([r & 0xFFFFFFFF, r >> np.uint64(32)], 1) for r in rows]).astype(np.uint32)
    body = "mad.wide.u32 %d2, %r0, 8, %d0;\n"
    for i in range(len(rows)):
        body += f"ld.global.v2.b32 {{%r{i + 1}, %r{i + 51}}}, [%d2+{i * 256}];\n"
        body += f"mov.b64 %d{i + 11}, {{%r{i + 1}, %r{i + 51}}};\nmov.b32 {{%h{i + 1}, _}}, %r{i + 1};\n"
    body += "mov.b32 %r4, 0; mov.b32 %r54, 0; mov.b64 %d14, 0; mov.b16 %h4, 0;\n"
    body += instruction + "\nmad.wide.u32 %d3, %r0, 16, %d1;\nmov.b64 {%r61, %r62}, %d14;\n"
    body += "cvt.u32.u16 %r63, %h4;\nst.global.v4.b32 [%d3+0], {%r4, %r61, %r62, %r63};\n"
    out = execute(body, words, 128).reshape(32, 4).astype(np.uint64)
    return {"r": out[:, 0], "d": out[:, 1] | out[:, 2] << np.uint64(32), "h": out[:, 3]}


def signed(x, bits):
    x = int(x) & (2**bits - 1)
    return x - 2**bits if x >> (bits - 1) else x


def float_bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def as_float(x):
    return struct.unpack("<f", struct.pack("<I", int(x)))[0]
