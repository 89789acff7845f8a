"""What importing costs, and that nothing is loaded before it is needed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import tvmconv
from tvmconv import cli

HEAVY = {
    "h5py", "keras", "ml_dtypes", "numpy", "platformdirs", "rich", "safetensors", "tensorflow",
    "tvm", "tvm_ffi", "xgboost",
}  # fmt: skip
PACKAGE = Path(tvmconv.__file__ or "").parent
COMMANDS = [PACKAGE / "cli" / f"{name}.py" for name in cli.COMMANDS]


def in_a_child(program: str) -> object:
    """What a fresh interpreter prints, read as JSON."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_quick() -> None:
    program = (
        "import time; start = time.perf_counter()\n"
        "import tvmconv; print(time.perf_counter() - start)"
    )
    # The quickest of a few: the machine may be busy.
    assert min(float(str(in_a_child(program))) for _ in range(5)) < 0.2


def test_import_loads_nothing_else() -> None:
    loaded = in_a_child("import tvmconv, sys, json; print(json.dumps(list(sys.modules)))")
    assert isinstance(loaded, list)
    assert HEAVY.isdisjoint(loaded)
    assert [name for name in loaded if name.startswith("tvmconv.")] == []


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["compile", "--help"]])
def test_the_command_line_loads_no_compiler_to_answer(arguments: list[str]) -> None:
    program = (
        "import sys, json; from tvmconv.cli import main\n"
        f"main({arguments!r}); print(json.dumps(list(sys.modules)))"
    )
    loaded = in_a_child(program)
    assert isinstance(loaded, list)
    assert (HEAVY - {"numpy", "ml_dtypes"}).isdisjoint(loaded)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_commands_import_what_they_need_when_they_run(path: Path) -> None:
    light = ("tvmconv.cli", "tvmconv.errors", "tvmconv.weights.refusal")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            known = name.split(".")[0] in sys.stdlib_module_names or name.startswith(light)
            assert known, f"{path.name} imports {name} when it is loaded"


@pytest.mark.parametrize(
    ("command", "imported"),
    [(["-m", "tvmconv", "targets"], False), (["-c", "import tvm_ffi"], True)],
    ids=["command", "tvm_ffi alone"],
)
def test_a_command_does_not_wait_for_pytorch(
    command: list[str], imported: bool, tmp_path: Path
) -> None:
    # A PyTorch that says when it is imported, and then is not there.
    (tmp_path / "torch.py").write_text(
        "import sys; print('torch', file=sys.stderr); raise ImportError"
    )
    done = subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert ("torch" in done.stderr) == imported


#: Public names that are meant to be modules.
MODULES = {"errors", "layers"}


@pytest.mark.parametrize("name", [n for n in tvmconv.__all__ if n != "__version__"])
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(tvmconv, name)
    assert isinstance(value, (FunctionType, type)) or name in MODULES
    assert value.__doc__


def test_no_public_name_is_hidden_by_a_module() -> None:
    # Importing tvmconv.bench, were it a module, would put it where the function is.
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(tvmconv.__all__) == MODULES


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'tvmconv' has no attribute 'nope'"):
        tvmconv.nope  # noqa: B018
    assert set(tvmconv.__all__) == set(dir(tvmconv))


def test_the_version_is_a_literal() -> None:
    # setuptools reads it without importing the package.
    assigned = [
        node.value
        for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert [isinstance(value, ast.Constant) for value in assigned] == [True]
    assert ast.literal_eval(assigned[0]) == tvmconv.__version__
