"""The loops of generated assembly, and what is in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Loop", "hottest", "loops"]

# The multiplications of each architecture, fused with an addition or, where it has none, not.
_PRODUCT = {
    "x86_64": r"^(vfn?m(add|sub)\w+|v?mul[ps][sd])\b", "aarch64": r"^(fml[as]|fn?madd)\b",
    "armv7": r"^(vmul|vfma|vmla)\.f32\b", "riscv64": r"^(fn?madd\.s|vfn?m(acc|add)\.v[fv])\b",
    "wasm32": r"^f32x4\.mul\b",
}  # fmt: skip
_SUM = {"x86_64": r"^v?add[ps][sd]\b", "armv7": r"^vadd\.f32\b", "wasm32": r"^f32x4\.add\b"}
_VECTOR = {
    "x86_64": r"%[xyz]mm", "aarch64": r"\b[vqsd]\d", "armv7": r"\b[qsd]\d",
    "riscv64": r"\b(v\d|f[ats]\d)", "wasm32": r"^(v128|f32x4)\.",
}  # fmt: skip
_COMMENT = {"x86_64": "#", "aarch64": r"//|;", "armv7": "@", "riscv64": "#", "wasm32": "#"}
_STACK = re.compile(r"\bsp\b|%rsp|__stack_pointer")
_LABEL = re.compile(r"\.?LBB\w+$")


@dataclass(frozen=True)
class Loop:
    """A loop without a label or a jump inside.

    Attributes
    ----------
    triple : str
        LLVM's name of the system.
    lines : tuple of str
        Its instructions, the jump back last.
    """

    triple: str
    lines: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """The first part of the triple, as Linux calls it."""
        return _architecture(self.triple)

    def _count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.lines)

    @property
    def products(self) -> int:
        """Multiplications, of scalars or of vectors."""
        return self._count(_PRODUCT[self.architecture])

    @property
    def stack(self) -> int:
        """Instructions that name the stack pointer: what is spilled, mostly."""
        return self._count(_STACK.pattern)

    @property
    def integers(self) -> int:
        """Instructions without a floating-point or vector register: addresses, counters, jumps."""
        return len(self.lines) - self._count(_VECTOR[self.architecture])

    def arithmetic(self) -> tuple[str, ...]:
        """The multiplications and additions alone."""
        patterns = [_PRODUCT[self.architecture], _SUM.get(self.architecture, "$^")]
        return tuple(line for line in self.lines if re.search("|".join(patterns), line))


def _architecture(triple: str) -> str:
    first = triple.partition("-")[0].replace("arm64", "aarch64")
    return "armv7" if first.startswith("thumb") else first


def loops(assembly: str, triple: str) -> list[Loop]:
    """All loops of one block in a text of LLVM's assembler."""
    comment = re.compile(_COMMENT[_architecture(triple)])
    lines = [comment.split(line)[0].strip() for line in assembly.splitlines()]
    lines = [line for line in lines if line and (line[0] != "." or line[-1] == ":")]
    lines = [" ".join(line.split()) for line in lines if not re.match(r"\.?L(tmp|func)", line)]
    if _architecture(triple) == "wasm32":
        return _structured(lines, triple)
    places: dict[str, int] = {}
    found = []
    for number, line in enumerate(lines):
        if line.endswith(":"):
            places[line[:-1]] = number
            continue
        jump = _LABEL.search(line)
        if jump is None or jump[0] not in places:
            continue
        body = lines[places[jump[0]] + 1 : number + 1]
        if not any(one.endswith(":") or _LABEL.search(one) for one in body[:-1]):
            found.append(Loop(triple, tuple(body)))
    return found


def _structured(lines: list[str], triple: str) -> list[Loop]:
    """The loops of WebAssembly, without the local variables, which are its registers."""
    found, begin = [], None
    for number, line in enumerate(lines):
        if line in ("loop", "block"):
            begin = number if line == "loop" else None
        elif line == "end_loop" and begin is not None:
            body = [one for one in lines[begin + 1 : number] if not one.startswith("local.")]
            found.append(Loop(triple, tuple(body)))
            begin = None
    return found


def hottest(assembly: str, triple: str) -> Loop:
    """The loop of the products; without any instruction where there is none.

    That with most multiplications, by their share of it: straight code of sums may have more.
    """

    def key(one: Loop) -> float:
        return one.products**2 / max(1, len(one.lines))

    return max(loops(assembly, triple), key=key, default=Loop(triple, ()))
