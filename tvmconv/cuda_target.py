"""What ``cuda:sm_80,sm_90`` and ``cuda:native`` stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmconv import cuda_devices, targets
from tvmconv.errors import ConfigError, TargetError
from tvmconv.targets import CpuTarget

if TYPE_CHECKING:
    from tvmconv.cuda_devices import Architecture
    from tvmconv.runtime.cuda_driver import Hardware

__all__ = [
    "FIRST_TF32",
    "CudaTarget",
    "check_tf32",
    "devices_here",
    "divide",
    "resolve",
    "separate",
]


FIRST_TF32 = 80
"""The first architecture that multiplies TF32."""


@dataclass(frozen=True)
class CudaTarget:
    """The CUDA devices that one fat binary serves.

    Attributes
    ----------
    name : str
        As it was asked for.
    architectures : tuple of Architecture
        Each gets machine code; later ones get the PTX of the last.
    multiprocessors : int or None
        Of the device here, where ``cuda:native`` names just one kind.
    """

    name: str
    architectures: tuple[cuda_devices.Architecture, ...]
    multiprocessors: int | None = None

    def fingerprint(self) -> str:
        """A stable name for files: ``cuda-80-90``."""
        return "-".join(["cuda", *(str(one.number) for one in self.architectures)])


def divide(text: str) -> tuple[tuple[CpuTarget, ...], CudaTarget | None]:
    """The processors and the CUDA devices that a target text names.

    Raises
    ------
    TargetError
        As `targets.resolve` and `resolve`.
    """
    others, cuda = _divided(text)
    return targets.resolve(others) if others else (), resolve(cuda) if cuda else None


def _divided(text: str) -> tuple[str, list[str]]:
    if not isinstance(text, str):
        raise TargetError(f"expected the name of a target, received {text!r}")
    items = [item.strip() for item in text.split("|")]
    cuda = [item for item in items if item.partition(":")[0] == "cuda"]
    others = "|".join(item for item in items if item not in cuda)
    return (others or " ") if len(cuda) < len(items) else "", cuda


def separate(text: str) -> tuple[tuple[CpuTarget, ...], CudaTarget | None]:
    """The processors and the CUDA devices of one library, all of which can be built for here.

    Raises
    ------
    TargetError
        As `targets.resolve_buildable`, or a CUDA architecture is unknown or no longer built for, or
        ``cuda:native`` is asked for where the driver finds no device.
    """
    others, cuda = _divided(text)
    found = targets.resolve_buildable(others) if others else ()
    return found, resolve(cuda) if cuda else None


def resolve(items: Sequence[str]) -> CudaTarget:
    """The devices that target items name, each ``cuda``, ``cuda:native`` or ``cuda:sm_80,...``.

    Raises
    ------
    TargetError
        An architecture is unknown or no longer built for, or there is no device for ``native``.
    """
    names, counts = [], set[int]()
    for item in items:
        given = item.partition(":")[2].strip()
        if item.endswith(":") or any(not name.strip() for name in given.split(",") if given):
            raise TargetError(f"target {item!r}: expected for example cuda:sm_80,sm_90")
        for name in given.split(",") if given else cuda_devices.DEFAULT:
            if name.strip() == "native":
                here = _devices_here()
                names += sorted({"sm_{}{}".format(*one.capability) for one in here})
                counts |= {one.multiprocessors for one in here}
            else:
                names.append(name.strip())
    found = cuda_devices.architectures(names)
    count = counts.pop() if len(counts) == len(found) == 1 else None
    return CudaTarget("|".join(items), found, count)


def check_tf32(text: str, architectures: Sequence[Architecture], dtype: str) -> None:
    """Refuse TF32 where there is none.

    Raises
    ------
    TargetError
        The target ``text`` has no CUDA architectures, or some without TF32.
    ConfigError
        The layer computes in another dtype than float32.
    """
    if not architectures:
        raise TargetError(
            f"precision 'tf32' is for CUDA devices only, for example cuda:sm_80. Received: {text!r}"
        )
    if dtype != "float32":
        raise ConfigError(f"precision 'tf32' is for float32 layers only. Received: {dtype}")
    old = [one.name for one in architectures if one.number < FIRST_TF32]
    if old:
        raise TargetError(
            f"precision 'tf32' needs tensor cores from sm_{FIRST_TF32} on; leave out {old[0]}. "
            f"Received: {text!r}"
        )


def _devices_here() -> list[Hardware]:
    """The CUDA devices of this machine.

    Raises
    ------
    TargetError
        There are none.
    """
    from tvmconv.runtime import cuda_driver

    reason = cuda_driver.unavailable()
    if reason:
        raise TargetError(
            f"target 'cuda:native': {reason}; name the architecture, for example cuda:sm_90"
        )
    return [cuda_driver.hardware(index) for index in range(cuda_driver.device_count())]


def devices_here() -> list[str]:
    """The CUDA devices of this machine, each as ``sm_90 (NVIDIA H100)``; empty without a driver."""
    from tvmconv.runtime import cuda_driver

    if cuda_driver.unavailable():
        return []
    return ["sm_{}{} ({})".format(*one.capability, one.name) for one in _devices_here()]
