"""Files from strangers: refused in one line, quickly, in little memory, touching nothing else."""

from __future__ import annotations

import ctypes
import io
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from golden_files import GOLDEN

import tvmconv.errors
from tvmconv import weights
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError, WeightsError

HOSTILE = GOLDEN / "hostile"
INDEX = json.loads((HOSTILE / "index.json").read_text(encoding="utf-8"))
ROOT = Path(tvmconv.errors.__file__).parents[1]
MAX_CPU_S = 1.0
MAX_MEMORY_KB = 300_000
CONFIG = {"filters": 2, "kernel_size": 1}

# Reads files as a user's program would, each in a process of its own that begins with all modules
# imported, and reports what happened and what was touched.
CHILD = """
import codecs, json, os, resource, signal, sys
import numpy, h5py, ml_dtypes
from tvmconv import weights
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError, WeightsError
config = LayerConfig.from_keras(json.loads(sys.argv[1]))
codecs.lookup("cp437")  # of zipfile, a module of its own
for path in sys.argv[2:]:
    child = os.fork()
    if not child:
        break
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"{path} ended the process: {status}")
else:
    os._exit(0)
signal.alarm(300)
touched = []
def hook(event, args):
    if event == "open":
        touched.append(["open", str(args[0]), str(args[1])])
    elif event == "import":
        touched.append([event, str(args[0])])
    elif event.split(".")[0] in ("exec", "compile", "os", "subprocess", "socket", "marshal",
                                 "pickle", "shutil", "tempfile", "ctypes", "code"):
        touched.append([event, ""])
sys.addaudithook(hook)
outcomes = []
for call in (
    lambda: sum(len(e.load()) > 0 for e in weights.read(path).layers.values()),
    lambda: len(weights.inspect(path)),
    lambda: len(weights.find_weights(path, config)),
):
    try:
        outcomes.append(["load", call()])
    except (ConfigError, WeightsError) as error:
        outcomes.append(["refuse", str(error)])
done = list(touched)
usage = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: that begins with what the parent had when it started this process.
with open("/proc/self/status") as status:
    memory_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"outcomes": outcomes, "touched": done, "memory_kb": memory_kb,
                  "cpu_s": usage.ru_utime + usage.ru_stime}), flush=True)
os._exit(0)
"""


