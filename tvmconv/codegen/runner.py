"""The runner of an artifact, ``<name>-bench``: a static program that times the layer on a device.

It is built from the header and the static library, and from C that every runner has; it can also
run the layer once from files to a file.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tvmconv.artifact import Artifact
from tvmconv.codegen import toolchain
from tvmconv.codegen.entry import source
from tvmconv.codegen.toolchain import Toolchain
from tvmconv.config import LayerConfig
from tvmconv.errors import ArtifactError, BuildError, ConfigError
from tvmconv.manifest import Manifest
from tvmconv.systems import system

__all__ = ["build", "file_name", "of"]

_KINDS: Final = {"float64": "d", "float32": "f", "float16": "h", "bfloat16": "b"}
_FLAGS: Final = (
    "-std=c99", "-D_GNU_SOURCE", "-O2", "-g0", "-fno-ident", "-Wall", "-static", "-s",
    "-Wl,-z,noexecstack", "-Wl,--build-id=none",
)  # fmt: skip


def file_name(name: str) -> str:
    """What the runner of an artifact is called."""
    return f"{name}-bench"


def build(
    manifest: Manifest,
    header: bytes,
    library: bytes,
    *,
    cc: Toolchain | None = None,
    flags: Sequence[str] = (),
) -> bytes:
    """The runner's bytes.

    Parameters
    ----------
    manifest, header, library
        Of the artifact: its manifest, ``<name>.h`` and ``lib<name>.a``.
    cc
        The C compiler; `toolchain.find_static` by default.
    flags
        What makes it build for the artifact's target.

    Raises
    ------
    BuildError
        The compiler fails, or cannot build for the target.
    ConfigError
        The library is for CUDA devices alone, whose driver no static program can open; or it is for
        another system than Linux.
    """
    triple = str(manifest.target.get("triple", ""))
    known = system(triple)
    if known is not None and known.kind != "linux":
        raise ConfigError(
            f"the artifact {manifest.name!r} is for {triple}; a runner is a program for Linux"
        )
    if not manifest.target.get("cuda", {}).get("cpu", True):
        raise ConfigError(
            f"the artifact {manifest.name!r} has code for CUDA devices only; runners and emulators "
            "take a version for the processor (--target 'cuda:sm_87|jetson-orin-cpu')"
        )
    cc = cc or toolchain.find_static(triple)
    if cc.is_zig:
        flags = (f"-mcpu={cc.zig_cpu}", *flags)
    name = manifest.name
    try:
        with tempfile.TemporaryDirectory(prefix="tvmconv-runner-") as temporary:
            work = Path(temporary)
            (work / f"{name}.h").write_bytes(header)
            (work / f"lib{name}.a").write_bytes(library)
            (work / "bench.c").write_text(_program(manifest), encoding="utf-8")
            cc.run(
                [*_FLAGS, *flags, "-o", "bench", "bench.c", f"lib{name}.a", "-lm", "-lpthread"],
                work,
            )
            return (work / "bench").read_bytes()
    except OSError as exc:
        raise BuildError(f"the temporary folder cannot be used: {exc}; set TMPDIR") from exc


def of(artifact: Artifact, *, cc: Toolchain | None = None, flags: Sequence[str] = ()) -> bytes:
    """The runner in the folder of an artifact, or else a new one; nothing is written there.

    Raises
    ------
    ArtifactError
        A file of the artifact cannot be read, or was changed.
    BuildError
        As `build`.
    """
    name = artifact.manifest.name
    if file_name(name) in (artifact.manifest.files or {}):
        return _file(artifact, file_name(name))
    header, library = _file(artifact, f"{name}.h"), _file(artifact, f"lib{name}.a")
    return build(artifact.manifest, header, library, cc=cc, flags=flags)


def _file(artifact: Artifact, name: str) -> bytes:
    """A file as it was built."""
    path = artifact.path / name
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ArtifactError(f"{path} cannot be read: {exc.strerror}") from exc
    if hashlib.sha256(content).hexdigest() != (artifact.manifest.files or {}).get(name):
        raise ArtifactError(f"{path} is not as it was built; `tvmconv verify` says more")
    return content


def _program(manifest: Manifest) -> str:
    name = manifest.name
    try:
        config = LayerConfig.from_keras(manifest.layer)
        kernel, *bias = config.weight_shapes(manifest.input_shapes[0][config.channel_axis])
    except ConfigError as exc:
        raise ArtifactError(f"the layer in the manifest of {name!r} is none: {exc}") from exc
    lines = [
        f'#include "{name}.h"',
        f'#define NAME "{name}"',
        f"#define LAYER(x) {name}_##x",
        f"#define INPUT_KIND '{_KINDS[manifest.input_dtype]}'",
        f"#define OUTPUT_KIND '{_KINDS[manifest.output_dtype]}'",
        f"#define VARIABLE_KIND '{_KINDS[manifest.variable_dtype]}'",
        f"#define KERNEL_ELEMENTS ((size_t){math.prod(kernel)})",
        f"#define BIAS_ELEMENTS ((size_t){math.prod(bias[0]) if bias else 0})",
        f"#define BESIDE_CUDA {int('cuda' in manifest.target)}",
        f"#define WEIGHTS_INSIDE {int(manifest.weights['mode'] == 'baked')}",
        f"static const double flops[] = {{{', '.join(f'{n}.0' for n in manifest.flops)}}};",
    ]
    return "\n".join(lines) + "\n" + source("bench.c")
