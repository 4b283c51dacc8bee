"""A layer from PyTorch operators: any device and floating dtype.

layer.py      the contract: direction by direction, on the steps that are not padding
bptt.py       the recurrence and its hand-written backpropagation through time
packing.py    lengths, masks and resets as an index of the steps that are not padding
schedule.py   which rows each step of a packed or dense sequence reads, and chunks of time
"""
