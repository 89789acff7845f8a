"""Benchmarks: layers of real networks, timed beside the frameworks and beside the machine's own limits."""
