"""Folders written whole or not at all, verification, reproducible bytes."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import c_driver
import pytest
import sample_library as sample

from tvmconv import artifact
from tvmconv.artifact import Artifact
from tvmconv.codegen import link, toolchain
from tvmconv.errors import ArtifactError, BuildError

Snapshot = dict[str, tuple[bytes, int]]


@pytest.fixture
def built(tmp_path: Path) -> Artifact:
    return link(sample.parts(tmp_path), tmp_path / "out")


def snapshot(folder: Path) -> Snapshot:
    """Content and mode of every file below a folder, hidden ones included."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mode)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


# Writing


def test_the_folder_holds_what_the_design_says(built: Artifact) -> None:
    files = {"libup1.so", "libup1.a", "up1.h", "up1.hpp", "up1.pc", "up1-config.cmake",
             "up1-config-version.cmake", "up1.spdx.json"}  # fmt: skip
    assert set(snapshot(built.path)) == files | {"up1.json"}
    assert set(built.manifest.files or ()) == files


@pytest.mark.parametrize(("umask", "library", "header"), [(0o022, 0o755, 0o644),
                                                          (0o077, 0o700, 0o600)])  # fmt: skip
def test_the_umask_is_respected(tmp_path: Path, umask: int, library: int, header: int) -> None:
    before = os.umask(umask)
    try:
        artifact.write(tmp_path / "out", _text(baked=True), _files(b""))
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "libup1.so").stat().st_mode & 0o777 == library
    assert (tmp_path / "out" / "up1.h").stat().st_mode & 0o777 == header


def test_two_builds_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = sample.parts(tmp_path)
    first = link(parts, tmp_path / "first")
    elsewhere = tmp_path / "a-much-longer-name-of-a-folder-for-temporary-files"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.chdir(elsewhere)
    second = link(parts, tmp_path / "second" / "deep")
    assert snapshot(first.path) == snapshot(second.path)
    for content, _ in snapshot(first.path).values():
        assert str(tmp_path).encode() not in content
        assert b"tvmconv-link-" not in content
    assert not list(elsewhere.iterdir())


def test_a_library_without_weights_is_small(tmp_path: Path) -> None:
    made = link(sample.parts(tmp_path, baked=False), tmp_path / "out")
    assert made.library.stat().st_size < 40_000  # the run time alone; kernels come on top


def test_only_files_of_the_same_artifact_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    link(sample.parts(tmp_path, "other"), out)
    link(sample.parts(tmp_path), out)
    before = snapshot(out)
    link(sample.parts(tmp_path, baked=False), out)
    after = snapshot(out)
    assert set(after) == set(before)
    different = {name for name in before if before[name] != after[name]}
    assert different == {"libup1.so", "libup1.a", "up1.h", "up1.spdx.json", "up1.json"}


@pytest.mark.parametrize("name", ["up1.json", "up1.h", "libup1.so"])
def test_foreign_files_of_the_same_name_stay(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"module": "keras.layers"}')
    before = snapshot(out)
    with pytest.raises(ArtifactError, match=f"{name} exists and does not belong"):
        link(sample.parts(tmp_path), out)
    assert snapshot(out) == before


def test_an_artifact_of_another_version_may_be_replaced(built: Artifact, tmp_path: Path) -> None:
    file = built.path / "up1.json"
    file.write_text(file.read_text().replace('"abi_version": 1', '"abi_version": 7'))
    link(sample.parts(tmp_path), built.path)
    assert artifact.verify(built.path).good


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "existing"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()],
                         ids=["full", "interrupt"])  # fmt: skip
