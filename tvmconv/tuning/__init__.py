"""Tuning: search the space of the schedule rules on the processor itself, and keep what it finds.

``records`` is what lasts: one JSON line for each candidate that was tried. It loads no TVM, so that
a compiled layer is found in the cache without it.
"""
