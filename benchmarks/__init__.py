"""Benchmarks: layers of real networks, timed beside frameworks and the machine's limits."""
