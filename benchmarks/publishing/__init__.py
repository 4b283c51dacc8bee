"""Publishes measurements: `python -m benchmarks.publishing.report`."""
