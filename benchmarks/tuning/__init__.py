"""Tunes and checks the kernels: their launch table, their machine code, their choice of products."""
