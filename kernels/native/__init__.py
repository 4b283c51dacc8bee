"""A layer in C++ for CPUs: forward, backward and the single step, in float32 and float64.

layer.py      the contract; float16 and bfloat16 are computed in float32
call.py       how the library is called; packed.py: weights that stay packed between calls
library.py    finds and loads the library, or says why it cannot; sources.py: which sources it was built from
gru.h         the C ABI
cell.h        one direction's weights, packed, and the four equations: read this first
forward.cpp   the recurrence
backward.cpp  backpropagation through time, with gate_gradients.h: their products; weight_gradients.h: sums over rows
step.cpp      a single step on weights as they lie in memory
quantised.cpp inference on int8 and bfloat16 weights (quantised.h, quantised.py)
segments.cpp  lengths, masks and resets as segments of rows (segments.py)
sequence.h    the order of steps in a call, and the division of work among threads
products.h    products of rows with packed weights, in registers
noise.h       the masks of recurrent dropout and zoneout
norm.h        layer normalisation
activations.h those that a layer can have
vector.h      vectors, sigmoid and tanh
team.h        threads; library.cpp: those and the instruction set, chosen when the library is loaded

Besides x and y, a layer keeps the derivatives of as many steps as fit in 32 MiB for backward (`layer.KEPT_BYTES`). The
others are recomputed, which takes a third longer and gives the same bits, but not in float16 and bfloat16, where it
starts from rounded states.
"""
