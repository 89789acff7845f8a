"""The check of the processor, against what Linux says of it."""

from __future__ import annotations

import ctypes
import platform
import re
from dataclasses import replace
from pathlib import Path

import c_driver
import pytest
import sample_library as sample
from sample_library import CODES, Call

from tvmconv.codegen import features, link
from tvmconv.errors import BuildError

MISSING = {"x86_64": "tbm", "aarch64": "sve-b16b16"}.get(platform.machine())


@pytest.mark.skipif(MISSING is None, reason="this architecture is not checked at run time")
def test_a_missing_cpu_feature_is_an_error_that_names_it(tmp_path: Path) -> None:
    needed = ("sse4.2", MISSING) if platform.machine() == "x86_64" else ("neon", MISSING)
    artifact = link(sample.parts(tmp_path, features=needed), tmp_path / "out")
    call = Call(sample.Library(artifact.path))
    assert call.run() == CODES["ERROR_PROCESSOR"]
    assert call.untouched()
    assert f"lacks {MISSING}," in call.library.text(CODES["ERROR_PROCESSOR"])
    kernel, bias = sample.weights()
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (kernel, bias, call.memory)]
    assert call.library["pack_weights"](*pointers) == CODES["ERROR_PROCESSOR"]
    assert call.untouched()


@pytest.mark.skipif(MISSING is None, reason="this architecture is not checked at run time")
def test_the_first_variant_that_runs_is_taken(tmp_path: Path) -> None:
    parts = sample.parts(tmp_path)
    best = replace(parts.variants[0], features=(MISSING or "",))
    shapes = tuple(replace(s, symbol="up1_kernel_1_0") for s in best.shapes)
    code = sample.kernel_object("up1", tmp_path, "-DKERNEL=up1_kernel_1_0", "-DPACKER=up1_unused")
    best = replace(best, shapes=shapes, object_code=code)
    artifact = link(replace(parts, variants=(best, parts.variants[0])), tmp_path / "out")
    call = Call(sample.Library(artifact.path))
    assert call.run() == 0
    assert call.right()


# Linux' name in /proc/cpuinfo, where it is not LLVM's without dots.
CPUINFO = {
    "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "lzcnt": "abm",
    "avxvnni": "avx_vnni", "avx512vbmi2": "avx512_vbmi2", "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16", "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq", "avx512fp16": "avx512_fp16",
}  # fmt: skip


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with Linux' list on x86-64")
def test_the_cpu_check_agrees_with_linux(tmp_path: Path) -> None:
    # The kernel prints no flag of its own for the others.
    names = sorted(set(features._X86) - {"egpr", "push2pop2", "ppx", "ndd", "ccmp", "nf", "zu",
                   "avx10.1", "avx10.2", "avxifma", "avxvnniint8", "avxneconvert",
                   "avxvnniint16"})  # fmt: skip
    rows = features.bits(names, "x86_64-linux-gnu")
    table = "".join(f'{{{b.word}, {b.bit}, {b.state}, "{b.feature}"}},\n' for b in rows)
    (tmp_path / "table.h").write_text(table)
    program = c_driver.compile_c(
        tmp_path / "features",
        f"-I{tmp_path}",
        f"-I{Path(features.__file__).parent / 'c'}",
        c_driver.C_SOURCES / "features.c",
    )
    here = set(c_driver.run(program).split())
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert flags is not None
    listed = set(flags[1].split())
    assert here == {name for name in names if CPUINFO.get(name, name) in listed}


def test_unknown_features_are_refused_when_built() -> None:
    with pytest.raises(BuildError, match="'warp-drive' cannot be checked"):
        features.bits(["avx2", "warp-drive"], "x86_64-linux-gnu")
    assert features.bits(["zvl128b"], "riscv64-linux-gnu") == ()
    assert features.bits(["anything"], "wasm32-unknown-unknown") == ()
    with pytest.raises(BuildError, match="'zvl256b' cannot be checked"):
        features.bits(["zvl256b"], "riscv64-linux-gnu")
    with pytest.raises(BuildError, match="'fp16' cannot be checked"):
        features.bits(["fp16"], "armv7-linux-gnueabihf")
    assert [b.bit for b in features.bits(["fp16", "vfp4"], "armv7-linux-gnueabihf")] == [16]
    assert features.bits(["fullfp16", "dotprod"], "arm64-apple-macosx11") == ()
    with pytest.raises(BuildError, match="'sve' cannot be checked"):
        features.bits(["sve"], "arm64-apple-macosx11")
    assert [b.feature for b in features.bits(["fma", "x87", "-avx512f"], "x86_64-linux-gnu")] == [
        "fma"
    ]
