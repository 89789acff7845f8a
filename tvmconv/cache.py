"""The compile cache: layers that Python calls compiled, kept on disk for the next process.

An entry is an artifact with external weights and an open batch, in a folder named by a hash of
everything its bytes depend on. It is built beside and renamed into place, so two processes that
race both end with a whole one, and a reader never sees half of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmconv.errors import ArtifactError
from tvmconv.replacement import replacement

if TYPE_CHECKING:
    from tvmconv.config import LayerConfig
    from tvmconv.cuda_target import CudaTarget
    from tvmconv.runtime.library import CompiledLayer
    from tvmconv.targets import CpuTarget

__all__ = ["Entry", "clear", "compiled_layer", "entries", "folder"]

#: Bytes of all entries; the least recently used go first.
LIMIT_BYTES = 1 << 30
#: Parts of a config that no byte of the code depends on.
_TRAINING_ONLY = (
    "name", "trainable", "kernel_initializer", "bias_initializer", "kernel_regularizer",
    "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint",
)  # fmt: skip
_STALE_S = 3600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One cached layer.

    Its key, what it is, its size and when it was last used (seconds since 1970).
    """

    key: str
    name: str
    bytes: int
    used: float


def folder() -> Path:
    """The cache folder, which exists and belongs to this user.

    ``TVMCONV_CACHE``, else the user's cache folder, else (where home is read-only) a private folder
    for temporary files.

    Raises
    ------
    ArtifactError
        The folder belongs to somebody else, or cannot be written.
    """
    asked = os.environ.get("TVMCONV_CACHE")
    choices = [Path(asked)] if asked else [_user_folder(), _temporary_folder()]
    reason = ""
    for choice in choices:
        try:
            choice.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(choice)
            if os.access(choice, os.W_OK | os.X_OK):
                return choice
            reason = f"{choice} is not writable"
        except OSError as exc:
            reason = f"{choice}: {exc.strerror or exc}"
    raise ArtifactError(f"no cache folder can be used ({reason}); set TVMCONV_CACHE to one")


def _check_owner(path: Path) -> None:
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise ArtifactError(
            f"the cache folder {path} belongs to another user, whose code is not run; "
            "set TVMCONV_CACHE to a folder of your own"
        )


def _user_folder() -> Path:
    try:
        import platformdirs
    except ImportError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvmconv"
    return Path(platformdirs.user_cache_dir("tvmconv", appauthor=False))


def _temporary_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"tvmconv-{user}"


