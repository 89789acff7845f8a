"""From CUDA C to a library for this processor: `emulator` gives it blocks, threads and barriers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

EMULATOR = Path(__file__).parent / "emulator"
_ABOUT = Path("/proc/cpuinfo")
#: Conversions of half-width floats, each of which is a function of dozens of instructions without.
HALVES = ["-mf16c"] if _ABOUT.exists() and " f16c " in _ABOUT.read_text(encoding="utf-8") else []


def emulated_library(
    source: str, symbols: Sequence[str], folder: Path, shared_bytes: int = 0, level: str = "-O1"
) -> Path:
    """Compile CUDA C, with a function ``emulate_<symbol>`` for each kernel.

    What a launch asks for in shared memory is an array of ``shared_bytes`` here. ``level`` is how
    hard the compiler tries: less where a kernel runs a few times only.
    """
    asked = r"extern __shared__ (.*?)\b(\w+) (\w+)\[\];"
    text = [re.sub(asked, rf"__shared__ \1\2 \3[{shared_bytes} / sizeof(\2)];", source)]
    for symbol in symbols:
        found = re.search(re.escape(symbol) + r"\(([^)]*)\);", source)
        assert found, symbol
        types = [" ".join(p.replace("__restrict__", "").split()[:-1]) for p in found[1].split(",")]
        call = ", ".join(f"*({kind} *)p[{i}]" for i, kind in enumerate(types))
        text.append(f"static void call_{symbol}(void **p) {{ {symbol}({call}); }}")
        text.append(f"EMULATED({symbol})")
    path = folder / "kernels.cpp"
    path.write_text("\n".join(text), encoding="utf-8")
    out = folder / "kernels.so"
    # Some systems' compilers check each jump, and know of one stack alone.
    command = ["g++", "-std=c++17", level, *HALVES, "-U_FORTIFY_SOURCE", "-w", "-fPIC", "-shared",
               "-fno-strict-aliasing", f"-I{EMULATOR}", "-include", "emulator.h", str(path),
               "-o", str(out)]  # fmt: skip
    subprocess.run(command, check=True)
    return out
