"""Runs the PTX that Triton compiles on a CPU: see the README next to this folder."""
