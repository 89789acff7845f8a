"""From object code to a linked library: C run time, header, linker, object check."""

from tvmconv.codegen.link import link
from tvmconv.codegen.parts import KernelShape, Parts, Variant

__all__ = ["KernelShape", "Parts", "Variant", "link"]
