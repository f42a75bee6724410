"""Sluicegate beside its peers, in one run on one core; ``python -m benchmarks`` prints ratios. See README.md."""
