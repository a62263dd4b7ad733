"""What deltawire costs: `python -m benchmarks core` and `python -m benchmarks linear`."""
