"""Which code of a library a driver takes: run by test_cuda_launcher.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_samples import needs_gcc
from driver_tuning import CONFIG, SHAPE, compiled, emulated, layer  # noqa: F401  # a fixture
from fake_driver import CUDA, count

from tvmconv.artifact import Artifact
from tvmconv.errors import ArtifactError
from tvmconv.reference import conv3d_transpose

pytestmark = needs_gcc


@pytest.fixture
def artifact(tmp_path: Path, emulated: None) -> Iterator[Artifact]:  # noqa: F811
    yield compiled(tmp_path / "up1", "none", "cuda:sm_75,sm_80")
    CUDA.fake_model(0, 0)


def right(loaded: Any) -> bool:
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    expected = conv3d_transpose(CONFIG, x, *layer().get_weights())
    return bool(np.allclose(loaded(x), expected, rtol=1e-4, atol=1e-4))


def test_ptx_is_tried_where_no_machine_code_is_for_the_device(artifact: Artifact) -> None:
    loaded = artifact.load()
    modules = count("modules")
    CUDA.fake_model(90, 1)  # a newer device, and a driver that is older than the compiler
    with pytest.raises(ArtifactError, match=r"code 34: .*driver") as raised:
        right(loaded)
    assert "\n" not in str(raised.value) and count("modules") == modules
    CUDA.fake_model(70, 0)
    with pytest.raises(ArtifactError, match=r"code 37: .*no code for the architecture"):
        right(loaded)
    assert count("modules") == modules and count("contexts") > 0
    CUDA.fake_model(90, 0)  # the process lives on: by the PTX
    assert right(loaded)
    assert count("modules") == modules + 1


def test_an_old_driver_needs_no_ptx_for_a_device_that_has_machine_code(artifact: Artifact) -> None:
    CUDA.fake_model(86, 1)
    assert right(artifact.load())
