"""From parts to the files of an artifact: shared and static library, header, build system files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tvmconv import artifact
from tvmconv.codegen import elf, foreign, runner, sbom, toolchain
from tvmconv.codegen.entry import PUBLIC, blobs, entry, header, wrapper
from tvmconv.codegen.parts import Parts
from tvmconv.codegen.toolchain import Toolchain
from tvmconv.errors import BuildError
from tvmconv.manifest import Manifest
from tvmconv.systems import TRIPLES, library_name

_COMPILE = [
    "-std=c99",
    "-D_GNU_SOURCE",
    "-O2",
    "-g0",
    "-fPIC",
    "-fno-ident",
    "-fno-stack-protector",
    "-U_FORTIFY_SOURCE",
    "-fno-lto",
    "-Wall",
]

_LINK = [
    "-shared",
    "-s",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,-z,noexecstack",
    "-Wl,-z,defs",
    "-Wl,--build-id=none",
    "-Wl,--hash-style=gnu",
    "-Wl,--as-needed",
    "-Wl,--gc-sections",
]


Entries = dict[tuple[Toolchain, tuple[str, ...], str, str], bytes]
"""Objects of entries by the compiler, its flags, the source and the header they were made of."""


def link(
    parts: Parts,
    folder: Path,
    *,
    cc: Toolchain | None = None,
    with_runner: bool = False,
    entries: Entries | None = None,
) -> artifact.Artifact:
    """Build the artifact of `parts` and put it into `folder`, all of it or nothing.

    Parameters
    ----------
    parts
        Object code, shapes, weights and manifest.
    folder
        Made if it does not exist. In a folder that exists only the files of the same artifact are
        replaced.
    cc
        The C compiler; `toolchain.find_for` by default.
    with_runner
        Build ``<name>-bench`` too.
    entries
        What links before this one compiled: the same entry, a third of a small layer's time, is
        taken from there, and a new one is put there.

    Raises
    ------
    BuildError
        When the compiler or the linker fails.
    ArtifactError
        When the files cannot be written.
    """
    files = build(parts, cc=cc, with_runner=with_runner, entries=entries)
    return artifact.write(folder, parts.manifest, files)


def build(
    parts: Parts,
    *,
    cc: Toolchain | None = None,
    with_runner: bool = False,
    entries: Entries | None = None,
) -> dict[str, bytes]:
    """The files of an artifact but for its ``<name>.json``: name to content."""
    asked = cc is not None
    cc = cc or toolchain.find_for(parts.triple)
    name = parts.name
    system = TRIPLES.get(parts.triple)
    kind = system.kind if system is not None else "linux"
    library = library_name(name, parts.triple)
    try:
        with tempfile.TemporaryDirectory(prefix="tvmconv-link-") as temporary:
            work = Path(temporary)
            if kind in ("macos", "wasm"):
                _compiled(parts, cc, work, entries)
                objects = ["entry.o", "blobs.o", *_kernels(parts)]
                shared, static = foreign.link(kind, name, PUBLIC, objects, cc, work)
            else:
                member = _merged(parts, cc, work, entries)
                static = elf.archive(f"{name}.o", member)
                shared = member if kind == "bare" else _shared(parts, member, cc, work)
    except OSError as exc:
        raise BuildError(f"the temporary folder cannot be used: {exc}; set TMPDIR") from exc
    interface = header(parts).encode()
    files = {
        library: shared,
        f"lib{name}.a": static,
        f"{name}.h": interface,
        f"{name}.hpp": wrapper(parts).encode(),
    }
    if kind in ("linux", "macos"):
        version, cuda = _version(parts.manifest), parts.cuda is not None
        files |= _build_system_files(name, library, version, cuda)
    manifest = Manifest.from_json(parts.manifest)
    if with_runner and parts.cuda is not None:
        raise BuildError(f"the runner calls processors only, and {name!r} is for a GPU, too")
    if with_runner:
        static_cc = cc if asked else None
        files[runner.file_name(name)] = runner.build(manifest, interface, static, cc=static_cc)
    files[sbom.file_name(name)] = sbom.document(manifest, files, cc)
    return files


def _shared(parts: Parts, member: bytes, cc: Toolchain, work: Path) -> bytes:
    """The ELF library around the one object."""
    name, library = parts.name, f"lib{parts.name}.so"
    (work / "layer.o").write_bytes(member)
    exported = "".join(f" {name}_{public};" for public in PUBLIC)
    (work / "exports.map").write_text(f"{{ global:{exported} local: *; }};\n")
    cc.run(
        [*_LINK, *([] if cc.is_zig else ["-Wl,-z,text"]),  # Zig's linker always does
         f"-Wl,-soname,{library}", "-Wl,--version-script=exports.map",
         *_zig_target(cc), "-o", library, "layer.o", "-lm", "-lpthread",
         *(["-ldl"] if parts.cuda is not None else [])],
        work,
    )  # fmt: skip
    return (work / library).read_bytes()


def write_sources(parts: Parts, work: Path) -> tuple[str, ...]:
    """Write what the library is built from into `work`: the names of the entry, blobs and kernels.

    The entry is C, includes ``<name>.h``, and runs on the smallest processor of the architecture.
    """
    name = parts.name
    files = {blob: text.encode() for blob, text in parts.manifests.items()}
    baked = parts.all_baked
    if baked is not None:
        files["weights"] = baked
    if parts.cuda is not None:
        files["cuda"] = parts.cuda.fatbin
    for blob, content in files.items():
        (work / blob).write_bytes(content)
    (work / f"{name}.h").write_text(header(parts))
    (work / "entry.c").write_text(entry(parts))
    (work / "blobs.s").write_text(blobs(parts, {blob: blob for blob in files}))
    kernels = _kernels(parts)
    for kernel, code in zip(kernels, _objects(parts), strict=True):
        (work / kernel).write_bytes(code)
    return ("entry.c", "blobs.s", *kernels)


def _kernels(parts: Parts) -> list[str]:
    """The file of each object."""
    return [f"kernels{i}.o" for i in range(len(_objects(parts)))]


def _objects(parts: Parts) -> list[bytes]:
    """The object code of every version and packer; a library may have no CPU version."""
    own = [variant.object_code for variant in parts.variants if variant.object_code]
    if parts.pack_code is not None:
        own.append(parts.pack_code)
    return own if parts.cuda is None else [*own, parts.cuda.object_code]


def _compiled(parts: Parts, cc: Toolchain, work: Path, entries: Entries | None) -> None:
    """Write and compile everything that is linked."""
    write_sources(parts, work)
    entries = {} if entries is None else entries
    flags = (*_COMPILE, *_baseline(parts.triple, cc))
    key = cc, flags, (work / "entry.c").read_text(), (work / f"{parts.name}.h").read_text()
    if key in entries:
        (work / "entry.o").write_bytes(entries[key])
    else:
        cc.run([*flags, "-c", "entry.c", "-o", "entry.o"], work)
        entries[key] = (work / "entry.o").read_bytes()
    cc.run([*_zig_target(cc), "-c", "blobs.s", "-o", "blobs.o"], work)
    built = elf.file_kind((work / "entry.o").read_bytes())
    if any(elf.file_kind(code) != built for code in _objects(parts)):
        raise BuildError(
            f"the C compiler {' '.join(cc.command)} does not build for {parts.triple}; name one "
            "that does with --cc, for example 'python -m ziglang cc -target ...'"
        )


def _merged(parts: Parts, cc: Toolchain, work: Path, entries: Entries | None) -> bytes:
    """One relocatable object with everything in it; only the interface is visible from outside."""
    name = parts.name
    _compiled(parts, cc, work, entries)
    cc.run(
        ["-r", "-nostdlib", *([] if cc.is_zig else ["-Wl,--build-id=none"]), *_zig_target(cc),
         "-o", "merged.o", "entry.o", "blobs.o", *_kernels(parts)],
        work,
    )  # fmt: skip
    keep = {f"{name}_{public}" for public in PUBLIC}
    member = elf.localize((work / "merged.o").read_bytes(), keep, name)
    undefined = sorted(s.name for s in elf.symbols(member) if s.name and not s.defined)
    foreign = [symbol for symbol in undefined if "tvm" in symbol.lower()]
    if foreign:
        raise BuildError(f"the kernels need the TVM run time: {', '.join(foreign)}")
    return member


def _baseline(triple: str, cc: Toolchain) -> list[str]:
    """Flags for the smallest processor of the architecture, whatever the compiler's default is."""
    if cc.is_zig:
        return _zig_target(cc)
    architecture = triple.partition("-")[0]
    if architecture in ("x86_64", "amd64"):
        return ["-march=x86-64", "-mtune=generic"]
    if architecture in ("aarch64", "arm64"):
        return ["-march=armv8-a", "-mno-outline-atomics"]
    return []


