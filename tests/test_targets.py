"""Names of targets: what they mean, and that a wrong one is refused instead of falling back."""

from __future__ import annotations

import os
import platform
import re

import pytest
import tvm
from conftest import cpu_features
from tvm.target import codegen

from tvmconv import targets
from tvmconv.codegen.features import bits
from tvmconv.devices import BASELINES, DEVICES
from tvmconv.errors import BuildError, TargetError, TvmconvError
from tvmconv.targets import CpuTarget, resolve, resolve_buildable

X86 = "x86_64-linux-gnu"
x86_only = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="names CPUs of x86-64 as those of this architecture"
)


def one(text: str) -> CpuTarget:
    (found,) = resolve(text)
    return found


def refused(text: str, kind: type[TvmconvError] = TargetError) -> str:
    with pytest.raises(kind) as raised:
        resolve_buildable(text)
    message = str(raised.value)
    assert message
    assert "\n" not in message
    return message


def test_native_is_this_processor() -> None:
    native = targets.native()
    assert native.native
    assert native.name == "native"
    assert native.cpu == tvm.get_global_func("target.llvm_get_system_cpu")()
    assert native.architecture == platform.machine()
    assert native.cores == len(os.sched_getaffinity(0))
    assert 8 << 10 <= native.l1_bytes <= native.l2_bytes <= 1 << 30
    assert resolve_buildable("native") == (native,)


@x86_only
def test_native_vectors_are_what_linux_shows() -> None:
    flags, native = cpu_features(), targets.native()
    expected = (256 if "avx" in flags else 128, 16 if "fma" in flags else 15)
    if {"avx512f", "avx512vl"} <= flags:
        expected = (512, 32)
    assert (native.vector_bits, native.vector_registers) == expected


@x86_only
def test_features_that_a_virtual_machine_hides_are_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = {"avx512f", "avx512vl", "avx512bw", "pku"}
    shown = dict.fromkeys(codegen.llvm_get_cpu_features(target_of("skylake-avx512")), True)
    monkeypatch.setattr(targets, "_this_processor", lambda: ("skylake-avx512", X86))
    monkeypatch.setattr(
        targets, "_host_features", lambda: {**shown, **dict.fromkeys(hidden, False)}
    )
    native = targets.native()
    # Protection keys change no code, and no library looks for them.
    assert set(native.features) == {"-avx512f", "-avx512vl", "-avx512bw"}
    assert (native.vector_bits, native.vector_registers) == (256, 16)
    assert not {"avx512f", "avx512vl", "avx512bw"} & set(native.required_features())
    assert native.fingerprint() != one("skylake-avx512").fingerprint()


def test_what_a_library_for_this_machine_looks_for_is_there() -> None:
    native = targets.native()
    there = targets._host_features()
    checked = [bit.feature for bit in bits(native.required_features(), native.triple)]
    assert checked
    assert [feature for feature in checked if not there.get(feature, True)] == []


def target_of(cpu: str, triple: str = X86) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "mtriple": triple})


@pytest.mark.parametrize("name", [*DEVICES, *BASELINES])
def test_llvm_knows_every_device(name: str) -> None:
    target = one(name)
    assert codegen.llvm_is_valid_cpu(target.cpu, target.triple)
    known = targets._feature_names(target.triple)
    assert [f for f in target.features if f[1:] not in known] == []
    assert tvm.target.Target(target.llvm_target_dict()).kind.name == "llvm"
    assert target.vector_bits in (32, 128, 256, 512)
    assert 0 < target.l1_bytes < target.l2_bytes
    assert target.cores > 0
    # Everything that its code may use can be looked for when a library runs.
    assert isinstance(bits(target.required_features(), target.triple), tuple)
    assert re.fullmatch(r"[\w.-]+", target.fingerprint())


VECTORS = {
    "x86-64-v2": (128, 15), "x86-64-v3": (256, 16), "x86-64-v4": (512, 32), "atom": (128, 9),
    "alderlake-e": (256, 16), "znver4": (512, 32), "sandybridge": (256, 15),
    "raspberry-pi-4": (128, 32), "graviton3": (128, 32), "apple-m1": (128, 32),
    "riscv64-rva22": (32, 32), "riscv64-rvv": (128, 32), "armv7-neon": (128, 14),
    "wasm32-simd": (128, 16), "x86-64-v4-avx512vl": (256, 16), "x86-64-v3-avx": (128, 15),
}  # fmt: skip


@x86_only
@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    target = one(name)
    assert (target.vector_bits, target.vector_registers) == VECTORS[name]


FEATURES = {
    "x86-64-v2+avx2": ("x86-64-v2", ("+avx2",)),
    "x86-64-v2+avx2-popcnt": ("x86-64-v2", ("+avx2", "-popcnt")),
    "x86-64-v4-avx512f": ("x86-64-v4", ("-avx512f",)),
    "znver5+prefer-256-bit-fma": ("znver5", ("+prefer-256-bit", "-fma")),
    " x86-64-v3 +f16c ": ("x86-64-v3", ("+f16c",)),
    "cortex-a76+fp16fml": ("cortex-a76", ("+fp16fml",)),
}


