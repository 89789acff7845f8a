"""An artifact on disk: writing its folder whole or not at all, finding it, verifying it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tvmconv.errors import ArtifactError
from tvmconv.manifest import ABI_VERSION, FORMAT, Manifest, dump, parse, symbol_name
from tvmconv.systems import library_name

if TYPE_CHECKING:
    from tvmconv.runtime.library import CompiledLayer

__all__ = [
    "ABI_VERSION",
    "FORMAT",
    "Artifact",
    "Finding",
    "Manifest",
    "Report",
    "outdated",
    "read",
    "symbol_name",
    "verify",
    "write",
]

_CHUNK: Final = 1 << 20
_LARGEST_MANIFEST: Final = 4 << 20


@dataclass(frozen=True)
class Artifact:
    """A folder with a compiled layer.

    Parameters
    ----------
    path
        The folder.
    manifest
        Contents of its ``<name>.json``.
    """

    path: Path
    manifest: Manifest

    @property
    def library(self) -> Path:
        """What a program loads: the shared library; without an operating system the object."""
        return self.path / _library(self.manifest)

    def load(self, *, threads: int | None = None) -> CompiledLayer:
        """Load the library, which runs its code, and return the layer as a callable."""
        from tvmconv.runtime import library  # the run time imports this module

        return library.load(self.path / f"{self.manifest.name}.json", threads=threads)


@dataclass(frozen=True)
class Finding:
    """One thing that was verified: what, whether it is as it should be, and why not."""

    subject: str
    good: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    path: Path
    manifest: Manifest
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether every finding is good."""
        return all(finding.good for finding in self.findings)


def read(path: Path | str) -> Artifact:
    """Find and read the manifest of an artifact, without loading the library.

    Parameters
    ----------
    path
        The folder, or its ``<name>.json`` or library; where a folder
        holds several artifacts, it must be a file.

    Raises
    ------
    ArtifactError
        When there is no artifact, or its manifest is damaged or of another version.
    """
    path = Path(path)
    file = _manifest_file(path)
    manifest = Manifest.from_json(_manifest_text(file), str(file))
    if manifest.name != file.stem:
        raise ArtifactError(
            f"{file} is the manifest of {manifest.name!r}; the files of an artifact cannot be "
            f"renamed: compile it again with that name"
        )
    if manifest.files is None:
        raise ArtifactError(f"{file} is damaged: it lacks 'files'")
    return Artifact(file.parent, manifest)


def verify(path: Path | str) -> Report:
    """Compare an artifact with its manifest, without loading the library.

    Checked are the SHA-256 of every file, and that both libraries hold the same manifest.

    Raises
    ------
    ArtifactError
        When there is no artifact, or its manifest cannot be read.
    """
    artifact = read(path)
    manifest = artifact.manifest
    values = parse(_manifest_text(artifact.path / f"{manifest.name}.json"), "the manifest")
    files = manifest.files or {}
    del values["files"]
    inside = dump(values).encode() + b"\0"
    findings = []
    for name in _names(manifest):
        if name not in files:
            findings.append(Finding(name, False, "the manifest does not list it"))
    for name, expected in sorted(files.items()):
        file = artifact.path / name
        try:
            found = _sha256(file)
        except OSError as exc:
            findings.append(Finding(name, False, f"cannot be read: {exc.strerror}"))
            continue
        good = found == expected
        detail = "as built" if good else f"changed: SHA-256 {found[:12]}, expected {expected[:12]}"
        findings.append(Finding(name, good, detail))
        if name.endswith((".so", ".a", ".dylib", ".wasm", ".o", "-bench")):
            same = inside in file.read_bytes()
            detail = "the manifest inside is the same" if same else "holds another manifest"
            findings.append(Finding(f"{name}: manifest", same, detail))
    return Report(artifact.path, manifest, tuple(findings))


