"""A layer from Triton kernels: the recurrent weights stay on chip for a whole chunk of time.

layer.py        the contract: products, recurrences and gradients, chunk by chunk
launch.py       operands, flags and grids of a layer's recurrences
forward.py      the forward recurrence: one program has all hidden units, or a group of programs shares them
backward.py     the backward recurrence, split in the same ways
exchange.py     how those programs exchange slices of the state: two protocols
step.py         a single step in one launch
derivatives.py  the parts of backward that are parallel over steps
noise.py        the masks of recurrent dropout and zoneout
flags.py        lengths, masks and resets as one byte per step
activations.py  sigmoid, tanh and rounding
plan.py         tiles, warps and splits for a hidden size, dtype and device, from plans.json
"""
