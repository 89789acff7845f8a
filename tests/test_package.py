"""The wheel, in an environment of its own and from another folder, does what the checkout does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose

SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "tvmconv", "schedules", "tuning_logs")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

pytestmark = pytest.mark.slow


def succeed(command: list[str], cwd: Path | None = None) -> str:
    """Run a command without this environment's module paths; show what it said if it fails."""
    variables = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=cwd, env=variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that a build leaves nothing in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        origin = checkout / name
        if origin.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin, source / name, ignore=ignored)
        else:
            shutil.copy(origin, source / name)
    out = tmp_path_factory.mktemp("wheel")
    succeed([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)])
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel; it borrows the third-party packages of this one.

    A path in a .pth file is searched, but the .pth files in it are not read: the editable
    installation of the checkout stays invisible.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    succeed([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python"
    succeed([*PIP, "--python", str(python), "install", "--no-deps", str(wheel)])
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n", encoding="utf-8")
    return folder


def run(environment: Path, *command: str, cwd: Path) -> str:
    """Run a program of the environment in a folder far from the checkout."""
    return succeed([str(environment / "bin" / command[0]), *command[1:]], cwd)


def test_top_level_of_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    version = wheel.name.split("-")[1]
    assert top == {"tvmconv", f"tvmconv-{version}.dist-info"}
    assert "tvmconv/py.typed" in names
    assert "tvmconv/schedules/cpu/__init__.py" in names
    assert "tvmconv/tuning_logs/README.md" in names
    assert f"tvmconv-{version}.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if name.endswith((".pyc", ".o", ".so"))]


def test_everything_is_imported_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    program = (
        "import tvmconv, tvmconv.schedules, tvmconv.tuning_logs, tvmconv.weights, json;"
        "print(json.dumps([m.__file__ for m in"
        " (tvmconv, tvmconv.schedules, tvmconv.tuning_logs, tvmconv.weights)]))"
    )
    files = json.loads(run(environment, "python", "-c", program, cwd=tmp_path))
    assert [f for f in files if not Path(f).is_relative_to(environment)] == []


def test_no_top_level_name_but_ours(environment: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.util as u; print([n for n in ('schedules', 'tuning_logs', 'tests')"
        " if u.find_spec(n)])"
    )
    assert run(environment, "python", "-c", program, cwd=tmp_path).strip() == "[]"


COMPILE = """
import numpy as np, tvmconv
layer = tvmconv.Conv3DTranspose(4, 3, 2, padding="same", activation="relu")
layer.build((1, 3, 4, 5, 6))
rng = np.random.default_rng(7)
kernel, bias = rng.standard_normal((3, 3, 3, 4, 6)), rng.standard_normal(4)
layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
x = rng.standard_normal((1, 3, 4, 5, 6)).astype(np.float32)
tvmconv.compile(layer, x.shape, output="up", name="up")
np.savez("case.npz", x=x, kernel=layer.get_weights()[0], bias=layer.get_weights()[1])
"""

LOAD = """
import sys
sys.modules["tvm"] = None
import numpy as np, tvmconv
np.save("y.npy", tvmconv.load("up")(np.load("case.npz")["x"]))
"""


def test_compile_and_load(environment: Path, tmp_path: Path) -> None:
    run(environment, "python", "-c", COMPILE, cwd=tmp_path)
    run(environment, "python", "-c", LOAD, cwd=tmp_path)
    config = LayerConfig(4, 3, strides=2, padding="same", activation="relu")
    with np.load(tmp_path / "case.npz") as case:
        expected = conv3d_transpose(config, case["x"], case["kernel"], case["bias"])
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)


def test_the_command(environment: Path, checkout: Path, tmp_path: Path) -> None:
    model = str(checkout / "examples" / "decoder.keras")
    assert "tvmconv" in run(environment, "tvmconv", "--version", cwd=tmp_path)
    assert "up3" in run(environment, "tvmconv", "inspect", model, cwd=tmp_path)
    run(environment, "tvmconv", "compile", model, "--layer", "up1", "-o", "up1", cwd=tmp_path)
    assert (tmp_path / "up1" / "libup1.so").is_file()
