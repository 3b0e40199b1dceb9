"""Benchmarks of the harness itself: `make overhead`, or each alone, `python -m tests.bench.overhead`."""
