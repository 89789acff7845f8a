"""README.md does what it says: its blocks run in order, and print what they show.

``console`` blocks are commands behind ``$`` with their output, ``python`` blocks are sessions, a
``c`` block that begins with ``/* NAME.c */`` is that file. Numbers and the name of the processor
differ from machine to machine, so output is compared without them.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "README.md"
DOCS = sorted((PAGE.parent / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
#: What a reader types and a test cannot: the tests themselves run inside the second one.
REPLACED = {"make demo": f"{sys.executable} examples/demo.py", "make test": "true"}


def blocks() -> list[tuple[int, str, str]]:
    """Line, language and text of each code block."""
    page = PAGE.read_text(encoding="utf-8")
    return [(page.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in BLOCK.finditer(page)]


def skeleton(text: str) -> list[str]:
    """The words of each line, without numbers, processor names and column widths."""
    text = re.sub(r"\b(?:x86_64|aarch64)-[\w.]+-\d+", "TARGET", text)
    text = re.sub(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", "#", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def commands(text: str) -> list[tuple[str, str]]:
    """Each command of a console block with the output shown below it."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        lines = part.split("\n")
        end = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
        found.append(("\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])))
    return found


def run_console(text: str, where: str) -> None:
    """Run the commands of a block and compare what they print."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command, shown in commands(text):
        done = subprocess.run(
            ["bash", "-c", REPLACED.get(command, command)],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PATH": path},
        )
        assert done.returncode == 0, f"{where}: {command}\n{done.stdout}"
        if command in REPLACED and REPLACED[command] == "true":
            continue
        assert skeleton(done.stdout) == skeleton(shown), f"{where}: {command}\n{done.stdout}"


def run_session(text: str, where: str, names: dict[str, object]) -> None:
    """Run a python block as a session; a block without prompts is run as it is."""
    if ">>>" not in text:
        exec(compile(text, where, "exec"), names)
        return
    session = doctest.DocTestParser().get_doctest(text, names, where, str(PAGE), 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(session, out=report.append, clear_globs=False)
    names.update(session.globs)
    assert runner.failures == 0, "".join(report)


@pytest.mark.slow
def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PAGE.parent / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    ran = set()
    for line, language, text in blocks():
        where = f"{PAGE.name}:{line}"
        if language == "console":
            run_console(text, where)
        elif language == "python":
            run_session(text, where, names)
        elif language == "c":
            name = re.match(r"/\* (\w+\.c) \*/", text)
            assert name, f"{where}: name the file in the first line"
            Path(name[1]).write_text(text, encoding="utf-8")
        else:
            assert language in {"sh", "text", "toml"}, f"{where}: {language} is not checked"
        ran.add(language)
    assert {"console", "python", "c"} <= ran


@pytest.mark.parametrize("page", [PAGE, *DOCS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []
