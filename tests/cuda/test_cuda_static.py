"""What the machine code of GPU kernels must be like: floors for what no GPU is here to measure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cuda_samples import needs_nvcc

from benchmarks import cuda_table
from tvmconv.codegen.cuda import disassembly
from tvmconv.errors import BuildError


def _missing() -> str:
    try:
        disassembly.find()
    except BuildError as exc:
        return str(exc)
    return ""


needs_disassembler = pytest.mark.skipif(bool(_missing()), reason=_missing() or "it is here")
#: Layer and dtype: least share of products in the hottest loop by form, least occupancy.
FLOORS = {
    ("unet_up3", "float32"): (0.74, 0.18),
    ("gan_g4", "float32"): (0.60, 0.18),
    ("gcnet_37", "float32"): (0.55, 0.25),
    ("gan_g2", "float32"): (0.45, 0.25),
    ("psm_conv5", "float16"): (0.10, 0.12),
}
#: Bytes that may be spilled outside the loop: the rule asks for four blocks of 256 threads, so 64
#: registers, which an H100 runs faster than fewer blocks without spills (docs/cuda-kernels.md).
SPILLED = {("gcnet_37", "sm_90"): 24}


@needs_nvcc
@needs_disassembler
@pytest.mark.slow
def test_registers_spills_occupancy_and_products() -> None:
    found = cuda_table.rows(tuple(FLOORS), ("sm_75", "sm_80", "sm_90"))
    assert {(row.layer, row.dtype) for row in found} == set(FLOORS)
    assert len(found) == 3 * len(FLOORS)
    for row in found:
        share, occupancy = FLOORS[row.layer, row.dtype]
        what = f"{row.layer} {row.dtype} {row.usage} {row.loop}"
        assert row.loop.spills == 0, what
        spilled = SPILLED.get((row.layer, row.usage.architecture), 0)
        assert row.usage.spill_stores <= spilled and row.usage.spill_loads <= spilled, what
        assert row.loop.share >= share, what
        assert row.occupancy >= occupancy, what
        assert row.loop.count("HMMA") if row.tiling.form == "wmma" else row.loop.count("FFMA"), what
        if row.tiling.form == "gemm":
            # Whole vectors from memory and from shared memory, where channels are last.
            loads = [name for name in row.loop.instructions if name.startswith(("LDG", "LDS"))]
            assert loads and all(".128" in name for name in loads), what
    text = cuda_table.table(found)
    assert len(text.splitlines()) == 2 + len(found)


@needs_nvcc
@needs_disassembler
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "share"), [("float16", 0.2), ("tf32", 0.15)])
def test_copies_that_run_ahead_and_tensor_cores(dtype: str, share: float) -> None:
    found = cuda_table.rows((("unet_up3", dtype),), ("sm_80", "sm_90"))
    assert len(found) == 2
    for row in found:
        what = f"{row.tiling} {row.usage} {row.loop}"
        assert row.tiling.form == "mma", what
        assert row.loop.spills == row.usage.spill_stores == row.usage.spill_loads == 0, what
        assert row.loop.count("HMMA") and row.loop.share >= share, what
        assert row.loop.count("LDGSTS") and row.loop.count("LDSM"), what
        assert not row.loop.count("LDG."), what
        assert row.occupancy >= 0.12, what


def test_the_table_stands_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cuda-kernels.md").read_text(encoding="utf-8")
    part = re.search("<!-- begin: kernels -->(.*)<!-- end: kernels -->", text, re.DOTALL)
    assert part
    for layer, dtype in cuda_table.LAYERS:
        assert f"| {layer} | {dtype} |" in part[1]


SASS = """
	.section	.text.first,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   FFMA R0, R1, R2, R0 ;
.L_x_2:
        /*0020*/              @!P0 FFMA R0, R1, R2, R0 ;
        /*0030*/                   LDS.128 R4, [R8] ;
        /*0040*/                   STL [R1], R4 ;
        /*0050*/               @P1 BRA `(.L_x_2) ;
        /*0060*/                   BRA `(.L_x_1) ;
	.section	.text.second,"ax",@progbits
        /*0000*/                   EXIT ;
"""


def test_the_hottest_loop_is_found_in_the_text() -> None:
    functions = disassembly._functions(SASS)
    assert list(functions) == ["first", "second"]
    counts = disassembly._hottest(functions["first"])
    assert counts == {"FFMA": 2, "LDS.128": 1, "STL": 1, "BRA": 2}
    loop = disassembly.Loop("first", "sm_80", counts)
    assert (loop.products, loop.spills, loop.count("LDS")) == (2, 1, 1)
    assert loop.share == 2 / 6
    assert disassembly._hottest(functions["second"]) == {}
