"""The benchmark of calls without ``out``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Capture

from benchmarks import machine, neighbour_times, new_outputs
from benchmarks.neighbour_times import Variant
from benchmarks.new_outputs import Prices
from benchmarks.workloads import Workload

TINY = Workload("tiny", "none", 5, 3, (1, 1, 1), (1, 1, 1), "same", (2, 3, 4))


def test_a_price_is_of_medians() -> None:
    found = [
        Prices("one", 1, (1e-3, 2e-3, 9e-3), (2.0e-3, 2.1e-3, 2.2e-3)),
        Prices("other", 2, (1e-3, 2e-3, 3e-3), (1.9e-3, 2.2e-3, 9e-3)),
    ]
    text = new_outputs.rendered(found)
    assert [line.split()[1] for line in text.splitlines()[2:4]] == ["other", "one"]
    assert "1.050" in text and "1.100" in text and "2 (1 to 9)" in text
    assert text.endswith("1 of 2 cost at most 1.05.")


def _here(
    groups: dict[str, list[Variant]], folder: Path, _: Callable[[str], None]
) -> dict[str, Path | str]:
    """Compile in this process, which is sooner for one."""
    found = [one for group in groups.values() for one in group]
    return {
        one.folder: neighbour_times.compiled(one, folder) or folder / one.folder for one in found
    }


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin: new outputs -->\nold\n<!-- end: new outputs -->\nb\n")
    monkeypatch.setattr(new_outputs, "named", lambda *_, **__: [TINY])
    monkeypatch.setattr(new_outputs, "_TURN_S", 0.0)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(neighbour_times, "build", _here)
    monkeypatch.setattr("sys.argv", ["new_outputs", "--docs", str(page)])
    assert new_outputs.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert sorted(row.split("|")[2].strip() for row in rows) == ["1", "2"]
    assert all(row in page.read_text() for row in rows) and "old" not in page.read_text()
    page.write_text("no markers\n")
    assert new_outputs.main() == 1 and page.read_text() == "no markers\n"


@pytest.mark.parametrize("wrong", [["--layers", "unet"], ["--threads", "0"], ["--threads", "x"]])
def test_what_is_refused(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["new_outputs", *wrong])
    with pytest.raises(SystemExit):
        new_outputs.main()
