"""The GRU recurrence itself, one concept a file. Installed as `grucore.kernels`.

    reference.py   the four equations in plain PyTorch: read this first; every other file computes the same thing
    bptt.py        forward and hand-written backward through time from PyTorch operators: what training on CPU runs
    packing.py     lengths, masks and resets as an index: only real steps are computed
    schedule.py    which rows each step of a packed or dense sequence reads, and chunks of time
    gemm.py        matrix products with a weight that is used many times

The contract every implementation of one layer in one direction keeps:

    y, h_n = gru_layer(x, h0, w_ih, w_hh, b_ih, b_hh, real, start, reverse, reset_after)

    x      (T, B, I)   input, time-major, any strides
    h0     (B, H)      initial state
    w_ih   (3H, I)     input weights, gates in the order r, z, n
    w_hh   (3H, H)     hidden weights
    b_ih   (3H,)       input bias, or None
    b_hh   (3H,)       hidden bias, or None (both or neither)
    real   (T, B)      bool or None: False holds the state, outputs 0, passes no gradient, whatever x holds there
    start  (T, B)      bool or None: True cuts the row's sequence before step t; both sides begin from h0
    y      (T, B, H)   the state after each real step, 0 elsewhere
    h_n    (B, H)      the state after each row's last real step in the direction of travel; h0 where there is none

Gradients of x, h0 and the four parameters need x, h0, y and the flags, nothing else: gates are computed again.
Nothing here imports `grucore`.
"""