@x86_only
@pytest.mark.parametrize("text", FEATURES)
def test_features_behind_a_name(text: str) -> None:
    target = one(text)
    assert (target.cpu, target.features) == FEATURES[text]
    assert target.llvm_target_dict()["mattr"] == list(target.features)
    for feature in target.features:
        if "prefer" not in feature:
            assert (feature[1:] in target.required_features()) == (feature[0] == "+")


def test_features_change_the_fingerprint_and_their_order_does_not() -> None:
    plain, more = one("x86-64-v2"), one("x86-64-v2+avx2+fma")
    assert plain.fingerprint() == "x86_64-x86-64-v2-128"
    assert more.fingerprint() == one("x86-64-v2+fma+avx2").fingerprint() != plain.fingerprint()


def test_several_targets() -> None:
    assert [target.cpu for target in resolve("x86-64-v3 | x86-64-v2")] == ["x86-64-v3", "x86-64-v2"]


WRONG = {
    "": "the target is empty",
    " ": "the target is empty",
    "native|": "the target is empty",
    "natve": "did you mean 'native'",
    "znver33": "did you mean 'znver3'",
    "x86-64-v9": "did you mean 'x86-64-v",
    "cortex-a77x": "did you mean 'cortex-a77'",
    "spacemit-x66": "did you mean 'spacemit-x60'",
    "cortexa76": "did you mean 'cortex-a76'",
    "raspberrypi5": "did you mean 'raspberry-pi-5'",
    "NATIVE": "unknown target 'NATIVE'",
    "generic": "'generic' would be LLVM's baseline",
    "i686": "unknown target 'i686'",
    "../../x": "unknown target",
    "x86-64-v3\nx": "unknown target",
    "native+": "no CPU feature ''",
    "native+avx12": "no CPU feature 'avx12'; did you mean +avx",
    "native-avx512typo": "no CPU feature 'avx512typo'",
    "x86-64-v3+mcpu=znver5": "no CPU feature 'mcpu=znver5'",
    "cuda:sm_90": "names CUDA devices",
    "cuda:native": "names CUDA devices",
    "native|cuda:sm_90": "names CUDA devices",
}


@x86_only
@pytest.mark.parametrize("text", WRONG, ids=repr)
def test_wrong_names_are_refused_in_one_line(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert WRONG[text] in refused(text)
    # LLVM says nothing of its own: it was not asked to build for a CPU that it does not know.
    assert capfd.readouterr().err == ""


TRIPLED = {
    "aarch64-linux-musl:cortex-a76": ("cortex-a76", "aarch64-linux-musl", ()),
    "aarch64-linux-musl:raspberry-pi-5+fp16fml": (
        "cortex-a76", "aarch64-linux-musl", ("+fp16fml",)),
    "thumbv7em-none-eabihf:cortex-m4": ("cortex-m4", "thumbv7em-none-eabihf", ()),
    "cortex-m7": ("cortex-m7", "thumbv7em-none-eabihf", ()),
    "cortex-a9": ("cortex-a9", "armv7-linux-gnueabihf", ()),
    "aarch64-none-elf": ("generic", "aarch64-none-elf", ()),
}  # fmt: skip


@x86_only
@pytest.mark.parametrize("text", TRIPLED)
def test_systems(text: str) -> None:
    (target,) = resolve_buildable(text)
    assert (target.cpu, target.triple, target.features) == TRIPLED[text]


def test_the_hard_floating_point_interface_is_asked_for() -> None:
    assert one("armv7-neon").llvm_target_dict()["mfloat-abi"] == "hard"


WRONG_SYSTEMS = {
    "aarch64-linx-musl:cortex-a76": "did you mean 'aarch64-linux-musl'",
    "aarch64-linux-musl:cortexa76": "did you mean 'cortex-a76'",
    "aarch64-linux-musl:": "LLVM knows no CPU ''",
    "aarch64-linux-musl:native": "LLVM knows no CPU 'native'",
    "riscv64-linux-musl:cortex-a76": "LLVM knows no CPU 'cortex-a76'",
    "cortex-m7|thumbv7em-none-eabihf:cortex-m4": "no system that a library could ask",
}


@x86_only
@pytest.mark.parametrize("text", WRONG_SYSTEMS)
def test_wrong_systems(text: str) -> None:
    assert WRONG_SYSTEMS[text] in refused(text)


@x86_only
def test_another_cpu_of_this_architecture_can_be_built_for() -> None:
    assert resolve_buildable("x86-64-v3")[0].triple == X86


def test_an_unknown_machine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert "this machine is vax" in refused("native")


def test_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tvm", None)
    assert "pip install 'tvmconv[compile]'" in refused("native", BuildError)


@x86_only
def test_the_cpus_that_are_listed_can_be_named() -> None:
    cpus = targets.known_cpus()
    assert {"x86-64", "x86-64-v3", "znver5", "sapphirerapids"} <= set(cpus)
    assert {one(cpu).cpu for cpu in cpus} == set(cpus)
