"""CUDA: from lowered kernels to source text, a fat binary, and what a launcher has to know."""
