"""Artifacts for other systems: what their files are, what they need, what a missing linker says."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import tvmconv
from tvmconv import cli, reference, systems
from tvmconv.artifact import Artifact
from tvmconv.codegen import elf, foreign, toolchain
from tvmconv.codegen.entry import PUBLIC
from tvmconv.devices import DEVICES
from tvmconv.errors import ArtifactError, BuildError, ConfigError, TargetError
from tvmconv.policies import numpy_dtype

HAS_ZIG = toolchain._zig() is not None
needs_zig = pytest.mark.skipif(not HAS_ZIG, reason="the ziglang wheel is not installed")
SHAPE = (1, 2, 3, 4, 5)
TARGETS = {
    "linux": "aarch64-linux-gnu:cortex-a53",
    "macos": "apple-m1",
    "wasm": "wasm32-simd",
    "bare": "cortex-m7",
}


def layer() -> tvmconv.Conv3DTranspose:
    made = tvmconv.Conv3DTranspose(6, 3, 2, activation="sigmoid", name="up")
    made.build(SHAPE)
    return made


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    found, made = {}, layer()
    for kind, target in TARGETS.items():
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = tvmconv.compile(made, SHAPE, target=target, output=folder)
    return found


LIBRARIES = {"linux": "libup.so", "macos": "libup.dylib", "wasm": "up.wasm", "bare": "up.o"}


@needs_zig
@pytest.mark.parametrize("kind", TARGETS)
def test_files(artifacts: dict[str, Artifact], kind: str) -> None:
    artifact = artifacts[kind]
    assert artifact.library.name == LIBRARIES[kind]
    assert {LIBRARIES[kind], "libup.a", "up.h"} <= set(artifact.manifest.files or {})
    assert tvmconv.artifact.read(artifact.library).manifest == artifact.manifest
    report = tvmconv.verify(artifact.path)
    assert report.good, report.findings
    assert "not computed here" in report.findings[-1].detail
    with pytest.raises(ArtifactError, match=r"is for .*, this is"):
        artifact.load()


@needs_zig
@pytest.mark.parametrize("kind", TARGETS)
def test_no_path_of_this_machine_is_in_the_bytes(artifacts: dict[str, Artifact], kind: str) -> None:
    for file in artifacts[kind].path.glob("*up.*"):
        content = file.read_bytes()
        for path in (b"/tmp/", str(Path.home()).encode() + b"/", b"site-packages"):
            assert path not in content, (file.name, path)


@needs_zig
def test_linux_needs_the_c_library_of_2012_and_nothing_else(
    artifacts: dict[str, Artifact],
) -> None:
    image = artifacts["linux"].library.read_bytes()
    assert elf.file_kind(image) == (2, 1, 183)
    versions = {tuple(map(int, one.split(b"."))) for one in
                re.findall(rb"GLIBC_(2\.[0-9.]+)\0", image)}  # fmt: skip
    assert versions
    assert max(versions) <= (2, 17)
    needed = set(re.findall(rb"\0(lib[a-z]+\.so\.[0-9])\0", image))
    assert needed <= {b"libc.so.6", b"libm.so.6", b"libpthread.so.0", b"libdl.so.2"}


@needs_zig
@pytest.mark.parametrize("kind", ["linux", "bare"])
def test_symbols(artifacts: dict[str, Artifact], kind: str) -> None:
    image = (artifacts[kind].path / "libup.a").read_bytes()
    member = image[image.index(b"\x7fELF") :]
    symbols = elf.symbols(member)
    exported = {s.name for s in symbols if s.binding != 0 and s.defined}
    assert exported == {f"up_{public}" for public in PUBLIC}
    undefined = {s.name for s in symbols if s.name and not s.defined}
    if kind == "bare":  # What compilers themselves call.
        assert all(name.startswith(("mem", "__aeabi_")) for name in undefined)
    else:
        assert not {name for name in undefined if "tvm" in name.lower()}


@needs_zig
def test_bare_metal_runs_serially_and_asks_for_no_system(artifacts: dict[str, Artifact]) -> None:
    assert elf.file_kind(artifacts["bare"].library.read_bytes()) == (1, 1, 40)
    assert not list(artifacts["bare"].path.glob("*.pc"))


@needs_zig
def test_mach_o_loads_the_system_library_only(artifacts: dict[str, Artifact]) -> None:
    image = artifacts["macos"].library.read_bytes()
    magic, cpu, _, kind, count, _, _, _ = struct.unpack_from("<IiiIIIII", image)
    assert (magic, cpu, kind) == (0xFEEDFACF, 0x0100000C, 6)  # a dylib for ARM of 64 bits
    at, loads, identity, signed = 32, [], b"", False
    for _ in range(count):
        command, size = struct.unpack_from("<II", image, at)
        if command in (0xC, 0xD, 0x80000018):  # LOAD_DYLIB, ID_DYLIB, LOAD_WEAK_DYLIB
            begin = at + struct.unpack_from("<I", image, at + 8)[0]
            name = image[begin : image.index(b"\0", begin)]
            if command == 0xD:
                identity = name
            else:
                loads.append(name)
        signed = signed or command == 0x1D
        at += size
    assert identity == b"@rpath/libup.dylib"
    assert loads == [b"/usr/lib/libSystem.B.dylib"]
    assert signed
    ours = {name for _, name, kind in foreign._symbols(image) if kind & 0xE and "up_" in name}
    assert ours == {f"_up_{public}" for public in PUBLIC}


WASM = """
const fs = require("fs");
const [file, input, output, size] = process.argv.slice(2);
WebAssembly.instantiate(fs.readFileSync(file), {}).then(({instance}) => {
  const api = instance.exports, memory = api.memory;
  const x = fs.readFileSync(input);
  let top = (api.__heap_base.value + 63) & ~63;
  const take = (n) => { const at = top; top = (top + n + 63) & ~63; return at; };
  const workspaceSize = api.up_workspace_size(0, 0);
  const places = [take(64), take(x.length), take(Number(size)), take(workspaceSize)];
  memory.grow((top >> 16) + 1);
  new Uint8Array(memory.buffer).set(x, places[1]);
  // size, input, output, weights, workspace, its size, threads, shape, batch, parallel_for, context
  const args = new DataView(memory.buffer, places[0], 64);
  [48, places[1], places[2], 0, places[3], workspaceSize].forEach(
    (value, index) => args.setUint32(4 * index, value, true));
  const code = api.up_run(places[0]);
  if (code !== 0) process.exit(code);
  fs.writeFileSync(output, new Uint8Array(memory.buffer, places[2], Number(size)));
});
"""


@needs_zig
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_webassembly_runs_in_node(tmp_path: Path, dtype: str) -> None:
    made = tvmconv.Conv3DTranspose(6, 3, 2, activation="sigmoid", name="up", dtype=dtype)
    artifact = tvmconv.compile(made, SHAPE, target="wasm32-simd", output=tmp_path / "up")
    kind = numpy_dtype(dtype)
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(kind)
    (tmp_path / "x").write_bytes(x.tobytes())
    (tmp_path / "run.cjs").write_text(WASM)
    shape = [int(size or 0) for size in artifact.manifest.output_shapes[0]]
    size = int(np.prod(shape)) * kind.itemsize
    subprocess.run(
        ["node", tmp_path / "run.cjs", artifact.library, tmp_path / "x", tmp_path / "y", str(size)],
        check=True, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    found = np.fromfile(tmp_path / "y", np.uint8).view(kind).reshape(shape).astype(np.float64)
    expected = reference.conv3d_transpose(made.config, x, *made.get_weights())
    tolerance = {"float32": 1e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert np.abs(found - expected).max() < tolerance


def test_without_a_linker_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "_zig", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    for triple in systems.TRIPLES:
        if triple != toolchain._host():
            with pytest.raises(BuildError, match=r"pip install 'tvmconv\[cross\]'") as raised:
                toolchain.find_for(triple)
            assert triple in str(raised.value)


def test_a_dtype_that_the_target_lacks(tmp_path: Path) -> None:
    made = tvmconv.Conv3DTranspose(6, 3, 2, dtype="float16")
    with pytest.raises(TargetError, match=r"no float16 .*; it has float32, bfloat16 and float64"):
        tvmconv.compile(made, SHAPE, target="riscv64-linux-gnu", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_linker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="--cc 'no-such-cc' was not found"):
        toolchain.find_for("aarch64-linux-gnu", "no-such-cc")
    with pytest.raises(BuildError, match="--cc is empty"):
        toolchain.find_for("aarch64-linux-gnu", " ")
    if shutil.which("cc") and toolchain._host() == "x86_64-linux-gnu":
        with pytest.raises(BuildError, match="does not build for riscv64-linux-gnu"):
            tvmconv.compile(
                layer(), SHAPE, target="riscv64-linux-gnu", cc="cc", output=tmp_path / "out"
            )
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cc", ["aarch64-linux-gnu-gcc", "riscv64-linux-gnu-gcc"])
def test_a_toolchain_by_its_name(cc: str, tmp_path: Path) -> None:
    if shutil.which(cc) is None:
        pytest.skip(f"{cc} is not installed (Debian: gcc-{cc.removesuffix('-gcc')})")
    triple = cc.removesuffix("-gcc")
    artifact = tvmconv.compile(layer(), SHAPE, target=triple, cc=cc, output=tmp_path / "out")
    kinds = {"aarch64-linux-gnu": (2, 1, 183), "riscv64-linux-gnu": (2, 1, 243)}
    assert elf.file_kind(artifact.library.read_bytes()) == kinds[triple]
    sbom = json.loads((artifact.path / "up.spdx.json").read_text())
    assert any(cc in package["name"] for package in sbom["packages"])


@pytest.mark.parametrize("target", [TARGETS[kind] for kind in ("macos", "wasm", "bare")])
def test_a_runner_is_for_linux(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "find_for", lambda *_: None)
    with pytest.raises(ConfigError, match="A runner is a program for Linux"):
        tvmconv.compile(layer(), SHAPE, target=target, runner=True, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_zig
@pytest.mark.parametrize("kind", ["macos", "wasm", "bare"])
def test_without_linux_there_is_neither_runner_nor_emulator(
    artifacts: dict[str, Artifact], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(artifacts[kind].path)
    for command, words in (
        (["bench", path, "--device", "ssh:board"], "a runner is a program for Linux"),
        (["verify", path, "--device", "ssh:board"], "a runner is a program for Linux"),
        (["verify", path, "--emulate"], "no emulator runs programs for"),
    ):
        assert cli.main(command) != 0
        error = capsys.readouterr().err
        assert words in error
        assert artifacts[kind].manifest.target["triple"] in error
        assert error.strip().count("\n") == 0


@pytest.mark.parametrize("triple", systems.TRIPLES)
def test_names_of_libraries(triple: str) -> None:
    kind = systems.TRIPLES[triple].kind
    expected = {"linux": "libx.so", "macos": "libx.dylib", "wasm": "x.wasm", "bare": "x.o"}
    assert systems.library_name("x", triple) == expected[kind]


@needs_zig
def test_zig_remembers_nothing_of_an_earlier_artifact(tmp_path: Path) -> None:
    cc = toolchain.find_for("aarch64-linux-musl")
    found = []
    for content in (b"weights of one layer", b"weights of the next"):
        folder = tmp_path / "work"  # a path that was there before, as a temporary one may be
        folder.mkdir()
        (folder / "weights").write_bytes(content)
        (folder / "blobs.s").write_text('.section .rodata,"a"\n.incbin "weights"\n')
        cc.run(["-c", "blobs.s", "-o", "blobs.o"], folder)
        found.append(content in (folder / "blobs.o").read_bytes())
        shutil.rmtree(folder)
    assert found == [True, True]


@needs_zig
@pytest.mark.nightly
@pytest.mark.parametrize("triple", systems.TRIPLES)
def test_every_system_links_the_same_bytes_twice(triple: str, tmp_path: Path) -> None:
    made = layer()
    files = []
    for folder in (tmp_path / "one", tmp_path / "a" / "longer" / "path"):
        tvmconv.compile(made, SHAPE, target=triple, output=folder, name="up")
        files.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert files[0] == files[1]
    assert json.loads(files[0]["up.json"])["target"]["triple"] == triple


@needs_zig
@pytest.mark.nightly
@pytest.mark.parametrize("name", DEVICES)
def test_every_device_of_the_table_is_built_for(name: str, tmp_path: Path) -> None:
    """A layer of a DCGAN's size, whose code for one ARM core of 64 bits is below 64 KB."""
    made = tvmconv.Conv3DTranspose(64, 4, 2, padding="same", name="gan_g4")
    artifact = tvmconv.compile(
        made, (1, 16, 16, 16, 128), target=name, weights="external", output=tmp_path / "out"
    )
    assert artifact.manifest.target["triple"] == DEVICES[name].triple
    if DEVICES[name].triple == "aarch64-linux-gnu":
        assert artifact.library.stat().st_size < 64_000
