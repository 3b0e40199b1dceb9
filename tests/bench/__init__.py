"""Benchmarks of the harness itself: `make overhead`, or each by its name, `python -m tests.bench.overhead`."""
