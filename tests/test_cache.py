"""The compile cache: what is compiled again, what is not, and what is never loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmconv
from tvmconv import cache, compiler
from tvmconv.config import LayerConfig
from tvmconv.errors import ArtifactError

#: Cheap to compile, and large enough to be wrong.
LAYER: dict[str, Any] = {"filters": 3, "kernel_size": 2, "strides": 2}
SHAPE = (1, 2, 2, 2, 3)
OTHER = (1, 2, 2, 3, 3)

#: A process that calls the layer, prints the sum of the output and whether TVM was needed.
CALL = f"""
import sys
import numpy as np
import tvmconv
layer = tvmconv.Conv3DTranspose(**{LAYER}, kernel_initializer="ones")
y = layer(np.ones({SHAPE}, np.float32))
print(float(y.sum()), "tvm" in sys.modules)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this user."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TVMCONV_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a compilation for the cache leaves."""
    folder = tmp_path_factory.mktemp("built")
    layer = tvmconv.Conv3DTranspose(**LAYER)
    options: dict[str, Any] = {"weights": "external", "name": "layer", "output": folder}
    tvmconv.compile(layer, (None, *SHAPE[1:]), **options)
    return folder


@pytest.fixture
def compilations(built: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The input shapes that were compiled; each gets a copy of the same artifact."""
    shapes: list[Any] = []

    def copy(layer: object, shape: object, *, output: Path, **options: object) -> None:
        assert (options["weights"], options["name"]) == ("external", "layer")
        shapes.append(shape)
        shutil.copytree(built, output, dirs_exist_ok=True)

    monkeypatch.setattr(compiler, "compile", copy)
    return shapes


def entry_folders(place: Path) -> list[Path]:
    return sorted(place.glob("layer-*"))


def call(**changes: Any) -> Any:
    return cache.compiled_layer(LayerConfig(**{**LAYER, **changes}), SHAPE)


def test_another_process_compiles_nothing(place: Path) -> None:
    outputs = [
        subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    total = float(np.prod(SHAPE)) * 8 * LAYER["filters"]
    assert [found.stdout for found in outputs] == [f"{total} True\n", f"{total} False\n"]
    assert len(entry_folders(place)) == 1


def test_processes_that_race_all_get_the_layer(place: Path) -> None:
    racing = [
        subprocess.Popen([sys.executable, "-c", CALL], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = [process.communicate()[0].split()[0] for process in racing]
    assert [process.returncode for process in racing] == [0, 0]
    assert len(set(found)) == 1
    assert len(entry_folders(place)) == 1
    assert list(place.glob("building-*")) == []


def test_what_is_compiled_again_and_what_is_not(place: Path, compilations: list[Any]) -> None:
    call()
    for same in ({"name": "up"}, {"kernel_initializer": "zeros"}, {"bias_regularizer": "l2"}):
        call(**same)
    cache.compiled_layer(LayerConfig(**LAYER), (7, *SHAPE[1:]))
    assert compilations == [(None, *SHAPE[1:])]
    for other in ({"activation": "relu"}, {"padding": "same"}, {"dtype": "float16"}):
        call(**other)
    cache.compiled_layer(LayerConfig(**LAYER), SHAPE, algorithm="direct")
    cache.compiled_layer(LayerConfig(**LAYER), OTHER)
    assert len(compilations) == 6
    assert len(entry_folders(place)) == len(cache.entries()) == 6


def test_a_damaged_entry_is_built_again(place: Path, compilations: list[Any]) -> None:
    call()
    (folder,) = entry_folders(place)
    for name in ("liblayer.so", "layer.json"):
        for text in (b"not what it was", b""):
            (folder / name).unlink()  # in place it would end the process that has it mapped
            (folder / name).write_bytes(text)
            call()
    assert len(compilations) == 5


def test_the_least_recently_used_goes_first(
    place: Path, compilations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    activations = ("linear", "relu", "elu")
    for age, activation in enumerate(activations):
        call(activation=activation)
        (new,) = [path for path in entry_folders(place) if time.time() - path.stat().st_mtime < 60]
        os.utime(new, (1e9 + age, 1e9 + age))
    size = cache.entries()[0].bytes
    monkeypatch.setattr(cache, "LIMIT_BYTES", 3 * size)
    call(activation="linear")  # in use again
    call(activation="selu")
    for activation in ("linear", "elu", "selu"):
        call(activation=activation)
    assert len(compilations) == 4
    call(activation="relu")
    assert len(compilations) == 5


def test_one_that_is_larger_than_the_limit_is_kept(
    place: Path, compilations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 1)
    call()
    call()
    assert len(compilations) == len(entry_folders(place)) == 1


def test_what_a_crash_left_is_removed_and_work_is_not(place: Path, compilations: list[Any]) -> None:
    for name in ("building-old", "building-young"):
        (place / name).mkdir(parents=True)
        (place / name / "liblayer.so").write_bytes(b"half")
    os.utime(place / "building-old", (1e9, 1e9))
    call()
    assert [path.name for path in place.glob("building-*")] == ["building-young"]
    assert cache.clear() == 1
    assert [path.name for path in place.iterdir()] == ["building-young"]


def test_a_failure_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiler, "compile", fail)
    with pytest.raises(ArtifactError, match=r"cache folder .* cannot be written: .*No space left"):
        call()
    assert not list(place.glob("layer-*")) + list(place.glob("building-*"))


def test_the_folder_is_private(place: Path) -> None:
    assert cache.folder() == place
    assert place.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_somebody_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(ArtifactError, match="belongs to another user, whose code is not run"):
        cache.folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_an_entry_of_somebody_else(place: Path, compilations: list[Any]) -> None:
    call()
    (folder,) = entry_folders(place)
    os.chown(folder, 12345, -1)
    with pytest.raises(ArtifactError, match="belongs to another user, whose code is not run"):
        call()
    assert folder.is_dir()


def test_without_a_home_the_folder_is_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands in for a home that cannot be written: root may write everywhere else."""
    (tmp_path / "home").write_text("")
    for variable in ("TVMCONV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache.folder() == tmp_path / f"tvmconv-{os.getuid()}"


def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TVMCONV_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ArtifactError, match=r"no cache folder can be used .*set TVMCONV_CACHE"):
        cache.folder()
