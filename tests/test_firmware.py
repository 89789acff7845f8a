"""Golden cases on boards without an operating system, which an emulator of whole machines has."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import c_driver
import pytest
from golden_files import Case
from test_emulated import check_outputs, subset, write_cases

from tvmconv import targets
from tvmconv.codegen import toolchain

BOARDS = Path(__file__).parent.parent / "examples" / "bare"
QEMU = "qemu-system-arm"


@dataclass(frozen=True)
class Board:
    """A target, its linker script, Zig's name of its processor, and QEMU's of the machine."""

    target: str
    script: str
    cpu: str
    machine: str


ALL = [
    Board("cortex-m7", "cortex-m7.ld", "cortex_m7+fp_armv8d16", "mps2-an500"),
    Board("cortex-m55", "cortex-m55.ld", "cortex_m55+fp_armv8d16", "mps3-an547"),
]


def check(board: Board, chosen: tuple[Case, ...], folder: Path) -> None:
    """Link golden cases into firmware, run it, and compare every value."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed (Debian: qemu-system-arm)")
    if toolchain._zig() is None:
        pytest.skip("the ziglang wheel is not installed")
    (machine,) = targets.resolve(board.target)
    files = write_cases(board.target, chosen, folder)
    sources = [c_driver.C_SOURCES / "golden_firmware.c", BOARDS / "cortex-m.c"]
    toolchain.find_for(machine.triple).run(
        [f"-mcpu={board.cpu}", "-O1", "-w", "-I.", "-ffreestanding", "-Wl,--entry=reset", "-T",
         str(BOARDS / board.script), *map(str, sources), *files, "-o", "firmware"],
        folder,
    )  # fmt: skip
    done = subprocess.run(
        [QEMU, "-M", board.machine, "-nographic", "-semihosting", "-kernel", "firmware"],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    told = done.stdout + done.stderr  # semihosting's text is the second's
    code = f"done, with the code for {board.target}"
    assert told.splitlines() == [f"case{number}: {code}" for number in range(len(chosen))]
    check_outputs(chosen, folder)


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.target)
def test_golden_cases(board: Board, tmp_path: Path) -> None:
    check(board, subset(8), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("board", ALL, ids=lambda board: board.target)
@pytest.mark.parametrize("part", range(6))
def test_many_golden_cases(board: Board, part: int, tmp_path: Path) -> None:
    check(board, subset(48)[8 * part : 8 * part + 8], tmp_path)