def write(folder: Path | str, manifest: str, files: Mapping[str, bytes]) -> Artifact:
    """Write the files of an artifact and its ``<name>.json``, all of them or none.

    Parameters
    ----------
    folder
        Made if it does not exist, parents included. In a folder that exists only files of the same
        artifact are replaced, or removed if this build has none; after a failure all is as it was.
    manifest
        The JSON text that the library holds.
    files
        Name and content of every other file.

    Raises
    ------
    ArtifactError
        When the folder cannot be written, or holds a foreign file of the same name.
    """
    import tempfile  # with what it imports a tenth of the time of a load

    folder = Path(folder)
    values = parse(manifest, "the manifest")
    values["files"] = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    text = dump(values)
    checked = Manifest.from_json(text)
    contents = {**files, f"{checked.name}.json": text.encode()}
    new_parents: list[Path] = []
    done = False
    try:
        new_parents = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder, checked.name, contents)
        gone = outdated(folder, checked.name, contents)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{checked.name}-") as temporary:
            stage = Path(temporary)
            for name, content in contents.items():
                (stage / name).write_bytes(content)
                # Executable for whom the umask lets read it.
                if name.endswith((".so", ".dylib", "-bench")):
                    mode = (stage / name).stat().st_mode
                    (stage / name).chmod(mode | (mode & 0o444) >> 2)
            _exchange(stage, folder, [*contents, *gone])
        done = True
    except OSError as exc:
        raise ArtifactError(
            f"the folder {folder} cannot be written: {exc.strerror or exc}; give another one"
        ) from exc
    finally:
        if not done:
            for parent in new_parents:  # the innermost first
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
    return Artifact(folder, checked)


def outdated(folder: Path, name: str, files: Collection[str]) -> list[str]:
    """What an earlier build of an artifact left in a folder that the new `files` do not replace.

    Only a file that is still as it was built counts.
    """
    try:
        listed = read(folder / f"{name}.json").manifest.files or {}
    except ArtifactError:
        return []
    found = []
    for old, digest in listed.items():
        with contextlib.suppress(OSError):
            if old not in files and _sha256(folder / old) == digest:
                found.append(old)
    return found


def _exchange(stage: Path, folder: Path, names: list[str]) -> None:
    """Move the staged files into the folder, and what is not staged out of it.

    The old ones are put back when anything goes wrong.
    """
    old = stage / "old"
    old.mkdir()
    moved: list[str] = []
    done = False
    try:
        for name in names:
            if (folder / name).exists() or (folder / name).is_symlink():
                _keep(folder / name, old / name)
            moved.append(name)
            if (stage / name).exists():
                (stage / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        done = True
    finally:
        if not done:
            for name in moved:
                if (old / name).exists() or (old / name).is_symlink():
                    (old / name).replace(folder / name)
                elif not (stage / name).exists():
                    (folder / name).unlink(missing_ok=True)


def _keep(file: Path, copy: Path) -> None:
    """A second name for a file, or a copy where the file system knows no second names."""
    try:
        copy.hardlink_to(file)
    except OSError:
        import shutil

        shutil.copy2(file, copy, follow_symlinks=False)


def _refuse_foreign(folder: Path, name: str, contents: Mapping[str, bytes]) -> None:
    """A file that merely has the name of one of ours stays as it is."""
    file = folder / f"{name}.json"
    try:
        parse(_manifest_text(file), str(file))
    except ArtifactError as exc:
        versions = "interface version" in str(exc)
        clash = next((other for other in contents if (folder / other).exists()), None)
        if clash is not None and not versions:
            raise ArtifactError(
                f"{folder / clash} exists and does not belong to an artifact {name!r}; give "
                f"another folder or name, or remove it"
            ) from exc


def _manifest_file(path: Path) -> Path:
    if path.suffix in (".so", ".dylib") and path.name.startswith("lib"):
        return path.with_name(path.stem[3:] + ".json")
    if path.suffix in (".wasm", ".o"):
        return path.with_suffix(".json")
    if not path.is_dir():
        return path
    found = []
    for file in sorted(path.glob("*.json")):
        try:
            parse(_manifest_text(file), str(file))
        except ArtifactError as exc:
            if (path / f"lib{file.stem}.a").exists():
                raise exc
            continue
        found.append(file)
    if not found:
        raise ArtifactError(f"{path} holds no artifact: no manifest (<name>.json) of tvmconv in it")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ArtifactError(f"{path} holds several artifacts; give the path of one of: {names}")
    return found[0]


def _manifest_text(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_LARGEST_MANIFEST + 1)
    except OSError as exc:
        raise ArtifactError(
            f"the artifact's manifest {file} cannot be read: {exc.strerror}"
        ) from exc


def _library(manifest: Manifest) -> str:
    return library_name(manifest.name, str(manifest.target.get("triple", "")))


def _names(manifest: Manifest) -> tuple[str, ...]:
    return _library(manifest), f"lib{manifest.name}.a", f"{manifest.name}.h"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
