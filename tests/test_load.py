"""Loading an artifact from Python: what is found, and what is refused before its code runs."""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_library as sample

from tvmconv.artifact import Artifact
from tvmconv.codegen import link
from tvmconv.errors import ArtifactError, ConfigError, TvmconvError
from tvmconv.runtime import image
from tvmconv.runtime.library import load

FIXED = (2, sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("original")
    return link(sample.parts(folder), folder / "out")


@pytest.fixture
def baked(original: Artifact, tmp_path: Path) -> Artifact:
    """A copy that a test may damage."""
    return replace(original, path=Path(shutil.copytree(original.path, tmp_path / "out")))


def random(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(batch, *FIXED[1:])).astype(np.float32)


def refused(call: Callable[[], object], kind: type[TvmconvError] = ArtifactError) -> str:
    with pytest.raises(kind) as raised:
        call()
    message = str(raised.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", ["out", "out/up1.json", "out/libup1.so"])
def test_every_way_to_name_it(baked: Artifact, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(baked.path.parent)
    np.testing.assert_array_equal(load(path)(random()), sample.expected(random()))
    np.testing.assert_array_equal(load(Path(path))(random()), sample.expected(random()))


@pytest.mark.parametrize("given", [None, 0, 3, np.int64(3), True])
def test_right_threads(baked: Artifact, given: Any) -> None:
    layer = load(baked.path, threads=given)
    assert layer.threads == int(given or 0)
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))


@pytest.mark.parametrize("threads", [-1, 1025, 1 << 40, 1.5, "2"])
def test_wrong_threads(baked: Artifact, threads: Any) -> None:
    message = refused(lambda: load(baked.path, threads=threads), ConfigError)
    assert f"Received: threads={threads!r}" in message


def test_a_layer_outlives_its_folder(tmp_path: Path) -> None:
    layer = link(sample.parts(tmp_path), tmp_path / "out").load()
    shutil.rmtree(tmp_path / "out")
    gc.collect()
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))


def test_a_rebuilt_artifact_is_another_layer(tmp_path: Path) -> None:
    before = link(sample.parts(tmp_path), tmp_path / "out").load()
    parts = sample.parts(tmp_path, batches=(3,))
    after = link(parts, tmp_path / "out").load()
    assert (before.input_shape[0], after.input_shape[0]) == (2, 3)
    for layer, batch in ((before, 2), (after, 3)):
        np.testing.assert_array_equal(layer(random(batch)), sample.expected(random(batch)))


ALONE = """
import sys
for name in ("tvm", "tvm_ffi", "keras", "tensorflow", "h5py", "ml_dtypes", "rich"):
    sys.modules[name] = None
import numpy as np
import tvmconv
y = tvmconv.load(sys.argv[1])(np.load(sys.argv[2]))
np.save(sys.argv[3], y)
"""


def test_numpy_alone_is_enough(baked: Artifact, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("x.npy", "y.npy")]
    np.save(files[0], random())
    subprocess.run([sys.executable, "-c", ALONE, str(baked.path), *files], check=True, timeout=600)
    np.testing.assert_array_equal(np.load(files[1]), sample.expected(random()))


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path: Path, other: bytes) -> None:
    path.write_bytes(other)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-folder": (shutil.rmtree, "cannot be read: No such file"),
    "empty-folder": (lambda p: [f.unlink() for f in p.iterdir()], "holds no artifact"),
    "no-manifest": (lambda p: (p / "up1.json").unlink(), "holds no artifact"),
    "no-library": (lambda p: (p / "libup1.so").unlink(), "libup1.so cannot be read: No such file"),
    "empty-library": (lambda p: truncate(p / "libup1.so", 0), "is no shared library"),
    "text": (lambda p: (p / "libup1.so").write_text("GROUP ( libc.so.6 )"), "no shared library"),
    "object": (lambda p: shutil.copy(p / "libup1.a", p / "libup1.so"), "is no shared library"),
    "program": (lambda p: shutil.copy(sys.executable, p / "libup1.so"), "libup1.so"),
    "cut-in-header": (lambda p: truncate(p / "libup1.so", 40), "is damaged: it is cut after 40"),
    "cut-in-table": (lambda p: truncate(p / "libup1.so", 100), "is damaged: it is cut after 100"),
    "cut": (lambda p: truncate(p / "libup1.so", 9000), "is damaged: it is cut after 9000"),
    "flipped": (lambda p: flip(p / "libup1.so"), "damaged or another build's: its SHA-256 is"),
    "folder": (lambda p: ((p / "libup1.so").unlink(), (p / "libup1.so").mkdir()), "Is a direct"),
    "version": (
        lambda p: edit(p, abi_version=2),
        "has interface version 2, this is version 1; compile the layer again",
    ),
    "manifest": (lambda p: edit(p, algorithm="toom-cook"), "libup1.so does not belong to up1.json"),
    "shapes": (lambda p: edit(p, output_shapes=[[2, 5, 7, 6, 9]] * 2), "does not belong to"),
    "cpu": (lambda p: edit(p, target={"triple": "vax-linux-gnu"}), "is for vax-linux-gnu, this is"),
    "system": (
        lambda p: edit(p, target={"triple": f"{platform.machine()}-apple-macosx11"}),
        "apple-macosx11, this is",
    ),
    "no-triple": (lambda p: edit(p, target={}), "is for an unknown machine"),
}  # fmt: skip


