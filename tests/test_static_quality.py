"""The hottest loop of a layer for each processor, from its assembly and a model of the core."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import Capture
from turns import turns

from benchmarks import assembly, static
from tvmconv.devices import DEVICES

LAYER = "gan_g4"


@dataclass(frozen=True)
class Floor:
    """What the loop has at least, or at most.

    Attributes
    ----------
    count : int
        Products, at least.
    products : float
        Products as a share of the instructions, at least.
    integers : float
        Integer instructions for each product, at most.
    share : float
        Share of the peak in llvm-mca's model, at least; the model of another version may differ.
    """

    count: int
    products: float
    integers: float
    share: float = 0.0


_OUT_OF_ORDER = Floor(16, 0.55, 0.4, 0.85)
_IN_ORDER = Floor(96, 0.6, 0.2, 0.25)
# Without fused multiply-adds (SSE, WebAssembly) an addition is an instruction. MVE has eight
# registers and takes the inputs from integer ones. For Atom and what followed it LLVM loads far
# ahead, which leaves room for small tiles only.
FLOORS = {
    "raspberry-pi-3": _IN_ORDER, "cortex-a53": _IN_ORDER, "cortex-a55": _IN_ORDER,
    "raspberry-pi-4": _OUT_OF_ORDER, "raspberry-pi-5": _OUT_OF_ORDER, "cortex-a72": _OUT_OF_ORDER,
    "cortex-a76": _OUT_OF_ORDER, "cortex-a78": _OUT_OF_ORDER, "neoverse-n1": _OUT_OF_ORDER,
    "neoverse-v1": _OUT_OF_ORDER, "graviton2": _OUT_OF_ORDER, "graviton3": _OUT_OF_ORDER,
    "jetson-orin-cpu": _OUT_OF_ORDER, "apple-m1": Floor(16, 0.55, 0.4, 0.6),
    "x86-64-v2": Floor(8, 0.23, 0.65, 0.75), "x86-64-v3": Floor(12, 0.45, 0.5, 0.7),
    "x86-64-v4": Floor(16, 0.5, 0.4, 0.85), "alderlake-e": Floor(24, 0.5, 0.4, 0.9),
    "atom": Floor(6, 0.2, 0.9, 0.38), "tremont": Floor(6, 0.2, 0.7, 0.5),
    "riscv64-rva22": Floor(16, 0.55, 0.3, 0.45), "riscv64-rvv": Floor(16, 0.5, 0.5),
    "armv7-neon": Floor(8, 0.28, 1.3, 0.25), "cortex-m7": Floor(40, 0.5, 0.5, 0.25),
    "cortex-m55": Floor(6, 0.28, 2.2), "wasm32-simd": Floor(12, 0.2, 2.1),
}  # fmt: skip
ALGORITHMS = ("direct", "toom-cook")
#: One loop after the other with all that is asked of it, so that a process compiles it once.
LOOPS = turns(tuple(FLOORS), ALGORITHMS)


def test_every_device_has_floors_and_a_row() -> None:
    assert set(FLOORS) == set(static.MODELS) == set(DEVICES)


@pytest.mark.parametrize(("name", "algorithm"), LOOPS, scope="module")
def test_products_and_spills(name: str, algorithm: str) -> None:
    loop = static.loop_of(LAYER, name, algorithm)
    assert loop.products >= FLOORS[name].count, loop.lines
    assert loop.products / len(loop.lines) >= FLOORS[name].products, loop.lines
    assert loop.integers / loop.products <= FLOORS[name].integers, loop.lines
    assert loop.stack == 0, loop.lines


@pytest.mark.skipif(shutil.which("llvm-mca") is None, reason="needs llvm-mca (Debian: llvm)")
@pytest.mark.parametrize(("name", "algorithm"), LOOPS, scope="module")
def test_share_of_the_peak_in_a_model(name: str, algorithm: str) -> None:
    if not static.MODELS[name]:
        pytest.skip(f"llvm-mca has no model of {name}")
    loop = static.loop_of(LAYER, name, algorithm)
    found = static.cycles(loop, static.MODELS[name])
    assert found is not None
    assert found.loop >= 1
    assert FLOORS[name].share <= found.share <= 1.01, found


TEXT = """
\tpushq\t%rbp
.LBB0_1:                                # outer
\txorl\t%eax, %eax
.LBB0_2:                                # inner
.Ltmp7:
\t.loc\t1 2 3
\tmovaps\t(%rdi,%rax), %xmm0
\tmulps\t%xmm1, %xmm0                    # product of (%rsp)
\taddps\t%xmm0, %xmm2
\tmovq\t8(%rsp), %rcx
\taddq\t$16, %rax
\tjne\t.LBB0_2
\tjne\t.LBB0_1
.LBB0_3:
\tdecq\t%rax
\tjne\t.LBB0_3
"""


def test_loops_of_a_text() -> None:
    found = assembly.loops(TEXT, "x86_64-linux-gnu")
    assert [len(one.lines) for one in found] == [6, 2]
    inner = assembly.hottest(TEXT, "x86_64-linux-gnu")
    assert inner == found[0]
    assert (inner.products, inner.stack, inner.integers) == (1, 1, 3)
    assert inner.arithmetic() == ("mulps %xmm1, %xmm0", "addps %xmm0, %xmm2")
    assert assembly.hottest("nothing:\n\tret\n", "x86_64-linux-gnu").lines == ()


WASM = """
\tblock
\tloop                                    # label3:
.Ltmp97:
\tlocal.get\t1
\tv128.load32_splat\t0
\tlocal.tee\t97
\tf32x4.mul
\tf32x4.add
\ti32.const\t16
\tbr_if   \t0                               # 0: up to label3
\tend_loop
\tloop
\tblock
\tend_block
\tend_loop
\tend_block
"""


def test_loops_of_webassembly() -> None:
    (found,) = assembly.loops(WASM, "wasm32-unknown-unknown")
    assert found.lines[-1] == "br_if 0"
    assert (len(found.lines), found.products, found.stack, found.integers) == (5, 1, 0, 2)


def test_without_the_model_there_are_no_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = assembly.hottest(TEXT, "x86_64-linux-gnu")
    assert static.cycles(loop, "") is None
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    assert static.cycles(loop, "nehalem") is None


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin: static -->\nold\n<!-- end: static -->\n")
    options = ["--layer", LAYER, "--targets", "riscv64-rvv", "--docs", str(page)]
    monkeypatch.setattr("sys.argv", ["static", *options])
    assert static.main() == 0
    rows = re.findall(r"^\| riscv64-rvv +\| +([\w-]+) \| +\d+ \|", page.read_text(), re.M)
    assert rows == list(ALGORITHMS)
    page.write_text("no markers\n")
    assert static.main() == 1
    assert "no place for: static" in capsys.readouterr().err
