"""tvmconv: Keras' Conv3DTranspose, compiled ahead of time into a small shared library.

Importing this package loads no other: every name below is found at its first use. None is the name
of a module of the package, which would take its place once imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmconv import errors, layers
    from tvmconv.compiler import compile
    from tvmconv.measure import bench
    from tvmconv.runtime.layer import Conv3DTranspose
    from tvmconv.runtime.library import load
    from tvmconv.tuning.run import tune
    from tvmconv.verification import verify
    from tvmconv.weights import from_keras

    Convolution3DTranspose = Conv3DTranspose

__version__ = "0.1.0"  # pyproject.toml reads it from here

__all__ = [
    "Conv3DTranspose",
    "Convolution3DTranspose",
    "__version__",
    "bench",
    "compile",
    "errors",
    "from_keras",
    "layers",
    "load",
    "tune",
    "verify",
]

#: Name -> (module, attribute).
_HOMES = {
    "Conv3DTranspose": ("tvmconv.runtime.layer", "Conv3DTranspose"),
    "Convolution3DTranspose": ("tvmconv.runtime.layer", "Conv3DTranspose"),
    "bench": ("tvmconv.measure", "bench"),
    "compile": ("tvmconv.compiler", "compile"),
    "from_keras": ("tvmconv.weights", "from_keras"),
    "load": ("tvmconv.runtime.library", "load"),
    "tune": ("tvmconv.tuning.run", "tune"),
    "verify": ("tvmconv.verification", "verify"),
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "layers"):
        return import_module(f"tvmconv.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'tvmconv' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