def edit(folder: Path, **changed: Any) -> None:
    """Change entries of the manifest, as somebody who knows the format would."""
    values = json.loads((folder / "up1.json").read_text())
    (folder / "up1.json").write_text(json.dumps(values | changed))


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_before_any_code_runs(baked: Artifact, case: str) -> None:
    damage, text = DAMAGE[case]
    damage(baked.path)
    assert text in refused(lambda: load(baked.path))


def test_no_cut_library_ends_the_process(baked: Artifact) -> None:
    whole = baked.library.read_bytes()
    for size in range(0, len(whole), 997):
        baked.library.write_bytes(whole[:size])
        assert "libup1.so" in refused(lambda: load(baked.path))


def test_large_libraries_are_not_hashed(baked: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(baked.path, files={**(baked.manifest.files or {}), "libup1.so": "0" * 64})
    refused(lambda: load(baked.path))
    monkeypatch.setattr(image, "_HASHED_BYTES", baked.library.stat().st_size - 1)
    np.testing.assert_array_equal(load(baked.path)(random()), sample.expected(random()))


def test_a_library_of_another_build(baked: Artifact, tmp_path: Path) -> None:
    other = link(sample.parts(tmp_path, batches=(3,)), tmp_path / "other")
    shutil.copy(other.library, baked.library)
    assert "another build's" in refused(lambda: load(baked.path))
    edit(baked.path, files={**(baked.manifest.files or {}), **(other.manifest.files or {})})
    assert "the manifest inside is another one" in refused(lambda: load(baked.path))


def test_a_foreign_library(baked: Artifact, tmp_path: Path) -> None:
    other = link(sample.parts(tmp_path, name="down"), tmp_path / "other")
    shutil.copy(other.library, baked.library)
    digest = hashlib.sha256(baked.library.read_bytes()).hexdigest()
    edit(baked.path, files={**(baked.manifest.files or {}), "libup1.so": digest})
    assert "it lacks up1_" in refused(lambda: load(baked.path))


def test_the_hash_that_was_asked_for(baked: Artifact) -> None:
    digest = hashlib.sha256(baked.library.read_bytes()).hexdigest()
    for given in (digest, digest.upper(), f" {digest}\n"):
        np.testing.assert_array_equal(
            load(baked.path, sha256=given)(random()), sample.expected(random())
        )
    wrong: list[Any] = [digest[:-1] + "g", digest[:12], "", 5, bytes.fromhex(digest)]
    for given in wrong:
        message = refused(lambda given=given: load(baked.path, sha256=given))
        assert f"has the SHA-256 {digest}, expected" in message


def test_several_artifacts_in_one_folder(baked: Artifact, tmp_path: Path) -> None:
    link(sample.parts(tmp_path, name="up2"), baked.path)
    assert "give the path of one of: up1.json, up2.json" in refused(lambda: load(baked.path))
    for name in ("up1.json", "libup2.so"):
        np.testing.assert_array_equal(load(baked.path / name)(random()), sample.expected(random()))


MISSING = {"x86_64": "tbm", "aarch64": "sve-b16b16"}.get(platform.machine(), "")


@pytest.mark.skipif(not MISSING, reason="this architecture is not checked at run time")
def test_a_processor_that_lacks_a_feature(tmp_path: Path) -> None:
    for batch in (2, -1):
        parts = sample.parts(tmp_path, features=(MISSING,), batches=(batch,))
        made = link(parts, tmp_path / f"out{batch}")
        assert f"lacks {MISSING}," in refused(made.load)


def test_costs_of_loading(baked: Artifact) -> None:
    # The quickest of a few: the machine may be busy.
    times = []
    for _ in range(10):
        start = time.perf_counter()
        load(baked.path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05
