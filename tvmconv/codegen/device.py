"""The library that goes to a device behind TVM's RPC: the layer, and a function that times it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tvmconv.codegen import toolchain
from tvmconv.codegen.entry import source
from tvmconv.codegen.toolchain import Toolchain
from tvmconv.errors import BuildError

__all__ = ["FUNCTION", "build"]

#: What the RPC server calls; TVM finds ``__tvm_ffi_<name>``.
FUNCTION = "measure"
_OPTIONS = [
    "-std=c99", "-D_GNU_SOURCE", "-O2", "-g0", "-fPIC", "-Wall", "-shared", "-s",
    "-fvisibility=hidden", "-Wl,-z,defs", "-Wl,-z,noexecstack",
]  # fmt: skip


def build(
    name: str, header: bytes, archive: bytes, triple: str, cc: Toolchain | None = None
) -> bytes:
    """Link a layer and its timing function into a library that needs libc alone.

    Parameters
    ----------
    name
        The artifact's name.
    header, archive
        Its ``<name>.h`` and ``lib<name>.a``.
    triple
        What the device is.
    cc
        A C compiler for it; `toolchain.find_for` by default.

    Raises
    ------
    BuildError
        The compiler fails, or the temporary folder cannot be used.
    """
    cc = cc or toolchain.find_for(triple)
    cpu = [f"-mcpu={cc.zig_cpu}"] if cc.is_zig else []
    try:
        with tempfile.TemporaryDirectory(prefix="tvmconv-device-") as temporary:
            work = Path(temporary)
            (work / f"{name}.h").write_bytes(header)
            (work / f"lib{name}.a").write_bytes(archive)
            (work / "device.c").write_text(source("device.c"))
            cc.run(
                [*_OPTIONS, *cpu, "-include", f"{name}.h", f"-DLAYER={name}", "-o", "device.so",
                 "device.c", f"lib{name}.a", "-lm", "-lpthread"],
                work,
            )  # fmt: skip
            return (work / "device.so").read_bytes()
    except OSError as exc:
        raise BuildError(f"the temporary folder cannot be used: {exc}; set TMPDIR") from exc
