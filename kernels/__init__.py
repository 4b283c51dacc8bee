"""The GRU recurrence itself, one concept a file. Installed as `grucore.kernels`.

    reference.py   the four equations in plain PyTorch: read this first; every other file computes the same thing

    unfused.py     a layer from PyTorch operators, any device: what runs on CPU
    bptt.py        its forward and hand-written backward through time, on the steps that are real
    packing.py     lengths, masks and resets as an index of the real steps
    schedule.py    which rows each step of a packed or dense sequence reads, and chunks of time
    gemm.py        matrix products with a weight that is used many times

    fused.py       a layer from Triton kernels: the recurrent weights stay on chip for a whole chunk of time
    forward.py     the forward recurrence, a program having all hidden units
    backward.py    the backward recurrence, likewise
    split.py       both with the hidden units split across programs, weights on chip or streamed from the L2 cache
    exchange.py    how those programs hand one another their parts of a step: two protocols
    step.py        a single step in one launch
    derivatives.py what backward computes for all steps at once
    flags.py       lengths, masks and resets as one byte a step
    activations.py sigmoid, tanh and rounding in Triton
    plan.py        tiles, warps and splits for a hidden size, dtype and device, from plans.json

The contract that `unfused.py` and `fused.py` keep, for one layer and its D directions:

    y, h_n = gru_forward(x, h0, w_ih, w_hh, b_ih, b_hh, real, start, reset_after, precision)

    x      (T, B, I)     input, time-major, any strides
    h0     (D, B, H)     initial states; the second direction runs from the end
    w_ih   (D, 3H, I)    input weights, gates in the order r, z, n
    w_hh   (D, 3H, H)    hidden weights
    b_ih   (D, 3H)       input biases, or None
    b_hh   (D, 3H)       hidden biases, or None (both or neither)
    real   (T, B)        bool or None: False holds the state, outputs 0, passes no gradient, whatever x holds there
    start  (T, B)        bool or None: True cuts the row's sequence before step t; both sides begin from h0
    y      (T, B, D*H)   the states after each real step, 0 elsewhere
    h_n    (D, B, H)     the state after each row's last real step in the direction of travel; h0 where there is none

`gru_backward` takes the gradients of y and h_n (either may be None) with x, h0, y and the weights, and nothing else:
gates are computed again. precision is "ieee" or "tf32", for float32 products on a GPU. Nothing here imports `grucore`.
"""
