"""nvcc: found or missed with advice, every architecture really inside, the same bytes twice."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import struct
from pathlib import Path

import pytest
from cuda_samples import needs_nvcc

import tvmconv
from tvmconv import emulation
from tvmconv.codegen import runner, toolchain
from tvmconv.codegen.cuda import build, nvcc
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.cuda_devices import ARCHITECTURES, DEFAULT, architectures
from tvmconv.errors import BuildError, ConfigError, TargetError
from tvmconv.schedules import cuda as rules

LAYER = LayerConfig(20, 3, strides=2, padding="same", activation="gelu")


def workload(config: LayerConfig = LAYER) -> Workload:
    return Workload.of(config, (None, 4, 5, 6, 8))


@needs_nvcc
def test_a_fat_binary_holds_every_architecture_and_ptx() -> None:
    targets = architectures(DEFAULT)
    work = workload()
    code = build.generate("up", [work], [rules.decide(work, targets)], targets)
    inside = nvcc.contents(code.fatbin)
    assert inside.count((1, targets[-1].number)) == 1
    assert [number for kind, number in inside if kind == 2] == [one.number for one in targets]
    assert code.architectures == DEFAULT
    assert len(code.fatbin) < 600_000


@needs_nvcc
def test_two_builds_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work, targets = workload(), architectures(("sm_80", "sm_90"))
    first = build.generate("up", [work], [rules.decide(work, targets)], targets)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "--use_fast_math -lineinfo")
    monkeypatch.setattr("tempfile.tempdir", None)
    second = build.generate("up", [work], [rules.decide(work, targets)], targets)
    assert first.fatbin == second.fatbin
    assert first.source == second.source
    assert str(tmp_path).encode() not in second.fatbin


@needs_nvcc
def test_an_empty_output_has_no_launch() -> None:
    work = Workload.of(LayerConfig(2, 1), (1, 0, 2, 2, 3))
    targets = architectures(("sm_80",))
    code = build.generate("up", [work], [rules.decide(work, targets)], targets)
    assert code.shapes[0].launches == ()


@needs_nvcc
def test_source_that_is_wrong_is_one_line() -> None:
    with pytest.raises(BuildError, match=r"nvcc failed: .*error") as caught:
        nvcc.find().build("this is no C;", architectures(("sm_80",)))
    assert "\n" not in str(caught.value)


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_leaves_out_an_architecture_is_noticed(tmp_path: Path) -> None:
    entry = struct.pack("<HHIQ", 2, 0x101, 64, 8) + b"\0" * 12 + struct.pack("<I", 80) + b"\0" * 32
    image = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entry) + 8) + entry + b"\0" * 8
    (tmp_path / "image").write_bytes(image)
    assert nvcc.contents(image) == [(2, 80)]
    fake = nvcc.Nvcc((script(tmp_path, f"cp {tmp_path}/image kernel.fatbin"),), "13.0")
    with pytest.raises(BuildError, match="left out the code for sm_90"):
        fake.build("", architectures(("sm_80", "sm_90")))


@pytest.mark.parametrize("image", [b"", b"\x7fELF" + b"\0" * 60, b"P\xedU\xba", b"P\xedU\xba" * 8])
def test_what_is_no_fat_binary(image: bytes) -> None:
    with pytest.raises(BuildError, match="no fat binary"):
        nvcc.contents(image)


def test_no_compiler_names_the_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _self: False)
    for key in ("NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"not found.*'tvmconv\[cuda\]'.*nvidia-cuda-nvcc"):
        nvcc.find()


def test_a_compiler_that_is_too_old_or_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = script(tmp_path, 'echo "Cuda compilation tools, release 12.4, V12.4.131"')
    monkeypatch.setenv("NVCC", old)
    with pytest.raises(BuildError, match=r"is CUDA 12\.4; this version needs CUDA 13"):
        nvcc.find()
    monkeypatch.setenv("NVCC", f"{old}-missing")
    with pytest.raises(BuildError, match="does not run"):
        nvcc.find()
    monkeypatch.setenv("NVCC", "'")
    with pytest.raises(BuildError, match="is not a command"):
        nvcc.find()


def test_architectures() -> None:
    assert [one.name for one in architectures(())] == list(DEFAULT)
    assert [one.name for one in architectures(("sm_90", "sm_80", "sm_90"))] == ["sm_80", "sm_90"]
    for name, device in (("sm_72", "Xavier"), ("sm_62", "TX2"), ("sm_53", "Nano")):
        with pytest.raises(TargetError, match=f"no longer builds for {name}.*{device}.*CPU target"):
            architectures((name,))
    with pytest.raises(TargetError, match="did you mean sm_80"):
        architectures(("sm80",))
    with pytest.raises(TargetError, match="unknown CUDA architecture 'x'; known are sm_75"):
        architectures(("x",))


def test_occupancy() -> None:
    ampere = ARCHITECTURES["sm_80"]
    assert ampere.occupancy(256, 32, 0) == 1
    assert ampere.occupancy(256, 128, 0) == 0.25
    assert ampere.occupancy(256, 32, 80 * 1024) == 256 * 2 / 2048
    small = dataclasses.replace(ampere, registers=1024)
    assert small.occupancy(256, 128, 0) == 0


#: Threads, registers and shared memory of a block; how many a multiprocessor holds.
BLOCKS = {
    "sm_75": {(64, 185, 16896): 3, (256, 64, 0): 4, (128, 144, 0): 3, (96, 144, 0): 4,
              (64, 32, 1000): 16, (256, 32, 32768): 2, (256, 32, 32769): 1},
    "sm_80": {(64, 144, 0): 6, (96, 113, 0): 5, (128, 129, 20000): 3, (256, 32, 0): 8,
              (32, 32, 5120): 27, (128, 205, 65536): 2, (640, 96, 0): 1, (640, 98, 0): 0},
    "sm_86": {(64, 167, 16896): 5, (128, 205, 65536): 1, (32, 32, 0): 16, (128, 32, 102400): 0},
    "sm_89": {(64, 167, 16896): 5, (32, 32, 0): 24, (64, 189, 16896): 4},
    "sm_90": {(64, 167, 16896): 6, (128, 209, 65536): 2, (32, 32, 0): 32, (256, 119, 25600): 2,
              (1024, 65, 0): 0, (192, 81, 0): 3, (128, 32, 232449): 0},
    "sm_120": {(64, 189, 16896): 4, (64, 165, 16896): 5, (128, 242, 65536): 1, (32, 40, 0): 24},
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_a_multiprocessor(name: str) -> None:
    """What NVIDIA's cuda_occupancy.h gives for the same kernels (CUDA 13.0)."""
    one = ARCHITECTURES[name]
    for (threads, registers, shared), blocks in BLOCKS[name].items():
        found = one.occupancy(threads, registers, shared)
        assert found == blocks * threads / one.threads, (threads, registers, shared)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_most_registers_is_the_last_number_that_serves(name: str) -> None:
    one = ARCHITECTURES[name]
    for warps, blocks in itertools.product((1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 6, 8)):
        threads = 32 * warps
        most, wanted = one.most_registers(threads, blocks), blocks * threads / one.threads
        if wanted > 1:
            continue
        assert one.occupancy(threads, most, 0) >= wanted
        assert most == 255 or one.occupancy(threads, most + 1, 0) < wanted


