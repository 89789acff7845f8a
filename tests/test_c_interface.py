"""The C interface of a generated library: every misuse, every symbol, both ways of linking."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import c_driver
import numpy as np
import pytest
import sample_library as sample

from tvmconv.artifact import Artifact
from tvmconv.codegen import features, link, toolchain
from tvmconv.codegen.entry import ERRORS, PUBLIC
from tvmconv.errors import BuildError

CODES = {name: code for code, (name, _) in enumerate(ERRORS)}
GUARD = 64


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("baked")
    return link(sample.parts(folder), folder / "out")


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("external")
    return link(sample.parts(folder, baked=False), folder / "out")


class Call:
    """Arguments of a call that is right, with bytes around the output that must stay."""

    def __init__(self, library: sample.Library, batch: int = 2) -> None:
        self.library = library
        random = np.random.default_rng(1)
        shape = (batch, sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)
        self.x = random.normal(size=shape).astype(np.float32)
        self.memory = np.full(self.x.nbytes + 2 * GUARD, 0x5A, np.uint8)
        self.y = self.memory[GUARD:-GUARD].view(np.float32).reshape(shape)
        self.workspace = np.full(library["workspace_size"](0, 64), 0x5A, np.uint8)
        self.args = sample.Args(
            size=ctypes.sizeof(sample.Args),
            input=self.x.ctypes.data,
            output=self.y.ctypes.data,
            workspace=self.workspace.ctypes.data,
            workspace_size=self.workspace.nbytes,
            threads=1,
        )

    def run(self, **changed: int | None) -> int:
        for field, value in changed.items():
            setattr(self.args, field, value)
        return self.library.run(self.args)

    def untouched(self) -> bool:
        return bool((self.memory == 0x5A).all() and (self.workspace == 0x5A).all())

    def right(self) -> bool:
        inside = np.array_equal(self.y, sample.expected(self.x))
        around = (self.memory[:GUARD] == 0x5A).all() and (self.memory[-GUARD:] == 0x5A).all()
        return inside and bool(around)


MISUSE: dict[str, tuple[str, Callable[[Call], dict[str, int | None]]]] = {
    "size-zero": ("ERROR_SIZE", lambda _: {"size": 0}),
    "size-smaller": ("ERROR_SIZE", lambda c: {"size": c.args.size - 1}),
    "size-absurd": ("ERROR_SIZE", lambda _: {"size": 1 << 40}),
    "shape-negative": ("ERROR_SHAPE", lambda _: {"shape": -1}),
    "shape-beyond": ("ERROR_SHAPE", lambda _: {"shape": 2}),
    "threads-negative": ("ERROR_THREADS", lambda _: {"threads": -1}),
    "batch-of-fixed": ("ERROR_BATCH", lambda _: {"batch": 2}),
    "batch-of-fixed-negative": ("ERROR_BATCH", lambda _: {"batch": -1}),
    "batch-of-open-negative": ("ERROR_BATCH", lambda _: {"shape": 1, "batch": -1}),
    "batch-overflows": ("ERROR_OVERFLOW", lambda _: {"shape": 1, "batch": 1 << 60}),
    "batch-largest": ("ERROR_OVERFLOW", lambda _: {"shape": 1, "batch": (1 << 63) - 1}),
    "input-null": ("ERROR_NULL_INPUT", lambda _: {"input": None}),
    "output-null": ("ERROR_NULL_OUTPUT", lambda _: {"output": None}),
    "input-misaligned": ("ERROR_INPUT_ALIGNMENT", lambda c: {"input": c.args.input + 2}),
    "output-misaligned": ("ERROR_OUTPUT_ALIGNMENT", lambda c: {"output": c.args.output + 1}),
    "weights-misaligned": ("ERROR_WEIGHTS_ALIGNMENT", lambda c: {"weights": c.args.input + 3}),
    "workspace-null": ("ERROR_NULL_WORKSPACE", lambda _: {"workspace": None}),
    "workspace-small": (
        "ERROR_WORKSPACE_SIZE",
        lambda c: {"workspace_size": c.library["workspace_size"](0, 1) - 1},
    ),
    "workspace-of-fewer-threads": (
        "ERROR_WORKSPACE_SIZE",
        lambda c: {"threads": 4, "workspace_size": c.library["workspace_size"](0, 1)},
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_returns_its_code_and_writes_nothing(baked: Artifact, case: str) -> None:
    name, change = MISUSE[case]
    call = Call(sample.Library(baked.path))
    assert call.run(**change(call)) == CODES[name]
    assert call.untouched()


def test_null_args(baked: Artifact) -> None:
    assert sample.Library(baked.path)["run"](None) == CODES["ERROR_NULL_ARGS"]


def test_weights_must_be_given_where_none_are_inside(external: Artifact) -> None:
    call = Call(sample.Library(external.path))
    assert call.run() == CODES["ERROR_NULL_WEIGHTS"]
    assert call.untouched()


def test_every_error_of_run_is_in_the_table() -> None:
    run = {f"ERROR_{name}" for name in ("NULL_ARGS", "NULL_WEIGHTS", "PROCESSOR")}
    pack = {f"ERROR_NULL_{name}" for name in ("KERNEL", "BIAS", "PACKED")}
    assert {name for name, _ in MISUSE.values()} | run | pack | {"OK"} == set(CODES)


def test_a_later_callers_fields_must_be_zero(baked: Artifact) -> None:
    class Later(ctypes.Structure):
        _fields_ = (("args", sample.Args), ("more", ctypes.c_int64))

    call = Call(sample.Library(baked.path))
    later = Later(args=call.args)
    later.args.size = ctypes.sizeof(Later)
    later.more = 1
    assert call.library["run"](ctypes.byref(later)) == CODES["ERROR_SIZE"]
    assert call.untouched()
    later.more = 0
    assert call.library["run"](ctypes.byref(later)) == 0
    assert call.right()


@pytest.mark.parametrize("threads", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("shift", [0, 1])
def test_results_for_any_threads_and_alignment(baked: Artifact, threads: int, shift: int) -> None:
    call = Call(sample.Library(baked.path))
    size = call.library["workspace_size"](0, threads)
    memory = np.zeros(size + 4096, np.uint8)
    assert call.run(threads=threads, workspace=memory.ctypes.data + shift, workspace_size=size) == 0
    assert call.right()
    assert not memory[size + shift :].any()


def test_ten_thousand_threads_are_clamped(baked: Artifact) -> None:
    call = Call(sample.Library(baked.path))
    size = call.library["workspace_size"](0, 10_000)
    assert size <= 70 * (sample.SCRATCH + 64)  # 70 tiles
    workspace = np.zeros(size, np.uint8)
    changed = {"threads": 10_000, "workspace": workspace.ctypes.data, "workspace_size": size}
    assert call.run(**changed) == 0
    assert call.right()


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_open_batch(baked: Artifact, batch: int) -> None:
    call = Call(sample.Library(baked.path), batch)
    assert call.run(shape=1, batch=batch, threads=1) == 0
    assert call.right()


def test_an_empty_batch_needs_no_buffers(baked: Artifact) -> None:
    call = Call(sample.Library(baked.path), 0)
    assert call.run(shape=1, batch=0, input=None, output=None, workspace=None) == 0


def test_the_workspace_does_not_grow_with_an_open_batch(baked: Artifact) -> None:
    library = sample.Library(baked.path)
    assert library["workspace_size"](1, 3) == 3 * sample.SCRATCH + 64
    assert library["workspace_size"](0, 3) == library["workspace_size"](1, 3)
    assert [library["workspace_size"](*bad) for bad in ((-1, 1), (2, 1), (0, -1))] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["baked", "external"])
def test_packed_weights(kind: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(kind)
    call = Call(sample.Library(artifact.path))
    kernel, bias = sample.weights()
    size = call.library["packed_weights_size"]()
    assert size == sample.PACKED_BYTES
    packed = np.full(size + GUARD, 0x5A, np.uint8)
    pack = call.library["pack_weights"]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (kernel, bias, packed)]
    assert pack(*pointers) == 0
    assert packed[:size].tobytes() == sample.packed()
    assert (packed[size:] == 0x5A).all()
    assert call.run(weights=packed.ctypes.data) == 0
    assert call.right()


def test_misuse_of_pack_weights(baked: Artifact) -> None:
    pack = sample.Library(baked.path)["pack_weights"]
    kernel, bias = sample.weights()
    packed = np.full(sample.PACKED_BYTES, 0x5A, np.uint8)
    good = [kernel.ctypes.data, bias.ctypes.data, packed.ctypes.data]
    for i, name in enumerate(("ERROR_NULL_KERNEL", "ERROR_NULL_BIAS", "ERROR_NULL_PACKED")):
        for wrong, code in ((None, name), (good[i] + 2, "ERROR_WEIGHTS_ALIGNMENT")):
            pointers = [*good]
            pointers[i] = wrong
            assert pack(*(ctypes.c_void_p(p) for p in pointers)) == CODES[code]
    assert (packed == 0x5A).all()


def test_the_rest_of_the_interface(baked: Artifact) -> None:
    library = sample.Library(baked.path)
    sizes = [sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS]
    assert library["shapes"]() == 2
    for function in ("input_shape", "output_shape"):
        assert library[function](0)[:5] == [2, *sizes]
        assert library[function](1)[:5] == [-1, *sizes]
        assert not library[function](2)
        assert not library[function](-1)
    assert library["abi_version"]() == 1
    assert library["manifest"]().decode() == replace(baked.manifest, files=None).to_json()
    texts = [library.text(code) for code in range(len(ERRORS))]
    assert len(set(texts)) == len(ERRORS)
    assert library.text(-1) == library.text(len(ERRORS)) == "unknown error code"


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
    "avx512bf16": "avx512_bf16", "avx512bitalg": "avx512_bitalg", "sahf": "lahf_lm",
    "avx512vpopcntdq": "avx512_vpopcntdq", "avx512fp16": "avx512_fp16",
    "avx512vp2intersect": "avx512_vp2intersect",
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
    assert [b.feature for b in features.bits(["fma", "x87", "-avx512f"], "x86_64-linux-gnu")] == [
        "fma"
    ]


def _nm(*arguments: str | Path) -> list[str]:
    result = subprocess.run(
        ["nm", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return [line for line in result.stdout.splitlines() if line and not line.endswith(":")]


needs_binutils = pytest.mark.skipif(
    not (shutil.which("nm") and shutil.which("readelf")), reason="needs nm and readelf (binutils)"
)
WEAK_OF_C = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def check_symbols(artifact: Artifact) -> None:
    """What holds for the libraries of every artifact."""
    name = artifact.manifest.name
    public = {f"{name}_{function}" for function in PUBLIC}
    shared, static = (artifact.path / f"lib{name}.{suffix}" for suffix in ("so", "a"))
    for arguments in (("-D", "--defined-only", shared), ("-g", "--defined-only", static)):
        assert {line.split()[-1] for line in _nm(*arguments)} == public
    symbols = {line.split()[-1].partition("@")[0] for line in _nm(static) + _nm("-D", shared)}
    assert not [symbol for symbol in symbols if "tvm" in symbol.lower()]
    undefined = {line.split()[-1].partition("@")[0] for line in _nm("-u", static)}
    assert not [symbol for symbol in undefined if re.match(r"_Unwind|_ZN|__.*[dst]f\d?$", symbol)]
    text = subprocess.run(
        ["readelf", "-dlW", str(shared)], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", text))
    assert all(re.match(r"(libc|libm|libpthread|ld-linux.*)\.so", library) for library in needed)
    sections = subprocess.run(
        ["readelf", "-SW", str(static)], capture_output=True, text=True, check=True
    )
    assert not sections.stderr
    assert not re.search(r"tvm|\.debug|\.comment", sections.stdout.replace(str(static), ""))
    assert "TEXTREL" not in text
    assert "RPATH" not in text
    assert "RUNPATH" not in text
    assert "BIND_NOW" in text
    assert "GNU_RELRO" in text
    assert re.search(r"GNU_STACK.* RW ", text)


@needs_binutils
@pytest.mark.parametrize("kind", ["baked", "external"])
def test_symbols(kind: str, request: pytest.FixtureRequest) -> None:
    check_symbols(request.getfixturevalue(kind))


def test_the_c_library_is_all_it_needs(baked: Artifact) -> None:
    if shutil.which("ldd") is None:
        pytest.skip("needs ldd")
    text = subprocess.run(["ldd", baked.library], capture_output=True, text=True, check=True).stdout
    names = {Path(line.split()[0]).name.split(".so")[0] for line in text.splitlines()}
    assert names <= {"linux-vdso", "libc", "libm", "libpthread", "ld-linux-x86-64"} | {
        name for name in names if name.startswith(("ld-linux", "ld-musl"))
    }


@pytest.mark.parametrize("static", [False, True], ids=["so", "a"])
@pytest.mark.parametrize("mode", ["guard", "state", "nest"])
def test_driver(baked: Artifact, tmp_path: Path, mode: str, static: bool) -> None:
    program = c_driver.driver(baked, tmp_path, static=static)
    assert "good" in c_driver.run(program, mode, 1, 4)


def test_errno_is_kept_where_libm_sets_it(tmp_path: Path) -> None:
    artifact = link(sample.parts(tmp_path, flags=("-DEXPF",)), tmp_path / "out")
    assert "good" in c_driver.run(c_driver.driver(artifact, tmp_path), "state", 1, 4)


def test_weights_and_scratch_are_aligned_for_vectors(tmp_path: Path) -> None:
    artifact = link(sample.parts(tmp_path, flags=("-DALIGNED=64",)), tmp_path / "out")
    call = Call(sample.Library(artifact.path))
    assert call.run(threads=3) == 0
    assert call.right()


def test_external_weights_between_guard_pages(external: Artifact, tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(sample.packed())
    program = c_driver.driver(external, tmp_path)
    assert "good" in c_driver.run(program, "guard", 1, 4, tmp_path / "packed")


@pytest.mark.parametrize("suffix", ["so", "a"])
def test_two_artifacts_in_one_program_share_a_pool(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "out"
    for name in ("first", "second"):
        link(sample.parts(tmp_path, name), out)
    program = c_driver.compile_c(
        tmp_path / "two",
        f"-I{out}",
        c_driver.C_SOURCES / "two.c",
        *(out / f"lib{name}.{suffix}" for name in ("first", "second")),
        f"-Wl,-rpath,{out}",
        *c_driver.TAIL,
    )
    assert "good" in c_driver.run(program)


def test_the_header_is_c99_and_cplusplus(baked: Artifact, tmp_path: Path) -> None:
    text = '#include "up1.h"\n#include "up1.h"\nint main(void) { return up1_shapes() != 2; }\n'
    for suffix, compiler, standard in (("c", "cc", "c99"), ("cpp", "c++", "c++11")):
        if shutil.which(compiler) is None:
            continue
        (tmp_path / f"main.{suffix}").write_text(text)
        command = [compiler, f"-std={standard}", "-pedantic-errors", "-Wall", "-Wextra", "-Werror",
                   f"-I{baked.path}", str(tmp_path / f"main.{suffix}"), str(baked.library),
                   f"-Wl,-rpath,{baked.path}", "-o", str(tmp_path / "main")]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert subprocess.run([tmp_path / "main"], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="musl-gcc is not installed")
def test_static_library_in_a_static_musl_program(baked: Artifact, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(
        '#include "up1.h"\n#include <stdio.h>\n'
        "static float x[3360], y[3360]; static char workspace[4096];\n"
        "int main(void) { up1_args a = {.size = sizeof a};\n"
        "a.input = x; a.output = y; a.threads = 4;\n"
        "a.workspace = workspace; a.workspace_size = sizeof workspace;\n"
        'return up1_run(&a) == 0 && y[0] != 0 ? puts("good") < 0 : 1; }\n'
    )
    program = c_driver.compile_c(
        tmp_path / "main",
        "-static",
        f"-I{baked.path}",
        tmp_path / "main.c",
        baked.path / "libup1.a",
        "-lm",
        cc="musl-gcc",
    )
    assert "good" in c_driver.run(program)


def test_without_threads_nothing_of_pthread_is_needed(tmp_path: Path) -> None:
    link_module = pytest.importorskip("tvmconv.codegen.link")
    parts = sample.parts(tmp_path)
    link_module.write_sources(parts, tmp_path)
    flags = ["-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-DNO_THREADS"]
    toolchain.find().run([*flags, "-c", "entry.c", "-o", "serial.o"], tmp_path)
    if shutil.which("nm"):
        undefined = {line.split()[-1] for line in _nm("-u", tmp_path / "serial.o")}
        assert undefined == {
            "__errno_location", "up1_kernel_0_0", "up1_pack", "up1_blob_manifest",
            "up1_blob_weights",
        } | (undefined & {"memset"})  # fmt: skip


@pytest.mark.parametrize("tool", ["pkg-config", "cmake"])
def test_build_systems_find_it(baked: Artifact, tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    main = '#include "up1.h"\nint main(void) { return up1_shapes() != 2; }\n'
    (tmp_path / "main.c").write_text(main)
    if tool == "pkg-config":
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", str(baked.path / "up1.pc")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        program = c_driver.compile_c(
            tmp_path / "main", tmp_path / "main.c", *flags, f"-Wl,-rpath,{baked.path}"
        )
        programs = [program]
    else:
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.13)\nproject(p C)\n"
            f'set(up1_DIR "{baked.path}")\nfind_package(up1 0.1 REQUIRED CONFIG)\n'
            "add_executable(a main.c)\ntarget_link_libraries(a up1::up1)\n"
            "add_executable(b main.c)\ntarget_link_libraries(b up1::static)\n"
        )
        for command in (["cmake", "-S", ".", "-B", "b"], ["cmake", "--build", "b"]):
            result = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, result.stdout + result.stderr
        programs = [tmp_path / "b" / "a", tmp_path / "b" / "b"]
    for program in programs:
        assert subprocess.run([program], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_example_links_both_ways(baked: Artifact, tmp_path: Path, checkout: Path) -> None:
    for name in ("main.c", "Makefile"):
        shutil.copy(checkout / "examples" / "c" / name, tmp_path)
    command = ["make", "-s", "LAYER=up1", f"DIR={baked.path}", "CFLAGS=-O1 -Wall -Wextra -Werror"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    x = np.arange(3360, dtype=np.float32).reshape(2, 5, 7, 6, 8)
    (tmp_path / "x").write_bytes(x.tobytes())
    for program in ("main-shared", "main-static"):
        text = c_driver.run(tmp_path / program, tmp_path / "x", tmp_path / "y")
        assert "output 2 x 5 x 7 x 6 x 8" in text
        y = np.frombuffer((tmp_path / "y").read_bytes(), np.float32).reshape(x.shape)
        np.testing.assert_array_equal(y, sample.expected(x))


@needs_binutils
@pytest.mark.parametrize("name", ["a", "x" * 13, "x" * 14, "x" * 60, "input", "output", "pool"])
def test_names_of_any_length_and_kind(tmp_path: Path, name: str) -> None:
    artifact = link(sample.parts(tmp_path, name), tmp_path / "out")
    check_symbols(artifact)
    assert "good" in c_driver.run(c_driver.driver(artifact, tmp_path, static=True), "nest", 1, 3)
