"""Commands that measure; each writes CSV files of rows, `benchmarks.results.Row`, into a folder."""
