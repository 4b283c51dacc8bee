"""Tunes and checks the kernels themselves: their launch table, their machine code, their choice of products."""
