"""What tuning has to know about a kind of machine: processors, and CUDA devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvmconv.cuda_machine import CudaMachine

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Decisions
    from tvmconv.compute.workload import Workload
    from tvmconv.schedules.space import Space
    from tvmconv.targets import CpuTarget
    from tvmconv.tuning.runners import LocalRunner

    Machine = CpuTarget | CudaMachine

__all__ = [
    "build_request",
    "check_tools",
    "default",
    "described",
    "limit_gflops",
    "measured_by",
    "measured_there",
    "precision",
    "runner",
    "space",
]


def precision(work: Workload, machine: Machine, algorithm: str, asked: str) -> str:
    """What candidates round inputs and weights to: ``tf32`` where it is asked for and of use.

    Raises
    ------
    ConfigError, TargetError
        TF32 is asked for, and the machine or the layer has none.
    """
    if asked != "tf32":
        return "full"
    from tvmconv import cuda_target

    if not isinstance(machine, CudaMachine):
        cuda_target.check_tf32(machine.cpu, (), work.input_dtype)
        raise AssertionError("unreachable")
    target = machine.architecture
    cuda_target.check_tf32(f"cuda:{target.name}", (target,), work.input_dtype)
    from tvmconv.compute import cuda
    from tvmconv.schedules import cuda as rules

    tiling = rules.decide(work, [target], precision=asked, algorithm=algorithm)
    return cuda.precision(cuda.lower(work, tiling))


def space(
    work: Workload, machine: Machine, algorithm: str = "auto", precision: str = "full"
) -> Space:
    """Everything that may be tried for a workload.

    Raises
    ------
    ConfigError
        The algorithm does not serve it.
    """
    if isinstance(machine, CudaMachine):
        from tvmconv.schedules.cuda.space import space as of_devices

        return of_devices(work, [machine.architecture], algorithm=algorithm, precision=precision)
    from tvmconv.schedules.space import Space

    return Space.of(work, machine, algorithm)


def default(
    work: Workload, machine: Machine, algorithm: str = "auto", precision: str = "full"
) -> Decisions:
    """What the rules decide: the default of `space`.

    Raises
    ------
    ConfigError
        The algorithm does not serve the workload.
    """
    if isinstance(machine, CudaMachine):
        from tvmconv.schedules import cuda as rules

        return rules.decide(work, [machine.architecture], algorithm=algorithm, precision=precision)
    from tvmconv import schedules

    return schedules.decide(work, machine, algorithm=algorithm)


def check_tools(machine: Machine) -> None:
    """Refuse to tune where no candidate could be built.

    Raises
    ------
    BuildError
        There is no nvcc, or no C compiler; says what to install.
    """
    from tvmconv.codegen import toolchain

    toolchain.find_for(machine.triple)
    if isinstance(machine, CudaMachine):
        from tvmconv.codegen.cuda import nvcc

        nvcc.find()


def described(machine: Machine) -> dict[str, Any]:
    """The target in a record."""
    if isinstance(machine, CudaMachine):
        return machine.described()
    return {
        "fingerprint": machine.fingerprint(),
        "triple": machine.triple,
        "cpu": machine.cpu,
        "features": list(machine.features),
        "cores": machine.cores,
    }


def measured_by(machine: Machine) -> dict[str, Any]:
    """What measures here, as in a record."""
    if isinstance(machine, CudaMachine):
        return machine.measured_by()
    from tvmconv.tuning import machine as local

    return local.machine()


def measured_there(machine: Machine, about: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """What measures elsewhere; ``about`` says it of the processor, for so many cores."""
    if isinstance(machine, CudaMachine):
        beside = about(0)["cpu_model"]
        return {"cpu_model": f"{machine.architecture.name} beside {beside}", "cores": 0}
    return about(machine.cores)


def build_request(machine: Machine) -> dict[str, Any]:
    """What the builder process is asked to do, and for what."""
    from tvmconv.tuning import building

    if isinstance(machine, CudaMachine):
        return {
            "do": "build-cuda",
            "target": {"architecture": machine.architecture.name, "triple": machine.triple},
        }
    return {"do": "build", "target": building.described(machine)}


def runner(machine: Machine, seed: int) -> LocalRunner:
    """What runs candidates on this machine."""
    if isinstance(machine, CudaMachine):
        from tvmconv.tuning.cuda_runner import CudaRunner

        return CudaRunner(machine, seed)
    from tvmconv.tuning.runners import LocalRunner

    return LocalRunner(seed)


def limit_gflops(machine: Machine, work: Workload, product: float | None) -> float | None:
    """1e9 operations a second that a layer can reach: what a matrix product does, or a device."""
    return machine.limit_gflops(work) if isinstance(machine, CudaMachine) else product
