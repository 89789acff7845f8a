"""Golden cases for other processors in an emulator: one program a target, all cases in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import c_driver
import numpy as np
import pytest
from golden_files import Case, assert_close, cases

import tvmconv
from tvmconv import cli, emulation, generation, reference, schedules, targets
from tvmconv.codegen import toolchain
from tvmconv.codegen.link import write_sources
from tvmconv.compute.workload import Workload
from tvmconv.emulation import riscv_cpu
from tvmconv.errors import BuildError, DeviceError
from tvmconv.policies import numpy_dtype


@dataclass(frozen=True)
class Machine:
    """A target, and the emulated processors that run it."""

    target: str
    qemu: str
    cpus: tuple[str, ...]


MACHINES = [
    Machine("cortex-a53", "qemu-aarch64", ("cortex-a53",)),
    Machine("cortex-a76", "qemu-aarch64", ("max,sve=off",)),
    Machine(
        "neoverse-v1", "qemu-aarch64",
        ("max,sve128=on", "max,sve128=on,sve256=on", "max,sve128=on,sve256=on,sve512=on"),
    ),
    Machine("armv7-neon", "qemu-arm", ("cortex-a7", "max")),
    Machine("riscv64-rva22", "qemu-riscv64", (riscv_cpu(0),)),
    Machine(
        "riscv64-rvv", "qemu-riscv64",
        (riscv_cpu(128), riscv_cpu(256)),
    ),
    Machine("x86-64-v2", "qemu-x86_64", ("Nehalem",)),
    Machine("x86-64-v3", "qemu-x86_64", ("max",)),
]  # fmt: skip
IDS = [machine.target for machine in MACHINES]


@cache
def subset(count: int) -> tuple[Case, ...]:
    """Cases of every dtype and kind, small ones first; no code of theirs is large."""
    kinds: dict[tuple[str, str], list[Case]] = {}
    for case in cases():
        if case.entry["compare"] != "nan_superset" and case.arrays["y"].size:
            kinds.setdefault((case.config.compute_dtype, case.stratum), []).append(case)
    rows = [sorted(row, key=lambda case: case.arrays["y"].size) for row in kinds.values()]
    dtypes = sorted({case.config.compute_dtype for row in rows for case in row})
    rows.sort(key=lambda row: (row[0].stratum, dtypes.index(row[0].config.compute_dtype)))
    found: list[Case] = []
    for place in range(max(map(len, rows))):
        found += [row[place] for row in rows if len(row) > place]
    first = [next(case for case in found if case.config.compute_dtype == dtype) for dtype in dtypes]
    return tuple({case.id: case for case in [*first, *found]}.values())[:count]


def linker(target: str) -> toolchain.Toolchain:
    triple = targets.resolve(target)[0].triple
    try:
        return toolchain.find_static(triple)
    except BuildError as exc:
        pytest.skip(str(exc))


def write_cases(target: str, chosen: tuple[Case, ...], folder: Path) -> list[str]:
    """Compile the cases, each into a folder of its own, and write their inputs and ``cases.h``.

    Returns the files to link.
    """
    (on,) = targets.resolve(target)
    files, rows = [], []
    for number, case in enumerate(chosen):
        name = f"case{number}"
        work = Workload.of(case.config, case.x.shape)
        tilings = schedules.decide_all([work], on, algorithm="auto")
        made = generation.generate(name, 0, [work], on, tilings)
        packed = made.pack(case.arrays["kernel"], case.bias)
        parts = generation.assemble(name, [made], packed, "{}", baked=True, threads=0)
        part = folder / name
        part.mkdir()
        files += [f"{name}/{file}" for file in write_sources(parts, part)]
        blobs = (part / "blobs.s").read_text().replace('.incbin "', f'.incbin "{name}/')
        (part / "blobs.s").write_text(blobs)
        x = np.ascontiguousarray(case.x, numpy_dtype(work.input_dtype))
        (folder / f"{name}.x").write_bytes(x.tobytes())
        size = case.arrays["y"].size * numpy_dtype(case.entry["output_dtype"]).itemsize
        rows.append((name, x.nbytes, size))
    declared = "".join(f"GOLDEN({name})\n" for name, *_ in rows)
    table = "".join(f"    GOLDEN_CASE({name}, {x}, {y}),\n" for name, x, y in rows)
    text = f"{declared}static const golden_case all[] = {{\n{table}}};\n"
    (folder / "cases.h").write_text(text)
    return files


def check_outputs(chosen: tuple[Case, ...], folder: Path) -> None:
    """What the program wrote is right; removes it."""
    for number, case in enumerate(chosen):
        dtype = numpy_dtype(case.entry["output_dtype"])
        found = np.fromfile(folder / f"case{number}.y", np.uint8).view(dtype)
        assert_close(found.reshape(case.entry["output_shape"]), case)
        (folder / f"case{number}.y").unlink()


def program(machine: Machine, chosen: tuple[Case, ...], folder: Path) -> None:
    """Compile the cases and link them into ``folder/program``."""
    cc = linker(machine.target)
    files = write_cases(machine.target, chosen, folder)
    cpu = [f"-mcpu={cc.zig_cpu}"] if cc.is_zig else []
    cc.run(
        ["-O1", "-D_GNU_SOURCE", "-static", "-w", *cpu, "-I.", "-o", "program",
         str(c_driver.C_SOURCES / "golden.c"), *files, "-lm", "-lpthread"],
        folder,
    )  # fmt: skip


def check(machine: Machine, chosen: tuple[Case, ...], folder: Path) -> None:
    if shutil.which(machine.qemu) is None:
        pytest.skip(f"{machine.qemu} is not installed (Debian: qemu-user)")
    program(machine, chosen, folder)
    label = targets.resolve(machine.target)[0].label
    # QEMU before 8.1 does not tell a program what its RISC-V processor has.
    asked = {"TVMCONV_CPU": f"{label}!"} if machine.qemu == "qemu-riscv64" else {}
    for cpu in machine.cpus:
        done = subprocess.run(
            [machine.qemu, "-cpu", cpu, str(folder / "program")],
            cwd=folder, env={**os.environ, **asked}, capture_output=True, text=True,
            timeout=3600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (cpu, done.returncode, done.stderr)
        check_outputs(chosen, folder)


def test_the_subset_has_every_dtype() -> None:
    assert {case.config.compute_dtype for case in subset(8)} == {
        case.config.compute_dtype for case in cases()
    }
    assert len(subset(48)) == 48


@pytest.mark.parametrize("machine", MACHINES, ids=IDS)
def test_golden_cases(machine: Machine, tmp_path: Path) -> None:
    check(machine, subset(8), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("machine", MACHINES, ids=IDS)
def test_many_golden_cases(machine: Machine, tmp_path: Path) -> None:
    check(machine, subset(48), tmp_path)


def test_a_processor_that_lacks_something_says_so(tmp_path: Path) -> None:
    machine = Machine("x86-64-v3", "qemu-x86_64", ("Nehalem",))
    if shutil.which(machine.qemu) is None:
        pytest.skip(f"{machine.qemu} is not installed (Debian: qemu-user)")
    program(machine, subset(1), tmp_path)
    done = subprocess.run(
        [machine.qemu, "-cpu", "Nehalem", str(tmp_path / "program")],
        cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "the processor lacks" in done.stderr


needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed (Debian: qemu-user)"
)


CHOICE = r"""
#include <stdio.h>
#include "up.h"
static float x[up_INPUT_ELEMENTS], y[up_OUTPUT_ELEMENTS];
static char workspace[up_WORKSPACE_SIZE];
int main(void)
{
    up_args a = {.size = sizeof a, .input = x, .output = y, .threads = 1};
    a.workspace = workspace;
    a.workspace_size = sizeof workspace;
    for (int i = 0; i < up_INPUT_ELEMENTS; i++)
        x[i] = (float)(i % 7 - 3);
    puts(up_error_text(up_run(&a)));
    for (int i = 0; i < up_OUTPUT_ELEMENTS; i++)
        printf("%.9g\n", y[i]);
    return 0;
}
"""
#: Three processors of one library, and emulated ones of which each can run one more of them.
CHOSEN = {"cortex-a53": "cortex-a53", "max,sve=off": "cortex-a76", "max": "neoverse-v1"}


@needs_qemu
def test_one_library_chooses_among_three_for_aarch64(tmp_path: Path) -> None:
    cc = linker("cortex-a53")
    made = tvmconv.Conv3DTranspose(6, 3, 2, name="up")
    shape = (1, 2, 3, 4, 5)
    built = tvmconv.compile(made, shape, target="|".join(CHOSEN.values()), output=tmp_path / "up")
    (tmp_path / "main.c").write_text(CHOICE)
    cpu = [f"-mcpu={cc.zig_cpu}"] if cc.is_zig else []
    library = str(built.path / "libup.a")
    flags = [*cpu, "-std=c99", "-static", f"-I{built.path}", "-o", "program"]
    cc.run([*flags, "main.c", library, "-lm", "-lpthread"], tmp_path)
    x = (np.arange(np.prod(shape)) % 7 - 3).astype(np.float32).reshape(shape)
    expected = reference.conv3d_transpose(made.config, x, *made.get_weights())
    for model, label in CHOSEN.items():
        done = subprocess.run(
            ["qemu-aarch64", "-cpu", model, tmp_path / "program"],
            env={name: value for name, value in os.environ.items() if name != "TVMCONV_CPU"},
            capture_output=True, text=True, timeout=1800, check=True,
        )  # fmt: skip
        text, *values = done.stdout.split("\n")[:-1]
        assert text == f"done, with the code for {label}"
        assert np.abs(np.array(values, float) - expected.ravel()).max() < 1e-4


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tvmconv.artifact.Artifact:
    """A layer for aarch64."""
    layer = tvmconv.Conv3DTranspose(6, 3, 2, name="up")
    triple = "aarch64-linux-gnu"
    try:
        toolchain.find_for(triple)
        toolchain.find_static(triple)
    except BuildError as exc:
        pytest.skip(str(exc))
    return tvmconv.compile(
        layer, (1, 2, 3, 4, 5), target=f"{triple}:cortex-a76", output=tmp_path_factory.mktemp("up")
    )


@needs_qemu
def test_run_and_verify_with_emulate(artifact: tvmconv.artifact.Artifact, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((1, 2, 3, 4, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    files = [str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]
    assert cli.main(["run", str(artifact.path), *files, "--emulate"]) == 0
    with emulation.emulated(artifact) as layer:
        assert np.array_equal(layer(x), np.load(tmp_path / "y.npy"))
    report = emulation.verify(artifact.path)
    assert report.good
    assert "largest error" in report.findings[-1].detail
    plain = tvmconv.verify(artifact.path)
    assert "not computed here" in plain.findings[-1].detail


def test_a_missing_emulator_names_the_package(
    artifact: tvmconv.artifact.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="apt install qemu-user"):
        emulation.Emulator(artifact, tmp_path)


def test_no_emulator_for_other_systems(artifact: tvmconv.artifact.Artifact, tmp_path: Path) -> None:
    target = {**artifact.manifest.target, "triple": "wasm32-unknown-unknown"}
    other = replace(artifact, manifest=replace(artifact.manifest, target=target))
    with pytest.raises(DeviceError, match="no emulator runs programs for wasm32"):
        emulation.Emulator(other, tmp_path)
