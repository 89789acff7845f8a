"""The repository's own rules: what ships, who imports whom, how long a file is, what it may say."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tvmconv
import tvmconv.schedules
import tvmconv.tuning_logs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
# Where each package of the distribution has its files.
TREES = {
    "tvmconv": ROOT / "tvmconv",
    "tvmconv.schedules": ROOT / "schedules",
    "tvmconv.tuning_logs": ROOT / "tuning_logs",
}
MAX_LINES = 400
# A longer file, with the reason why it is not two files.
LONG: dict[str, str] = {}
TOP = {
    ".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
    "benchmarks", "docs", "examples", "pyproject.toml", "schedules", "tests", "tuning_logs",
    "tvmconv",
}  # fmt: skip


def committed() -> list[Path]:
    """Every file of the checkout that git tracks."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def sources() -> list[Path]:
    """Every Python and C file that people wrote."""
    golden = ROOT / "tests" / "golden"
    return [p for p in committed() if p.suffix in {".py", ".c", ".h"} and golden not in p.parents]


def modules() -> dict[str, Path]:
    """Module name -> file, for every module of the distribution."""
    found = {}
    for package, folder in TREES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def pyproject() -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_ships() -> None:
    # A package that is forgotten still imports from a checkout; only the wheel would lack it.
    listed = pyproject()["tool"]["setuptools"]["packages"]
    present = [name for name, path in modules().items() if path.name == "__init__.py"]
    assert sorted(listed) == sorted(present)


def test_every_data_file_ships() -> None:
    setuptools = pyproject()["tool"]["setuptools"]
    shipped = set()
    for package, patterns in setuptools["package-data"].items():
        tree = max((t for t in TREES if f"{package}.".startswith(f"{t}.")), key=len)
        folder = TREES[tree].joinpath(*package[len(tree) :].split(".")[1:])
        shipped |= {path for pattern in patterns for path in folder.glob(pattern)}
    inside = [p for p in committed() if any(t in p.parents for t in TREES.values())]
    assert [p for p in inside if p.suffix != ".py" and p not in shipped] == []


def test_the_modules_come_from_one_place() -> None:
    # Two checkouts in one environment mix: one's package with the other's schedules.
    package = Path(tvmconv.__file__ or "").parent
    schedules = Path(tvmconv.schedules.__file__ or "").parent
    logs = Path(tvmconv.tuning_logs.__file__ or "").parent
    installed = (package / "schedules", package / "tuning_logs")
    checkout = (package.parent / "schedules", package.parent / "tuning_logs")
    assert (schedules, logs) in (installed, checkout)


def test_the_tests_run_against_this_checkout() -> None:
    assert Path(tvmconv.__file__ or "").parent == ROOT / "tvmconv"


def test_top_level() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in committed()} <= TOP


def test_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources()
    }
    assert {name: n for name, n in lengths.items() if n > MAX_LINES and name not in LONG} == {}
    assert [name for name in LONG if lengths.get(name, 0) <= MAX_LINES] == []


def test_names_say_something() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert [str(p) for p in sources() if p.stem in vague or p.parent.name in vague] == []


FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.:/-])/(?:home|Users|work|root|mnt|workspace)/\w",
    "an unfinished sentence": r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b",
    "an issue number": r"(?i)\bissue " + r"#?\d",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_text_speaks_of_the_project_alone(what: str) -> None:
    kinds = {".py", ".c", ".h", ".md", ".toml", ".in", ".txt", ""}
    golden = ROOT / "tests" / "golden"
    found = []
    for path in committed():
        if path.suffix not in kinds or golden in path.parents or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(FORBIDDEN[what], line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def imports(path: Path, *, everywhere: bool) -> Iterator[str]:
    """Modules that a file imports: when it is loaded, or ``everywhere`` in it.

    Imports for type checking alone never run and are left out.
    """

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from visit(ast.Module([other], []))
            elif everywhere or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def within(name: str, *packages: str) -> bool:
    """Whether a module is one of the packages or below one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


# Everything that reads configs, files and arrays, and that runs artifacts.
RUN_SIDE = (
    "tvmconv.activation_functions", "tvmconv.activations", "tvmconv.arguments",
    "tvmconv.artifact", "tvmconv.config", "tvmconv.errors", "tvmconv.geometry",
    "tvmconv.initializers", "tvmconv.layers", "tvmconv.manifest", "tvmconv.policies",
    "tvmconv.reference", "tvmconv.regularizers", "tvmconv.runtime", "tvmconv.systems",
    "tvmconv.weights",
)  # fmt: skip


def test_the_run_side_never_imports_tvm() -> None:
    wrong = [
        (module, name)
        for module, path in modules().items()
        if module == "tvmconv" or within(module, *RUN_SIDE)
        for name in imports(path, everywhere=True)
        if within(name, "tvm", "tvm_ffi", "keras", "tensorflow", "xgboost")
    ]
    assert wrong == []


def test_the_run_side_loads_only_the_run_side() -> None:
    # Inside a function the layer may ask for a compiled kernel; loading it must not.
    third_party = {"numpy", "ml_dtypes"}
    for module, path in modules().items():
        if not within(module, *RUN_SIDE):
            continue
        for name in imports(path, everywhere=False):
            top = name.split(".")[0]
            known = within(name, "tvmconv.__version__", *RUN_SIDE) or name in {
                f"tvmconv.{side.split('.')[1]}" for side in RUN_SIDE
            }
            assert known or top in third_party or top in sys.stdlib_module_names, (module, name)


def test_algorithms_know_no_schedule() -> None:
    beyond = ("tvmconv.schedules", "tvmconv.codegen", "tvmconv.tuning", "tvmconv.compiler")
    wrong = [
        (module, name)
        for module, path in modules().items()
        if within(module, "tvmconv.compute")
        for name in imports(path, everywhere=True)
        if within(name, *beyond)
    ]
    assert wrong == []


def test_no_print_and_no_bare_except() -> None:
    wrong = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            printing = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
                and not within(module, "tvmconv.cli")
            )
            if printing or (isinstance(node, ast.ExceptHandler) and node.type is None):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert wrong == []


def test_import_loads_nothing_heavy() -> None:
    program = "import tvmconv, json, sys; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    heavy = {"tvm", "tvm_ffi", "xgboost", "keras", "tensorflow", "h5py", "safetensors", "rich"}
    assert heavy.isdisjoint(json.loads(out))


def test_the_pins_are_exact() -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    pinned = [r for rs in extras.values() for r in rs if re.match(r"apache-tvm", r)]
    assert pinned
    assert [r for r in pinned if "==" not in r] == []
