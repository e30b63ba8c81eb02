"""One script for each question, run as `python -m benchmarks.NAME`; results are JSON files in `results/`."""
