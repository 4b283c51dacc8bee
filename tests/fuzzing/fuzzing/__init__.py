"""Random calls that must give right results or clear errors; `python -m fuzzing` runs them."""
