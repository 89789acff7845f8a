"""The C++17 header of an artifact, with every compiler that is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import sample_library as sample

import tvmconv
from tvmconv.artifact import Artifact
from tvmconv.codegen import link

C_SOURCES = Path(__file__).parent / "c"
COMPILERS = ["g++", "clang++"]
FLAGS = [
    "-std=c++17",
    "-pedantic-errors",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Werror",
]


def build(compiler: str, program: Path, *arguments: str | Path) -> Path:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    command = [compiler, *FLAGS, *map(str, arguments), "-lpthread", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("baked", [True, False], ids=["baked", "external"])
def test_everything_it_offers(tmp_path: Path, compiler: str, baked: bool) -> None:
    made = link(sample.parts(tmp_path, baked=baked), tmp_path / "out")
    program = build(
        compiler, tmp_path / "wrapper", *(["-DBAKED"] if baked else []), f"-I{made.path}",
        C_SOURCES / "wrapper.cpp", made.path / "libup1.a",
    )  # fmt: skip
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=900)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("dtype", ["float64", "float16", "mixed_bfloat16"])
def test_types_of_a_layer(tmp_path: Path, compiler: str, dtype: str) -> None:
    layer = tvmconv.Conv3DTranspose(3, 2, 2, use_bias=False, dtype=dtype, name="class")
    made: Artifact = tvmconv.compile(layer, (None, 2, 2, 2, 4), output=tmp_path / "out")
    (tmp_path / "main.cpp").write_text(
        '#include "class.hpp"\n'
        "int main() {\n"
        "  class_layer layer;\n"
        "  std::vector<class_layer::variable_type> kernel(2 * 2 * 2 * 3 * 4);\n"
        "  layer.set_weights(kernel);\n"
        "  std::vector<class_layer::input_type> x(2 * layer.input_size());\n"
        "  const std::vector<class_layer::output_type> y = layer(x);\n"
        "  return y.size() == 2 * 64 * 3 && y[7] == class_layer::output_type(0) ? 0 : 1;\n"
        "}\n"
    )
    program = build(
        compiler, tmp_path / "main", f"-I{made.path}", tmp_path / "main.cpp",
        made.path / "libclass.a", "-lm",
    )  # fmt: skip
    assert subprocess.run([program], check=False, timeout=900).returncode == 0
