"""What deltawire costs: `python -m benchmarks --help`."""
