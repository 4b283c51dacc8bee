"""A layer in C++ for CPUs: the forward pass and the single step, in float32.

layer.py      the contract, and how the library is called
library.py    finds and loads the library, or says why it cannot
gru.h         the C ABI
forward.cpp   the recurrence, with the four equations
step.cpp      a single step on unpacked weights
vector.h      vectors, sigmoid and tanh
team.h        threads; library.cpp: those and the instruction set, chosen when the library is loaded
"""
