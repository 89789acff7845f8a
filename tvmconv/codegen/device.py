"""A candidate as it goes to a device: the layer, and what times it.

For TVM's RPC a library with a function, for ssh a static program.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tvmconv.codegen import toolchain
from tvmconv.codegen.cuda import launcher
from tvmconv.codegen.entry import source
from tvmconv.codegen.toolchain import Toolchain
from tvmconv.errors import BuildError

__all__ = ["FUNCTION", "build", "program"]

#: What the RPC server calls; TVM finds ``__tvm_ffi_<name>``.
FUNCTION = "measure"
_COMMON = ("-std=c99", "-D_GNU_SOURCE", "-O2", "-g0", "-Wall", "-s", "-Wl,-z,noexecstack")
_LIBRARY = ("-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-z,defs")
_PROGRAM = ("-DPROGRAM",)


def build(
    name: str, header: bytes, archive: bytes, triple: str, cc: Toolchain | None = None
) -> bytes:
    """Link a layer and its timing function into a library that needs libc alone (or the driver).

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
    return _linked(name, header, archive, cc or toolchain.find_for(triple), _LIBRARY)


def program(name: str, header: bytes, archive: bytes, triple: str) -> bytes:
    """Link a layer and what times it into a program; arguments and errors as of `build`.

    It is static, unless the layer opens the driver of a CUDA device.
    """
    if launcher.in_header(name, header):
        return _linked(name, header, archive, toolchain.find_for(triple), _PROGRAM)
    options = ("-static", *_PROGRAM)
    return _linked(name, header, archive, toolchain.find_static(triple), options)


def _linked(
    name: str, header: bytes, archive: bytes, cc: Toolchain, options: tuple[str, ...]
) -> bytes:
    cpu = [f"-mcpu={cc.zig_cpu}"] if cc.is_zig else []
    cuda = launcher.in_header(name, header)
    libraries = ["-lm", "-lpthread", *(["-ldl"] if cuda else [])]
    try:
        with tempfile.TemporaryDirectory(prefix="tvmconv-device-") as temporary:
            work = Path(temporary)
            (work / f"{name}.h").write_bytes(header)
            (work / f"lib{name}.a").write_bytes(archive)
            (work / "device.c").write_text(source("device.c"))
            (work / "candidate.c").write_text(launcher.candidate())
            cc.run(
                [*_COMMON, *options, *cpu, *(["-DCUDA"] if cuda else []), "-include", f"{name}.h",
                 f"-DLAYER={name}", "-o", "device.out", "device.c", f"lib{name}.a", *libraries],
                work,
            )  # fmt: skip
            return (work / "device.out").read_bytes()
    except OSError as exc:
        raise BuildError(f"the temporary folder cannot be used: {exc}; set TMPDIR") from exc
