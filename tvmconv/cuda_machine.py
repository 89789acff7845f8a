"""One CUDA device that is tuned for: its architecture, and what it can reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tvmconv import cuda_target
from tvmconv.cuda_devices import Architecture
from tvmconv.errors import TargetError

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.runtime.cuda_driver import Hardware

__all__ = ["CudaMachine", "elsewhere", "fingerprint", "here"]

#: float32 multiply-adds of a multiprocessor in a cycle; source: NVIDIA's CUDA C++ Programming
#: Guide, arithmetic instructions.
_FLOAT32: Final = {75: 64, 80: 64, 100: 128, 103: 128}
_FLOAT32_USUAL: Final = 128
#: The same of float16 with float32 sums on tensor cores, where NVIDIA's papers on the architectures
#: say so. GeForce devices reach half of it.
_TENSOR: Final = {75: 512, 80: 1024, 86: 512, 89: 512, 90: 2048, 100: 4096, 120: 512}
#: float64, as a share of float32.
_FLOAT64: Final = {80: 0.5, 90: 0.5, 100: 0.5}
_FLOAT64_USUAL: Final = 1 / 64
#: Architectures that there are on one chip with an Arm processor alone.
_ON_ARM: Final = (87, 110, 121)


@dataclass(frozen=True)
class CudaMachine:
    """A CUDA device.

    Attributes
    ----------
    architecture : Architecture
        What candidates are built for.
    triple : str
        Of the processor beside it, for which candidates are linked.
    hardware : Hardware or None
        What the driver says; None for a device elsewhere.
    """

    architecture: Architecture
    triple: str
    hardware: Hardware | None = None

    @property
    def cores(self) -> int:
        """Multiprocessors; 0 where they are not known."""
        return self.hardware.multiprocessors if self.hardware else 0

    def fingerprint(self) -> str:
        """As of a `CudaTarget` with this architecture alone."""
        return fingerprint(self.architecture)

    def described(self) -> dict[str, Any]:
        """The target in a record."""
        return {
            "fingerprint": self.fingerprint(),
            "triple": self.triple,
            "cpu": "",
            "features": [],
            "cores": self.cores,
            "architecture": self.architecture.name,
        }

    def measured_by(self) -> dict[str, Any]:
        """What measures, as in a record."""
        about = self.hardware
        if about is None:
            return {"cpu_model": self.architecture.name, "cores": 0}
        return {
            "cpu_model": about.name,
            "cores": about.multiprocessors,
            "clock_mhz": about.clock_khz // 1000,
            "driver": about.driver,
        }

    def limit_gflops(self, work: Workload) -> float | None:
        """1e9 operations a second that the device can reach on a layer.

        The smaller of what it multiplies, and of what its memory brings where every input, weight
        and output moves once. None where the driver does not say enough.
        """
        if self.hardware is None or not self.hardware.clock_khz:
            return None
        number = self.architecture.number
        lanes: float | None = _FLOAT32.get(number, _FLOAT32_USUAL)
        if work.accumulate_dtype == "float64":
            lanes = (lanes or 0) * _FLOAT64.get(number, _FLOAT64_USUAL)
        elif work.input_dtype != "float32":
            lanes = _TENSOR.get(number)
        if lanes is None:
            return None
        peak = 2e-6 * lanes * self.hardware.multiprocessors * self.hardware.clock_khz
        # Two transfers in a clock of the memory, eight bits in a byte.
        gbytes = 2e-6 * self.hardware.memory_khz * self.hardware.bus_bits / 8
        flops = work.plan.flops * max(1, work.plan.batch)
        if not gbytes or not flops:
            return peak
        return min(peak, gbytes * flops / _bytes(work))


def _bytes(work: Workload) -> float:
    """What a call moves at least."""
    from tvmconv.config import numpy_dtype

    batch = max(1, work.plan.batch)
    sizes = ((work.plan.input_shape, work.input_dtype), (work.output_shape, work.output_dtype))
    moved = sum(batch * math.prod(s[1:]) * numpy_dtype(dtype).itemsize for s, dtype in sizes)
    weights = math.prod(work.plan.kernel_shape) * numpy_dtype(work.input_dtype).itemsize
    return max(1, moved + weights)


def fingerprint(architecture: Architecture) -> str:
    """A stable name for files: ``cuda-90``."""
    return f"cuda-{architecture.number}"


def here(text: str) -> CudaMachine:
    """The device of this machine that a target names.

    Raises
    ------
    TargetError
        It names several or a processor as well, or no such device is here.
    """
    from tvmconv import targets
    from tvmconv.runtime import cuda_driver

    reason = cuda_driver.unavailable()
    if reason:
        raise TargetError(
            f"target {text!r}: tuning needs such a device, and {reason}; tune where there is one, "
            "or give --device"
        )
    target = _single(text)
    found = [cuda_driver.hardware(index) for index in range(cuda_driver.device_count())]
    for one in found:
        if "sm_{}{}".format(*one.capability) == target.name:
            return CudaMachine(target, targets.native().triple, one)
    names = ", ".join("sm_{}{} ({})".format(*one.capability, one.name) for one in found)
    raise TargetError(
        f"target {text!r}: tuning needs such a device; here are {names}. Tune where there is one, "
        "or give --device"
    )


def elsewhere(text: str, triple: str) -> CudaMachine:
    """A device of another machine that a target names.

    Parameters
    ----------
    text
        ``cuda:sm_87``, or with the processor beside it ``cuda:sm_87|jetson-orin-cpu``.
    triple
        Of that processor, where neither the text nor the architecture tells.

    Raises
    ------
    TargetError
        It names several, or the architecture not by its name.
    """
    if "native" in text:
        raise TargetError(
            f"target {text!r}: name the device's architecture, for example cuda:sm_87 for Jetson "
            "Orin"
        )
    processors, cuda = cuda_target.separate(text)
    found = _only(cuda, text)
    if len(processors) > 1:
        raise TargetError(f"expected one processor beside the device. Received: target={text!r}")
    if processors:
        return CudaMachine(found, processors[0].triple)
    return CudaMachine(found, "aarch64-linux-gnu" if found.number in _ON_ARM else triple)


def _single(text: str) -> Architecture:
    processors, cuda = cuda_target.separate(text)
    return _only(None if processors else cuda, text)


def _only(cuda: cuda_target.CudaTarget | None, text: str) -> Architecture:
    if cuda is None or len(cuda.architectures) != 1:
        raise TargetError(
            "tuning is for one CUDA architecture at a time, and for no processor with it; name "
            f"one, for example cuda:sm_90. Received: target={text!r}"
        )
    return cuda.architectures[0]
