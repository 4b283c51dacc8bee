"""Runs the PTX that Triton compiles, on a CPU: see the README beside this folder."""
