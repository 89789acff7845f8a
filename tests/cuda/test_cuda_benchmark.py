"""The benchmark of CUDA devices without one: what it builds, its table, the table in the docs."""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

import tvmconv
from benchmarks import cuda, gpu
from benchmarks.workloads import named
from tvmconv.errors import ConfigError
from tvmconv.runtime import cuda_driver
from tvmconv.runtime.cuda_driver import Hardware

DOCS = Path(__file__).parents[2] / "docs"


def row(dtype: str, ratio: float, **more: object) -> dict[str, object]:
    return {
        "layer": "unet_up1", "dtype": dtype, "form": "gemm", "us": 10.0, "torch_us": 10.0 * ratio,
        "ratio": ratio, "error": 1e-6, "flops": 1e8, "bytes": 1e6, **more,
    }  # fmt: skip


def test_the_table() -> None:
    rows = [
        row("float32", 2.0, torch_tf32_us=5.0), row("float32", 0.5, torch_tf32_us=6.0),
        row("tf32", 1.5), row("toom-cook", 3.0),
    ]  # fmt: skip
    peaks = {"float32": 50, "tf32": 400, "float16": 800, "bfloat16": 800}
    found = {
        "device": "a device", "driver": "580.1 (CUDA 13.0)", "torch": "2", "cudnn": "9",
        "date": "today", "peak": {"tflops": peaks, "copy_gbs": 2000}, "rows": rows,
    }  # fmt: skip
    text = cuda.table(found)
    assert "**float32**: geometric mean of the ratios 1.00; faster on 1 of 2 layers." in text
    assert "driver 580.1 (CUDA 13.0)" in text and "**float16**" not in text
    lines = {line.split(" ")[1]: line for line in text.splitlines() if line.startswith("| unet")}
    assert len(lines) == 1
    by_kind = text.split("**tf32**")[1].split("**toom-cook**")
    assert " 20% |" in by_kind[1] and " 2% |" in by_kind[0]  # of the peaks of float32 and TF32


def test_what_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def compiled(layer: tvmconv.Conv3DTranspose, shape: object, **options: Any) -> None:
        if options.get("algorithm") == "toom-cook":
            raise ConfigError("it does not serve this layer")
        made.append((layer.compute_dtype, options.get("precision"), options["output"].name))

    monkeypatch.setattr(tvmconv, "compile", compiled)
    works = named(["unet_up1"], nightly=True)
    cuda.build(works, ["tf32", "toom-cook", "float16"], "cuda:sm_80", tmp_path)
    assert made == [
        ("float32", "tf32", "unet_up1-tf32"), ("float16", None, "unet_up1-float16")
    ]  # fmt: skip
    assert capsys.readouterr().err == "unet_up1: it does not serve this layer\n"


def test_the_version_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = Hardware(0, "a device", (9, 0), 132, 1, 1, 1, "13.0")
    monkeypatch.setattr(cuda_driver, "hardware", lambda index: about)
    told = tmp_path / "version"
    assert cuda.driver_version(told) == "for CUDA 13.0"
    for kind in ("NVIDIA UNIX x86_64 Kernel Module ", "NVIDIA UNIX Open Kernel Module for x86_64 "):
        told.write_text(f"NVRM version: {kind} 580.159.04  Tue May  6\nGCC version: 12.2.0\n")
        assert cuda.driver_version(told) == "580.159.04 (CUDA 13.0)"


@pytest.mark.skipif(not cuda_driver.unavailable(), reason="a device is here")
def test_without_a_device_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main(["--layers", "unet_up1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing can be timed here" in line


def test_the_figures_in_the_docs_agree_with_each_other() -> None:
    text = (DOCS / "cuda.md").read_text(encoding="utf-8")
    part = re.search("<!-- begin: cuda-times -->(.*)<!-- end: cuda-times -->", text, re.DOTALL)
    assert part
    heads = re.findall(
        r"\*\*(\w+)\*\*: geometric mean of the ratios ([\d.]+); faster on (\d+) of (\d+)", part[1]
    )
    assert [head[0] for head in heads] == ["float32", "float16", "bfloat16"]
    slower = set()
    for dtype, mean, won, count in heads:
        table = part[1].split(f"**{dtype}**")[1].split("**")[0]
        ratios = {
            cells[1].strip(): float(cells[5])
            for line in table.splitlines()
            if (cells := line.split("|"))[1:] and re.match(r"\| \w+ \| \w+ \| [\d.,]+ \|", line)
        }
        assert len(ratios) == int(count)
        assert sum(ratio > 1 for ratio in ratios.values()) == int(won)
        assert statistics.geometric_mean(ratios.values()) == pytest.approx(float(mean), abs=0.01)
        slower |= {(name, dtype, f"{ratio:.2f}") for name, ratio in ratios.items() if ratio < 1}
    after = text[part.end() :].split("What the table does not show")[0]
    for name, _, ratio in slower:  # every loss is named with its reason
        assert f"*{name}*" in after and ratio in after, (name, ratio)


def test_every_step_says_that_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_driver, "unavailable", lambda: "none is here")
    assert gpu.main(["--folder", str(tmp_path / "logs")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tests", "tune", "times", "sanitize"]
    assert all("not run: no GPU: none is here" in line for line in lines)
    assert sum(step.limit_s for step in gpu.steps(tmp_path, None)) <= 13 * 60


def test_steps_go_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def python(text: str) -> tuple[str, ...]:
        return sys.executable, "-c", text

    monkeypatch.setattr(cuda_driver, "unavailable", lambda: "")
    one, endless = python("print('said')"), python("import time\ntime.sleep(3600)")
    found = [
        gpu.Step("two", (python("raise SystemExit(3)"), one), 600),
        gpu.Step("endless", (endless,), 1),
        gpu.Step("absent", (one,), 600, lambda: "no PyTorch"),
        gpu.Step("last", (one,), 600),
    ]
    assert gpu.run(found, tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    expected = ("FAILED (1 of 2", "FAILED at its limit of 1 s", "not run: no PyTorch", "good, ")
    for line, said in zip(lines, expected, strict=True):
        assert said in line
    assert "said" in (tmp_path / "two.log").read_text()
    assert not (tmp_path / "absent.log").exists()
    assert gpu.run(found[-1:], tmp_path) == 0


def test_what_the_steps_run(tmp_path: Path) -> None:
    built = {step.name: step for step in gpu.steps(tmp_path, tmp_path / "built")}
    assert built["times"].commands[0][-1] == str(tmp_path / "built")
    assert not any("--build" in one for one in built["sanitize"].commands)
    here = {step.name: step for step in gpu.steps(tmp_path, None)}
    assert "--build" in here["sanitize"].commands[0]
    assert str(tmp_path / "artifacts" / "unet_up1-tf32") in here["sanitize"].commands[-5]