@needs_nvcc
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_bfloat16"])
@pytest.mark.parametrize("channels", [16, 18, 20])
def test_half_width_layers_go_to_tensor_cores_and_compile(dtype: str, channels: int) -> None:
    work = Workload.of(LayerConfig(32, 2, strides=2, dtype=dtype), (None, 4, 4, 4, channels))
    targets = architectures(("sm_80",))
    tiling = rules.decide(work, targets)
    assert tiling.form == "mma"
    code = build.generate("up", [work], [tiling], targets)
    assert f"tensor_multiply_{dtype.removeprefix('mixed_')}<" in code.source
    both = architectures(("sm_75", "sm_80"))
    turing = rules.decide(work, both)
    assert turing.form == ("wmma" if dtype == "float16" else "gemm")
    source = build.generate("up", [work], [turing], both).source
    assert ("nvcuda::wmma::mma_sync" in source) == (turing.form == "wmma")


@needs_nvcc
def test_a_cpu_version_for_another_machine(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(6, 3, 2, name="up")
    target = "cuda:sm_87|jetson-orin-cpu"
    try:
        toolchain.find_for("aarch64-linux-gnu")
        toolchain.find_static("aarch64-linux-gnu")
    except BuildError as exc:
        pytest.skip(str(exc))
    made = tvmconv.compile(layer, (1, 2, 3, 4, 5), target=target, output=tmp_path)
    assert made.manifest.target["triple"] == "aarch64-linux-gnu"
    assert made.manifest.target["cuda"]["architectures"] == ["sm_87"]
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user)")
    report = emulation.verify(made.path)
    assert report.good and "largest error" in report.findings[-1].detail


@needs_nvcc
def test_a_runner_needs_a_cpu_version(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(6, 3, 2, name="up")
    made = tvmconv.compile(layer, (1, 2, 3, 4, 5), target="cuda:sm_87", output=tmp_path)
    with pytest.raises(ConfigError, match="'up' has code for CUDA devices only"):
        runner.of(made)