def run_children(paths: list[Path]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(CONFIG), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    """Each hostile file read in a process of its own."""
    before = sorted((p.name, p.stat().st_size) for p in HOSTILE.iterdir())
    found = run_children([HOSTILE / entry["file"] for entry in INDEX])
    results = {entry["file"]: result for entry, result in zip(INDEX, found, strict=True)}
    assert sorted((p.name, p.stat().st_size) for p in HOSTILE.iterdir()) == before
    return results


@pytest.mark.parametrize("entry", INDEX, ids=[entry["file"] for entry in INDEX])
def test_verdict(entry: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    result = results[entry["file"]]
    (verdict, detail), inspected, _ = result["outcomes"]
    assert verdict == entry["verdict"], detail
    if verdict == "load":
        assert detail == entry["layers"]
        assert inspected == ["load", entry["layers"]]
    for word, text in result["outcomes"]:
        if word == "refuse":
            assert "\n" not in text and text.isprintable()
            assert str(HOSTILE / entry["file"]) in text
            assert len(text) > len(str(HOSTILE / entry["file"])) + 10
    assert result["cpu_s"] < MAX_CPU_S
    assert result["memory_kb"] < MAX_MEMORY_KB


@pytest.mark.parametrize("entry", INDEX, ids=[entry["file"] for entry in INDEX])
def test_nothing_else_is_touched(entry: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    allowed = {str(HOSTILE / entry["file"])}
    if entry["file"] == "ok_shard.weights.json":
        allowed.add(str(HOSTILE / "ok_control.weights.h5"))
    for event, *about in results[entry["file"]]["touched"]:
        assert event in ("open", "import"), f"{event} {about}"
        if event == "open":
            assert about[0] in allowed and about[1] in ("r", "rb")
        else:
            assert about[0].split(".")[0] in sys.stdlib_module_names | {"tvmconv", "numpy", "h5py"}


def test_every_hostile_file_is_in_the_index() -> None:
    assert {p.name for p in HOSTILE.iterdir()} == {e["file"] for e in INDEX} | {"index.json"}
    assert {e["verdict"] for e in INDEX} == {"load", "refuse"}


def read_all(path: Path) -> None:
    for call in (
        lambda: [entry.load() for entry in weights.read(path).layers.values()],
        lambda: weights.inspect(path),
        lambda: weights.find_weights(path, LayerConfig.from_keras(CONFIG)),
    ):
        try:
            call()
        except (ConfigError, WeightsError) as error:
            assert str(path) in str(error) and "\n" not in str(error)


CONTROLS = [entry["file"] for entry in INDEX if entry["file"].startswith("ok_")]


@pytest.mark.parametrize("name", CONTROLS)
def test_damaged_files_end_in_a_refusal(name: str, tmp_path: Path) -> None:
    data = (HOSTILE / name).read_bytes()
    random_numbers = random.Random(name)
    for shard in HOSTILE.glob("ok_*.h5"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    path = tmp_path / name
    for count in range(150):
        damaged = bytearray(data)
        if count % 5 == 0:
            del damaged[random_numbers.randrange(len(damaged)) :]
        for _ in range(random_numbers.choice([0, 1, 1, 2, 8]) if count % 5 == 0 else 1):
            if damaged:
                at = random_numbers.randrange(len(damaged))
                damaged[at] = random_numbers.choice(
                    [damaged[at] ^ (1 << random_numbers.randrange(8)), 0, 255]
                )
        path.write_bytes(damaged)
        read_all(path)


def test_damaged_heaps_end_in_a_refusal(tmp_path: Path) -> None:
    # The HDF5 library loops on a free object of size 0, and takes 4 GB for a length of 32 bits.
    data = (HOSTILE / "ok_control.h5").read_bytes()
    heap = data.index(b"GCOL")
    path = tmp_path / "x.h5"
    for at in range(heap, heap + 64):
        for value in (0, 255):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            read_all(path)
    address = struct.pack("<Q", heap)
    refused = 0
    at = data.index(address)
    while at >= 0:
        path.write_bytes(data[: at - 4] + b"\xff" * 4 + data[at:])
        try:
            weights.read(path)
        except WeightsError as error:
            assert "damaged" in str(error)
            refused += 1
        at = data.find(address, at + 1)
    assert refused >= 3  # the version, the model, the weights' names; others are not looked at


def keras_file(path: Path, hdf5: bytes, config: bytes | None = None) -> Path:
    with zipfile.ZipFile(HOSTILE / "ok_baseline.keras") as whole:
        text = config if config is not None else whole.read("config.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", text)
        archive.writestr("model.weights.h5", hdf5)
    return path


def hdf5_file(fill: Callable[[Any], None]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file.create_group("layers/conv3d_transpose/vars")
        group["1"] = np.zeros(2, np.float32)
        fill(group)
    return buffer.getvalue()


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """A file, and a question: has anybody opened it since the last time (inotify)?"""
    if not sys.platform.startswith("linux"):
        pytest.skip("asks the Linux kernel who opens a file")
    path = tmp_path / "victim.h5"
    with h5py.File(path, "w") as file:
        file["k"] = np.zeros((1, 1, 1, 2, 3), np.float32)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0
    assert libc.inotify_add_watch(watch, os.fsencode(path), 0x20 | 0x01) >= 0  # open, access

    def opened() -> bool:
        try:
            return bool(os.read(watch, 1 << 16))
        except BlockingIOError:
            return False

    yield path, opened
    os.close(watch)


@pytest.mark.parametrize("kind", ["virtual", "unlimited", "external", "link", "group"])
def test_no_second_file_is_opened(
    kind: str, tmp_path: Path, victim: tuple[Path, Callable[[], bool]]
) -> None:
    other, opened = victim
    shape = (1, 1, 1, 2, 3)

    def fill(group: Any) -> None:
        if kind == "virtual":
            layout = h5py.VirtualLayout(shape, np.float32)
            layout[...] = h5py.VirtualSource(str(other), "k", shape)
            group.create_virtual_dataset("0", layout)
        elif kind == "unlimited":
            free = (None, *shape[1:])
            layout = h5py.VirtualLayout(shape, np.float32, maxshape=free)
            source = h5py.VirtualSource(str(other), "k", shape, maxshape=free)
            rows = slice(0, h5py.h5s.UNLIMITED)
            layout[rows, :, :, :, :] = source[rows, :, :, :, :]
            group.create_virtual_dataset("0", layout)
        elif kind == "external":
            group.create_dataset("0", shape, np.float32, external=[(str(other), 0, 24)])
        elif kind == "link":
            group["0"] = h5py.ExternalLink(str(other), "k")
        else:
            group["0"] = np.zeros(shape, np.float32)
            group.file["other"] = h5py.ExternalLink(str(other), "/")

    data = hdf5_file(fill)
    plain = tmp_path / "x.weights.h5"
    plain.write_bytes(data)
    archive = keras_file(tmp_path / "x.keras", data)
    opened()
    read_all(plain)
    read_all(archive)
    assert not opened()
    with pytest.raises(WeightsError):
        weights.read(plain)
    if kind != "group":  # beside the layer it is never reached
        with pytest.raises(WeightsError, match=r"virtual|external"):
            weights.read(archive)
    other.read_bytes()
    assert opened()


def test_bombs_inside_hdf5(tmp_path: Path) -> None:
    def chunk_bomb(group: Any) -> None:
        made = group.create_dataset(
            "0", (1, 1, 1, 2, 3), np.float32, chunks=(1, 1, 1, 2, 3), compression="gzip"
        )
        import zlib

        made.id.write_direct_chunk((0,) * 5, zlib.compress(bytes(50_000_000)))

    def huge(group: Any) -> None:
        group.create_dataset("0", (512, 512, 512, 2, 3), np.float32, chunks=True)

    def huge_chunk(group: Any) -> None:
        made = group.create_dataset(
            "0", (1, 1, 1, 2, 3), np.float32, chunks=(64, 64, 64, 2, 3), maxshape=(None,) * 5
        )
        made[...] = 1

    for fill, match in ((chunk_bomb, "longer than|stored in"), (huge, "declares")):
        path = keras_file(tmp_path / "x.keras", hdf5_file(fill))
        with pytest.raises(WeightsError, match=match):
            weights.read(path).layers["c"].load()
    path = keras_file(tmp_path / "x.keras", hdf5_file(huge_chunk))
    with pytest.raises(WeightsError, match="chunks of"):
        weights.read(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"\xff{}", "UTF-8"),
        (b'{"a": 1e999}', "not finite"),
        (b'{"a": ' + b"1" * 5000 + b"}", "5000 digits"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b"[" + b"0," * 1_100_000 + b"0]", "values"),
        (b'"' + b'\\"' * 200_000, "not JSON"),
        (b" " * (9 << 20), "at most"),
        (b'{"class_name": "Functional", "config": []}', "not an object"),
        (b'{"class_name": 3, "config": {}}', "class_name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_json(text: bytes, match: str, tmp_path: Path) -> None:
    path = keras_file(tmp_path / "x.keras", b"", text)
    with pytest.raises(WeightsError, match=match) as caught:
        weights.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_deep_models_and_twins(tmp_path: Path) -> None:
    with zipfile.ZipFile(HOSTILE / "ok_baseline.keras") as whole:
        top = json.loads(whole.read("config.json"))
    deep = top["config"]["layers"][0]
    for _ in range(34):
        deep = {"class_name": "Sequential", "config": {"name": "s", "layers": [deep]}}
    path = keras_file(tmp_path / "x.keras", b"", json.dumps(deep).encode())
    with pytest.raises(WeightsError, match="nested deeper than 32"):
        weights.read(path)
    top["config"]["layers"] *= 2
    path = keras_file(tmp_path / "x.keras", b"", json.dumps(top).encode())
    with pytest.raises(WeightsError, match="two layers called 'c'"):
        weights.read(path)


def test_links_instead_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with zipfile.ZipFile(HOSTILE / "ok_baseline.keras") as whole:
        (folder / "config.json").write_bytes(whole.read("config.json"))
        (tmp_path / "real.h5").write_bytes(whole.read("model.weights.h5"))
    (folder / "model.weights.h5").symlink_to(tmp_path / "real.h5")
    with pytest.raises(WeightsError, match="is a link"):
        weights.read(folder)
    (tmp_path / "shard.weights.h5").symlink_to(HOSTILE / "ok_control.weights.h5")
    index = tmp_path / "m.weights.json"
    index.write_text(json.dumps({"weight_map": {"/layers/c/vars": "shard.weights.h5"}}))
    with pytest.raises(WeightsError, match="not a regular file"):
        weights.read(index)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.keras")
        with pytest.raises(WeightsError, match="regular file"):
            weights.read(tmp_path / "pipe.keras")


def test_messages_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    with zipfile.ZipFile(HOSTILE / "ok_baseline.keras") as whole:
        top = json.loads(whole.read("config.json"))
        hdf5 = whole.read("model.weights.h5")
    top["config"]["layers"][0]["config"]["name"] = "a\x1b[2J\nb" + "c" * 5000
    top["config"]["layers"][0]["config"]["padding"] = "\x1b[31m" + "x" * 5000
    path = keras_file(tmp_path / "x.keras", hdf5, json.dumps(top).encode())
    with pytest.raises(WeightsError) as caught:
        weights.read(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