def entries() -> list[Entry]:
    """The cached layers, the most recently used first."""
    found = []
    for path in folder().glob("layer-*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            size = sum(file.stat().st_size for file in path.iterdir())
            found.append(Entry(path.name[6:], _title(path), size, path.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Remove all entries; the number of them."""
    removed = 0
    root = folder()
    for path in root.glob("layer-*"):
        shutil.rmtree(path, ignore_errors=True)
        removed += 1
    for path in root.glob("native-*.json"):
        path.unlink(missing_ok=True)
    _remove_stale(root)
    return removed


def compiled_layer(
    config: LayerConfig,
    input_shape: Sequence[int | None],
    *,
    target: str = "native",
    threads: int | None = None,
    algorithm: str = "auto",
    precision: str = "full",
) -> CompiledLayer:
    """The compiled layer for an input shape, from disk or compiled now.

    Its weights are still to be set.

    Raises
    ------
    TvmconvError
        As `tvmconv.compiler.compile`.
    """
    from tvmconv import targets
    from tvmconv.compute.workload import Workload
    from tvmconv.runtime import library
    from tvmconv.tuning import use

    shape = (None, *input_shape[1:])
    root = folder()
    fingerprint = _fingerprint(target, root)
    # What tuning finds later is another entry.
    cores = targets.usable_cores() if target == "native" else None
    work = Workload.of(config, shape)
    # TF32 falls back to full precision where the rules have no use for it.
    records = "|".join(
        use.state(work, one.rpartition(" ")[2], algorithm, None, cores, kind)
        for one in fingerprint.split("|")
        for kind in dict.fromkeys(["full", precision])
    )
    key = _key(config, shape, fingerprint, [algorithm, precision], records)
    place = root / f"layer-{key}"
    for attempt in (1, 2):
        if not place.is_dir():
            _build(place, config, shape, target, algorithm, precision)
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile: loading says so
            _check_owner(place)  # others may write where the user let them
        try:
            layer = library.load(place, threads=threads)
        except ArtifactError:
            # Damaged by a full disk, say: once more, from the start.
            if attempt == 2:
                raise
            _log.warning("the cache entry %s is damaged and built again", place.name)
            shutil.rmtree(place, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            os.utime(place)
        return layer
    raise AssertionError("unreachable")


def _build(
    place: Path,
    config: LayerConfig,
    shape: tuple[int | None, ...],
    target: str,
    algorithm: str,
    precision: str,
) -> None:
    from tvmconv.compiler import compile as compile_layer
    from tvmconv.runtime.layer import Conv3DTranspose

    try:
        work = Path(tempfile.mkdtemp(prefix="building-", dir=place.parent))
    except OSError as exc:
        raise ArtifactError(f"the cache folder {place.parent} cannot be written: {exc}") from exc
    try:
        layer = Conv3DTranspose.from_config(config)
        layer.build(shape)
        compile_layer(
            layer,
            shape,
            target=target,
            algorithm=algorithm,
            precision=precision,
            weights="external",
            name="layer",
            output=work,
        )
        try:
            work.rename(place)
        except OSError:
            # Another process was first, and its entry is as good.
            if not place.is_dir():
                raise
    except OSError as exc:
        raise ArtifactError(f"the cache folder {place.parent} cannot be written: {exc}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _evict(place)


def _evict(keep: Path) -> None:
    """Remove the least recently used entries above the limit, and what crashed processes left."""
    total = 0
    for entry in entries():
        total += entry.bytes
        path = keep.parent / f"layer-{entry.key}"
        if total > LIMIT_BYTES and path != keep:
            shutil.rmtree(path, ignore_errors=True)
    _remove_stale(keep.parent)


def _remove_stale(root: Path) -> None:
    """Remove what processes that ended in a build left; a young one may be at work."""
    for path in root.glob("building-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path, ignore_errors=True)


def _key(
    config: LayerConfig,
    shape: tuple[int | None, ...],
    fingerprint: str,
    options: list[str],
    records: str,
) -> str:
    described = {k: v for k, v in config.get_config().items() if k not in _TRAINING_ONLY}
    parts = [described, list(shape), fingerprint, options, records, _versions(), _sources()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _versions() -> list[str]:
    found = []
    for package in ("tvmconv", "apache-tvm"):
        try:
            found.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            found.append("none")
    return found


@lru_cache(maxsize=1)
def _sources() -> str:
    """A hash of the compiler's own files: edited, they must not find what the old ones built."""
    import tvmconv

    digest = hashlib.sha256()
    roots = [Path(tvmconv.__file__).parent]
    with contextlib.suppress(ImportError):
        from tvmconv import schedules

        roots.append(Path(schedules.__file__).parent)
    for root in roots:
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.c"), *root.rglob("*.h")]):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _fingerprint(target: str, root: Path) -> str:
    """The target's fingerprint.

    Asking LLVM takes a second: the answer for this processor is kept on disk.
    """
    about = hashlib.sha256(f"{target}\0{_processor()}\0{_versions()}\0{_sources()}".encode())
    note = root / f"native-{about.hexdigest()[:16]}.json"
    from tvmconv import cuda_target

    if "cuda:native" in target:  # other devices may be there tomorrow
        return _names(*cuda_target.separate(target))
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads(note.read_text())["fingerprint"])
    found, cuda = cuda_target.separate(target)
    fingerprint = _names(found, cuda)
    described: dict[str, Any] = {
        "fingerprint": fingerprint,
        "targets": [dataclasses.asdict(one) for one in found],
    }
    with contextlib.suppress(OSError), replacement(note) as file:
        file.write(json.dumps(described).encode())
    return fingerprint


def _names(found: Sequence[CpuTarget], cuda: CudaTarget | None) -> str:
    several = [f"{one.triple} {one.fingerprint()}" for one in found]
    return "|".join([*several, *([] if cuda is None else [cuda.fingerprint()])])


def _processor() -> str:
    """What tells this processor from another, without LLVM."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part", "isa")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _title(path: Path) -> str:
    """What an entry is, for people: the layer in one line."""
    try:
        manifest = json.loads((path / "layer.json").read_text())
        layer, shape = manifest["layer"], manifest["input_shapes"][0]
        kernel = "x".join(map(str, layer["kernel_size"]))
        strides = "x".join(map(str, layer["strides"]))
        sizes = ",".join("?" if size is None else str(size) for size in shape)
        return f"{sizes} -> {layer['filters']} kernel {kernel} strides {strides}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unreadable"