def _zig_target(cc: Toolchain) -> list[str]:
    return [f"-mcpu={cc.zig_cpu}"] if cc.is_zig else []


def _version(manifest: str) -> str:
    made_by = json.loads(manifest)
    version = made_by.get("tvmconv", "0") if isinstance(made_by, Mapping) else "0"
    return str(version).split("+")[0]


def _build_system_files(name: str, library: str, version: str, cuda: bool) -> dict[str, bytes]:
    dl, cmake_dl = (" -ldl", ";${CMAKE_DL_LIBS}") if cuda else ("", "")
    texts = {
        f"{name}.pc": f"""prefix=${{pcfiledir}}
libdir=${{prefix}}
includedir=${{prefix}}

Name: {name}
Description: a Conv3DTranspose layer compiled by tvmconv
Version: {version}
Libs: -L${{libdir}} -l{name}
Libs.private: -lm -lpthread{dl}
Cflags: -I${{includedir}}
""",
        f"{name}-config.cmake": f"""# Targets: {name}::{name} (shared) and {name}::static
include(CMakeFindDependencyMacro)
find_dependency(Threads)
if(NOT TARGET {name}::{name})
  add_library({name}::{name} SHARED IMPORTED)
  set_target_properties({name}::{name} PROPERTIES
    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/{library}"
    IMPORTED_SONAME "{library}"
    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}")
  add_library({name}::static STATIC IMPORTED)
  set_target_properties({name}::static PROPERTIES
    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/lib{name}.a"
    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}"
    INTERFACE_LINK_LIBRARIES "m;Threads::Threads{cmake_dl}")
endif()
""",
        f"{name}-config-version.cmake": f"""set(PACKAGE_VERSION "{version}")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
""",
    }
    return {file: text.encode() for file, text in texts.items()}