def test_a_failure_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, fresh: bool, error: BaseException
) -> None:
    out = tmp_path / "parent" / "out"
    if not fresh:
        artifact.write(out, _text(baked=True), _files(b"old"))
    before = snapshot(tmp_path)
    left, real = at, Path.replace

    def replace_or_fail(source: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise error
        return real(source, target)

    monkeypatch.setattr(Path, "replace", replace_or_fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ArtifactError
    with pytest.raises(expected):
        artifact.write(out, _text(baked=False), _files(b"new"))
    assert snapshot(tmp_path) == before
    assert (tmp_path / "parent").exists() is not fresh


def _text(*, baked: bool) -> str:
    return sample.manifest("up1", [(2, 3, 4, 5, 6)], baked=baked).to_json()


def _files(content: bytes) -> dict[str, bytes]:
    return {name: content for name in ("libup1.so", "libup1.a", "up1.h", "up1.pc", "x1", "x2")}


@pytest.mark.parametrize("case", ["below-a-file", "a-file", "kernel", "too-long"])
def test_folders_that_cannot_be_written(tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("")
    folder = {"below-a-file": tmp_path / "file" / "out", "a-file": tmp_path / "file",
              "kernel": Path("/proc/out"), "too-long": tmp_path / ("x" * 300)}[case]  # fmt: skip
    before = snapshot(tmp_path)
    with pytest.raises(ArtifactError) as error:
        artifact.write(folder, _text(baked=True), _files(b""))
    assert "cannot be written" in one_line(error)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("below", ["", "out"])
def test_a_read_only_folder(below: str) -> None:
    # Nothing is read-only for root, so root becomes nobody first; pytest's own folders are closed
    # to others.
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact.write(folder, _text(baked=True), _files(b"old"))
        folder.chmod(0o555)
        program = (
            "import os, sys, tempfile\n"  # nobody may be unable to read root's own Python
            "from tvmconv import artifact, errors\n"
            f"text = open({str(folder / 'up1.json')!r}).read()\n"
            "if os.geteuid() == 0: os.setgid(65534), os.setuid(65534)\n"
            f"try: artifact.write({str(folder / below)!r}, text, {{'up1.h': b'new'}})\n"
            "except errors.ArtifactError as e: print(e)\n"
        )
        before = snapshot(folder)
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        folder.chmod(0o755)
        assert "cannot be written" in result.stdout, result.stderr
        assert result.stdout.count("\n") == 1
        assert snapshot(folder) == before


# Reading and verifying


@pytest.mark.parametrize("which", [".", "up1.json", "libup1.so"])
def test_reading(built: Artifact, which: str) -> None:
    assert artifact.read(built.path / which) == built
    assert artifact.read(str(built.path / which)).library == built.path / "libup1.so"


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "missing.json", tmp_path / "libx.so"):
        with pytest.raises(ArtifactError) as error:
            artifact.read(path)
        assert str(tmp_path) in one_line(error)


def test_a_folder_with_several_artifacts(built: Artifact, tmp_path: Path) -> None:
    link(sample.parts(tmp_path, "up2"), built.path)
    with pytest.raises(ArtifactError, match=r"several artifacts.*up1\.json, up2\.json"):
        artifact.read(built.path)
    assert artifact.read(built.path / "up2.json").manifest.name == "up2"


def test_a_damaged_manifest_is_told_from_a_missing_one(built: Artifact) -> None:
    file = built.path / "up1.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ArtifactError, match=r"up1\.json is damaged"):
        artifact.read(built.path)


def test_another_version_says_both_and_what_to_do(built: Artifact) -> None:
    file = built.path / "up1.json"
    file.write_text(file.read_text().replace('"abi_version": 1', '"abi_version": 7'))
    with pytest.raises(ArtifactError, match="version 7, this is version 1; compile the layer"):
        artifact.read(built.path)


def test_renamed_files_are_refused(built: Artifact) -> None:
    for old, new in (("up1.json", "up9.json"), ("libup1.so", "libup9.so")):
        (built.path / old).rename(built.path / new)
    with pytest.raises(ArtifactError, match=r"up9\.json is the manifest of 'up1'"):
        artifact.read(built.path)


def test_verify_is_content(built: Artifact) -> None:
    report = artifact.verify(built.path)
    assert report.good
    subjects = {finding.subject for finding in report.findings}
    assert set(built.manifest.files or ()) < subjects
    assert {"libup1.so: manifest", "libup1.a: manifest"} < subjects


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "library": (lambda p: _flip(p / "libup1.so"), {"libup1.so"}),
    "header": (lambda p: _flip(p / "up1.h"), {"up1.h"}),
    "truncated": (lambda p: (p / "libup1.a").write_bytes(b"!<arch>\n"),
                  {"libup1.a", "libup1.a: manifest"}),
    "missing": (lambda p: (p / "up1.pc").unlink(), {"up1.pc"}),
    "a-folder": (lambda p: ((p / "up1.pc").unlink(), (p / "up1.pc").mkdir()), {"up1.pc"}),
    "manifest": (lambda p: (p / "up1.json").write_text(
        (p / "up1.json").read_text().replace('"nonfinite": "exact"', '"nonfinite": "tile"')),
                 {"libup1.so: manifest", "libup1.a: manifest"}),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_verify_finds_damage(built: Artifact, case: str) -> None:
    damage, expected = DAMAGE[case]
    damage(built.path)
    report = artifact.verify(built.path)
    assert not report.good
    assert {f.subject for f in report.findings if not f.good} == expected


def test_verify_finds_files_that_the_manifest_forgot(built: Artifact) -> None:
    files = dict(built.manifest.files or {})
    del files["libup1.so"]
    (built.path / "up1.json").write_text(replace(built.manifest, files=files).to_json())
    report = artifact.verify(built.path)
    assert [f.subject for f in report.findings if not f.good] == ["libup1.so"]


def test_verify_does_not_load_the_library(built: Artifact) -> None:
    program = (
        "import sys; from tvmconv import artifact\n"
        f"assert artifact.verify({str(built.path)!r}).good\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'libup1' not in maps\n"
        "assert not {'tvm', 'numpy', 'h5py', 'keras'} & set(sys.modules), 'too much'\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


# The C compiler


def test_no_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildError) as error:
        toolchain.find()
    line = one_line(error)
    assert "apt install gcc" in line
    assert "pip install ziglang" in line


@pytest.mark.parametrize("cc", ["no-such-compiler", "false", "'"])
def test_a_wrong_cc_is_named(monkeypatch: pytest.MonkeyPatch, cc: str) -> None:
    monkeypatch.setenv("CC", cc)
    with pytest.raises(BuildError) as error:
        toolchain.find()
    assert "CC=" in one_line(error)


def test_cc_may_have_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "cc -g0 -pipe")
    found = toolchain.find()
    assert found.command == ("cc", "-g0", "-pipe")
    assert artifact.verify(link(sample.parts(tmp_path), tmp_path / "out").path).good


def test_object_code_of_another_processor_is_refused(tmp_path: Path) -> None:
    parts = sample.parts(tmp_path)
    code = bytearray(parts.variants[0].object_code)
    code[18:20] = b"\xf3\x00"  # RISC-V
    variant = replace(parts.variants[0], object_code=bytes(code))
    with pytest.raises(BuildError, match="does not build for"):
        link(replace(parts, variants=(variant,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_kernel_is_a_build_error(tmp_path: Path) -> None:
    parts = sample.parts(tmp_path)
    wrong = replace(parts, pack_symbol="up1_nowhere")
    with pytest.raises(BuildError, match="up1_nowhere"):
        link(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="the ziglang wheel is not installed"
)
def test_zig_links_too(tmp_path: Path) -> None:
    zig = toolchain.Toolchain((sys.executable, "-m", "ziglang", "cc"), "zig")
    made = link(sample.parts(tmp_path), tmp_path / "out", cc=zig)
    assert artifact.verify(made.path).good
    assert "good" in c_driver.run(c_driver.driver(made, tmp_path), "guard", 1, 3)
