"""TF32 is asked for, and refused in one line where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

import tvmconv
from tvmconv.cli import main
from tvmconv.errors import ConfigError, TargetError, TvmconvError

SHAPE = (1, 2, 2, 2, 16)


@pytest.mark.parametrize(
    ("target", "dtype", "kind", "message"),
    [
        ("native", "float32", TargetError, "'tf32' is for CUDA devices only"),
        ("cuda:sm_80", "float16", ConfigError, "'tf32' is for float32 layers only"),
        ("cuda:sm_80", "mixed_bfloat16", ConfigError, "float32 layers only. Received: bfloat16"),
        ("cuda:sm_75,sm_80", "float32", TargetError, "leave out sm_75"),
        ("cuda", "float32", TargetError, "leave out sm_75"),
    ],
)
def test_refused(
    target: str, dtype: str, kind: type[TvmconvError], message: str, tmp_path: Path
) -> None:
    layer = tvmconv.Conv3DTranspose(16, 2, 2, dtype=dtype)
    with pytest.raises(kind, match=message) as caught:
        tvmconv.compile(
            layer, SHAPE, target=target, precision="tf32", output=tmp_path / "out"
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_precision(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(16, 2, 2)
    with pytest.raises(ConfigError, match="Expected precision to be one of"):
        tvmconv.compile(layer, SHAPE, precision="half", output=tmp_path / "out")


def test_the_layer_class(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(16, 2, 2, precision="tf32")
    assert layer.precision == "tf32"
    assert tvmconv.Conv3DTranspose.from_config(layer.get_config()).precision == "full"
    import numpy as np

    with pytest.raises(TargetError, match="CUDA devices only"):
        layer(np.zeros(SHAPE, np.float32))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    config = tmp_path / "layer.json"
    config.write_text(json.dumps(tvmconv.Conv3DTranspose(16, 2, 2).get_config()))
    arguments = ["compile", str(config), "--external-weights", "--precision", "tf32"]
    arguments += ["--input-shape", "1,2,2,2,16", "-o", str(tmp_path / "out")]
    assert main(arguments) != 0
    error = capsys.readouterr().err
    assert "'tf32' is for CUDA devices only" in error and len(error.splitlines()) == 1
