"""Publishes what was measured: `python -m benchmarks.publishing.report`."""
