"""Measures: each command writes CSV files of rows, `benchmarks.results.Row`, into a folder."""
