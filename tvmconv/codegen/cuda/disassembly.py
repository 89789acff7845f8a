"""What the machine code of a kernel's hottest loop consists of, by NVIDIA's disassembler.

For tests and for the table in docs/cuda-kernels.md; compiling needs none of it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tvmconv.errors import BuildError

__all__ = ["Loop", "find", "hottest_loops"]

_TOOLS = ("cuobjdump", "nvdisasm")
_PRODUCTS = ("FFMA", "DFMA", "HMMA")
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Loop:
    """The loop with most products.

    Attributes
    ----------
    kernel, architecture : str
        Symbol, and ``sm_80``.
    instructions : dict
        Number of each opcode, with its modifiers, in one turn.
    """

    kernel: str
    architecture: str
    instructions: dict[str, int]

    def count(self, *prefixes: str) -> int:
        """Instructions whose opcode begins so."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefixes))

    @property
    def products(self) -> int:
        """Multiply-adds: of registers, or of fragments on tensor cores."""
        return self.count(*_PRODUCTS)

    @property
    def share(self) -> float:
        """The products' share of all instructions."""
        return self.products / max(1, sum(self.instructions.values()))

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count("LDL", "STL")


def find() -> dict[str, str]:
    """The tools cuobjdump and nvdisasm: on the path, or from their wheels.

    Raises
    ------
    BuildError
        One is missing.
    """
    found = {}
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(f) / "cu13" / "bin" for f in (spec.submodule_search_locations or ())] if spec \
        else []  # fmt: skip
    for tool in _TOOLS:
        places = [str(folder / tool) for folder in folders if (folder / tool).is_file()]
        path = shutil.which(tool) or (places[0] if places else None)
        if path is None:
            raise BuildError(
                f"NVIDIA's {tool} was not found; install the wheels nvidia-cuda-cuobjdump and "
                "nvidia-cuda-nvdisasm (pip install 'tvmconv[cuda]')"
            )
        found[tool] = path
    return found


def hottest_loops(fatbin: bytes) -> list[Loop]:
    """The hottest loop of each kernel, for each cubin of a fat binary.

    Raises
    ------
    BuildError
        The tools are missing, or they refuse the binary.
    """
    tools = find()
    found = []
    with tempfile.TemporaryDirectory(prefix="tvmconv-cuda-") as name:
        folder = Path(name)
        (folder / "kernel.fatbin").write_bytes(fatbin)
        _run([tools["cuobjdump"], "-xelf", "all", "kernel.fatbin"], folder)
        for cubin in sorted(folder.glob("*.cubin")):
            match = re.search(r"sm_\d+", cubin.name)
            text = _run([tools["nvdisasm"], "-c", cubin.name], folder)
            for kernel, lines in _functions(text).items():
                found.append(Loop(kernel, match[0] if match else "", _hottest(lines)))
    return sorted(found, key=lambda loop: (loop.kernel, len(loop.architecture), loop.architecture))


def _run(command: list[str], folder: Path) -> str:
    try:
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BuildError(f"{command[0]} did not run: {exc}") from exc
    if result.returncode != 0:
        raise BuildError(f"{command[0]} failed: {(result.stderr.strip() or '?').splitlines()[0]}")
    return result.stdout


def _functions(text: str) -> dict[str, list[str]]:
    """The lines of each kernel."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        match = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if match:
            lines = found.setdefault(match[1], [])
        lines.append(line)
    return found


_LABEL = re.compile(r"^(\.L\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")


def _hottest(lines: list[str]) -> dict[str, int]:
    """Opcodes of the loop (from a label to a jump back to it) with most products."""
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    best: Counter[str] = Counter()
    for line in lines:
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = len(opcodes)
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        opcodes.append(match[1])
        target = re.search(r"\.L\w+", match[2])
        if match[1].startswith("BRA") and target and target[0] in labels:
            body = Counter(opcodes[labels[target[0]] :])
            if _products(body) > _products(best):
                best = body
    return dict(best)


def _products(opcodes: Counter[str]) -> int:
    return sum(n for name, n in opcodes.items() if name.startswith(_PRODUCTS))
