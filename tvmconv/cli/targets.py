"""Show what this machine is, and the names of targets.

A name shows what it stands for.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from tvmconv.cli import console
from tvmconv.errors import TargetError

if TYPE_CHECKING:
    from tvmconv.cuda_target import CudaTarget
    from tvmconv.targets import CpuTarget

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv targets``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show what this name stands for")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Print one target, or this machine and all names."""
    from tvmconv import cuda_devices, cuda_target, devices, targets

    if args.name is not None:
        processors, cuda = cuda_target.divide(args.name)
        found: list[CpuTarget | CudaTarget] = [*processors]
        if cuda is not None:
            found.append(cuda)
        if args.json:
            console.dump([_described(one) for one in found])
        else:
            for one in found:
                _show(one)
        return 0
    try:
        native, reason = targets.native(), ""
    except TargetError as exc:
        native, reason = None, str(exc)
    names, cpus = sorted(devices.DEVICES), targets.known_cpus()
    gpus = cuda_target.devices_here()
    if args.json:
        described = None if native is None else _described(native)
        built = list(cuda_devices.ARCHITECTURES)
        console.dump(
            {"native": described, "devices": names, "cpus": cpus, "cuda": built, "gpus": gpus}
        )
        return 0
    if native is None:
        console.say(f"this machine: {reason}")
    else:
        _show(native)
    console.say(f"  CUDA devices  {', '.join(gpus) or 'none'}")
    console.say(f"\ndevices: {', '.join(names)}")
    console.say(f"\nCUDA: {', '.join(f'cuda:{name}' for name in cuda_devices.ARCHITECTURES)}")
    console.say(f"\nCPUs: {', '.join(cpus)}")
    console.say("\nCPU features go behind a name: x86-64-v2+avx2")
    return 0


def _described(target: CpuTarget | CudaTarget) -> dict[str, Any]:
    return {**dataclasses.asdict(target), "fingerprint": target.fingerprint()}


def _show(target: CpuTarget | CudaTarget) -> None:
    from tvmconv.cuda_target import CudaTarget

    if isinstance(target, CudaTarget):
        console.say(f"{target.name}:")
        console.say(f"  fingerprint   {target.fingerprint()}")
        for one in target.architectures:
            console.say(f"  {one.name:<13} {one.devices}")
        return
    console.say(f"{target.name}: {target.cpu}, {target.triple}")
    console.say(f"  fingerprint   {target.fingerprint()}")
    if target.features:
        console.say(f"  features      {' '.join(target.features)}")
    console.say(f"  vectors       {target.vector_registers} of {target.vector_bits} bits")
    caches = (target.l1_bytes, target.l2_bytes, target.last_level_bytes)
    console.say(f"  data caches   {', '.join(f'{size >> 10} KiB' for size in caches)}")
    console.say(f"  cores         {target.cores}")
