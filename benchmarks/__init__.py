"""GRU implementations side by side: `python -m benchmarks.run`, then `python -m benchmarks.report`."""
