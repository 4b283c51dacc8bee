"""A layer from PyTorch operators, for any device and floating dtype.

layer.py      the contract: direction by direction, on the non-padding steps
bptt.py       the recurrence and its hand-written backpropagation through time
schedule.py   the rows that each step of a packed or dense sequence reads, and chunks of time
"""
