"""A kernel and its bias as a file holds them, before a layer's config has judged them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tvmconv.weights.tensor import Tensor, pair_problem

__all__ = ["Open", "Pair", "make"]

# Opens the file and yields kernel and, with bias, bias; they are readable inside the context.
Open = Callable[[], AbstractContextManager[Sequence[Tensor]]]


@dataclass(frozen=True)
class Pair:
    """Where a kernel and its bias lie in a file of weights.

    Attributes
    ----------
    path
        HDF5 group path, or ``"kernel"`` in a file of one layer.
    name
        The layer's name where the file tells it.
    tensors
        Kernel and, with bias, bias, for their shapes and dtypes.
    open
        Opens the file again to read them.
    """

    path: str
    name: str | None
    tensors: tuple[Tensor, ...]
    open: Open

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Declared shapes, kernel first."""
        return tuple(tensor.shape for tensor in self.tensors)


def make(path: str, name: str | None, tensors: Sequence[Tensor], opener: Open) -> Pair | None:
    """Make the pair if the shapes could be those of a transposed convolution, else None."""
    if pair_problem(tensors[0], tensors[1] if len(tensors) > 1 else None) is not None:
        return None
    return Pair(path, name, tuple(tensors), opener)
