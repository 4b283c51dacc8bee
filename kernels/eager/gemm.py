"""Matrix products with a weight that is used many times, as a recurrence uses it: once a step.

PyTorch sends float32 products on CPU to MKL or whichever BLAS it was built with. oneDNN, which every Linux build of
PyTorch also carries, has a fixed cost of some 10 us a call and then is faster: with AVX-512 (AMD Zen 5, two threads)
0.99 to 3.1 times as fast from M * N * K of 2^20 on, with AVX2 (Zen 3) 0.99 to 1.2 times from 2^23 on, the weight being
laid out once for all calls. Below that, and for other dtypes and devices, the plain product is used. `python -m
benchmarks.tuning.gemm` measures the crossing; its rows are in benchmarks/results/gemm.

For every shape it has seen, oneDNN keeps code and scratch memory (0.7 MB at N = 768, K = 256, and 5 MB at N = 3072,
K = 1024), so that lengths or batch sizes that change would fill memory without end. Therefore only row counts that are
powers of two go there: a few for any weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

ONEDNN_MIN_WORK = 2**20 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2**23  # M * N * K


def _prefers_onednn(rows: int, work: int, like: Tensor) -> bool:
    """Whether a product over so many rows, of so much work M * N * K, goes to oneDNN; `like` is an operand."""
    return bool(
        like.device.type == "cpu"
        and like.dtype is torch.float32
        and rows & (rows - 1) == 0
        and work >= ONEDNN_MIN_WORK
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


class Weight:
    """A weight w (N, K), any strides, prepared for products with `rows` rows at a time; other numbers work too."""

    def __init__(self, w: Tensor, rows: int):
        self.w_t, self.rows = w.t(), rows
        self.onednn = _prefers_onednn(rows, rows * w.numel(), w)
        if self.onednn:
            self.w = torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), rows)

    def apply(self, x: Tensor, b: Tensor | None, out: Tensor | None = None) -> Tensor:
        """x @ w.T + b for x (M, K) and b (N,) or None; in the memory of out where it has M rows and that is cheaper."""
        if self.onednn and len(x) == self.rows:
            return torch.ops.mkldnn._linear_pointwise(x, self.w, b, "none", [], "")
        if out is not None and len(out) != len(x):
            out = None
        return torch.mm(x, self.w_t, out=out) if b is None else torch.addmm(b, x, self.w_t, out=out)

    def apply_add(self, x: Tensor, total: Tensor) -> Tensor:
        """total + x @ w.T for total (M, N), which is overwritten or left to die."""
        if self.onednn and len(x) == self.rows:
            return torch.ops.mkldnn._linear_pointwise.binary(x, total, self.w, None, "add")
        return total.addmm_(x, self.w_t)


def add_outer(total_t: Tensor, dg: Tensor, x: Tensor) -> None:
    """total_t (K, N) += x.T @ dg: the gradient of a weight, transposed, from dg (M, N) and x (M, K)."""
    if _prefers_onednn(len(dg), total_t.numel() * len(dg), dg):
        # oneDNN reads dg.T in place as its weight; as the other operand it would be copied.
        total_t += torch.ops.mkldnn._linear_pointwise(x.t().contiguous(), dg.t(), None, "none", [], "")
    else:
        total_t.addmm_(x.t(), dg)
