"""Random calls, and what they must not do; `python -m fuzzing` runs them."""
