"""examples/README.md does what it says: each section runs in a fresh copy of the folder."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_readme import BLOCK, run_console

FOLDER = Path(__file__).parent.parent / "examples"
SECTIONS = dict(
    re.findall(r"^#+ (.+?)\n(.*?)(?=^#+ |\Z)", (FOLDER / "README.md").read_text(), re.M | re.S)
)
#: What a section needs beside the compiler itself.
TOOLS = {
    "C": ("cc", "make", "cmake"),
    "C++": ("c++", "cmake"),
    "Rust": ("rustc",),
    "Without an operating system": ("cc", "nm"),
    "On a Cortex-M7": ("qemu-system-arm", "ziglang"),
    "On a Cortex-M55": ("qemu-system-arm", "ziglang"),
    "WebAssembly": ("node", "ziglang"),
    "All layers of a model": ("cc",),
}


def run(section: str) -> None:
    """Every console block of a section, in the current folder."""
    for language, text in BLOCK.findall(SECTIONS[section]):
        assert language == "console"
        run_console(text, f"examples/README.md, {section}")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder with what the introduction compiles."""
    folder = tmp_path_factory.mktemp("examples") / "with a space"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("build", "*.o", "main-*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("Examples")
    return folder


def test_every_section_is_known() -> None:
    assert set(SECTIONS) == {"Examples", *TOOLS}


@pytest.mark.slow
@pytest.mark.parametrize("section", TOOLS)
def test_a_section(
    compiled: Path, tmp_path: Path, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [tool for tool in TOOLS[section] if not (shutil.which(tool) or find_spec(tool))]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    monkeypatch.chdir(shutil.copytree(compiled, tmp_path / "fresh"))
    run(section)
    if section.startswith("Without"):
        check_that_nothing_else_is_needed(Path("bare/layer.o"))
    if section.startswith("All"):
        check_the_layers(Path("layers"))


def check_that_nothing_else_is_needed(object_file: Path) -> None:
    """The program that firmware would hold calls the layer, and may copy or clear memory."""
    text = subprocess.run(["nm", "-u", object_file], capture_output=True, text=True, check=True)
    undefined = {line.split()[-1] for line in text.stdout.splitlines()}
    assert undefined <= {"up1_run", "memset", "memcpy", "__stack_chk_fail"}


def check_the_layers(folder: Path) -> None:
    """One header and one library for each layer."""
    for name in ("up1", "up2", "up3"):
        for file in (f"lib{name}.so", f"lib{name}.a", f"{name}.h", f"{name}.hpp", f"{name}.json"):
            assert (folder / file).is_file()
