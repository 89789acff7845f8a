"""In the place of nvcc: a program that compiles CUDA C for emulated threads.

Its fat binary has the form of nvcc's and holds the name of a shared library, which the fake driver
loads. The libraries go to the folder EMULATED_KERNELS. EMULATED_FAULTS (JSON) says what kernels do
instead of what their source says: launch bounds (``64`` or ``64, 4``) -> statements in C.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

from emulated_kernels import emulated_library

MAGIC, PTX, CUBIN, HEADER = 0xBA55ED50, 1, 2, 64
_KERNEL = re.compile(
    r'^extern "C" __global__ void __launch_bounds__\(([^)]*)\) (\w+)\([^()]*\);', re.M
)


def main(arguments: list[str]) -> int:
    if "--version" in arguments:
        print("Cuda compilation tools, release 13.0, V13.0.0")
        return 0
    source = Path(next(one for one in arguments if one.endswith(".cu"))).read_text()
    numbers = [int(one) for one in re.findall(r"code=sm_(\d+)", " ".join(arguments))]
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    place = Path(os.environ["EMULATED_KERNELS"]) / digest
    place.mkdir(parents=True, exist_ok=True)
    library = str(compiled(source, place))
    parts = [entry(CUBIN, number, library) for number in numbers]
    body = b"".join([*parts, entry(PTX, numbers[-1], library)])
    out = Path(arguments[arguments.index("-o") + 1])
    out.write_bytes(struct.pack("<IHHQ", MAGIC, 1, 16, len(body)) + body)
    return 0


def compiled(source: str, place: Path) -> Path:
    """A library of the kernels; of faults in their place where that was asked for."""
    kernels = _KERNEL.findall(source)
    faults = json.loads(os.environ.get("EMULATED_FAULTS", "{}"))
    if not any(bounds in faults for bounds, _ in kernels):
        symbols = [symbol for _, symbol in kernels]
        return emulated_library(source, symbols, place, 228 << 10, "-O0")
    text = ["#include <cstring>", "#include <unistd.h>"]
    for bounds, symbol in kernels:
        text += [
            f'extern "C" int emulate_{symbol}(void **p, const unsigned *sizes, unsigned order)',
            f"{{ (void)p, (void)sizes, (void)order; {faults[bounds]} return 0; }}",
        ]
    (place / "kernels.cpp").write_text("\n".join(text) + "\n")
    command = ["g++", "-O0", "-fPIC", "-shared", "kernels.cpp", "-o", "kernels.so"]
    subprocess.run(command, check=True, cwd=place)
    return place / "kernels.so"


def entry(kind: int, number: int, name: str) -> bytes:
    """A part of a fat binary: its header, then a name, ended and padded with zeros."""
    payload = name.encode().ljust(-(-(len(name) + 1) // 8) * 8, b"\0")
    head = struct.pack("<HHIQ", kind, 0x101, HEADER, len(payload)).ljust(28, b"\0")
    return (head + struct.pack("<I", number)).ljust(HEADER, b"\0") + payload


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
