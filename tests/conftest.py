"""What every test gets: golden data, a cache of its own, hypothesis profiles, markers that skip."""

from __future__ import annotations

import ctypes.util
import functools
import gc
import os
import platform
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports TVM or TensorFlow, which read these once.
os.environ.setdefault("TVM_NUM_THREADS", str(min(4, os.cpu_count() or 1)))
# Each process of the tests has a core. NumPy's further threads would wait for work in a loop there.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its rounding depends on the processor

import pytest
from hypothesis import HealthCheck, settings

# What TVM builds is many small objects, few of them garbage, in a process that holds a million
# others: to look for it every 700 objects takes a twentieth of the time.
gc.set_threshold(20_000)

if TYPE_CHECKING:
    from command_line import Capture, Refused

    from tvmconv.artifact import Artifact

TESTS = Path(__file__).parent

# A shell starts what it runs in the background with Ctrl-C ignored, and so would be whatever the
# tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "ci",
    deadline=None,  # a compilation takes as long as the machine is busy
    derandomize=True,  # a run that fails here fails everywhere
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "nightly",
    parent=settings.get_profile("ci"),
    derandomize=False,
    max_examples=int(os.environ.get("TVMCONV_EXAMPLES", "5000")),
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The repository's root."""
    return TESTS.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """The conformance data made with Keras; tests/golden/README.md describes it."""
    return TESTS / "golden"


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty compile cache, so that no test sees or changes the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVMCONV_CACHE", str(folder))
        patch.setenv("TVMCONV_LOGS", "none")  # default schedules, whatever was tuned here
        yield folder


@pytest.fixture
def refused(capsys: Capture) -> Refused:
    """Call the command line with arguments; the exit code and the one line of standard error."""
    import command_line

    return functools.partial(command_line.refused, capsys)


@pytest.fixture(scope="session")
def model(golden: Path) -> Path:
    """Two layers whose input shapes the file tells: up1 and up0."""
    return golden / "models" / "unet3d" / "model.keras"


@pytest.fixture(scope="session")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of up1 for a small input."""
    from tvmconv import cli

    folder = tmp_path_factory.mktemp("made")
    options = ["--layer", "up1", "--input-shape", "1,2,2,2,8"]
    assert cli.main(["compile", str(model), *options, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """An artifact to damage."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture(scope="session")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The small layer of `sample_library`, its weights inside."""
    return _sample(tmp_path_factory.mktemp("baked"), baked=True)


@pytest.fixture(scope="session")
def external(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same without weights."""
    return _sample(tmp_path_factory.mktemp("external"), baked=False)


def _sample(folder: Path, *, baked: bool) -> Artifact:
    import sample_library

    from tvmconv.codegen import link

    return link(sample_library.parts(folder, baked=baked), folder / "out")


def cpu_features() -> frozenset[str]:
    """The processor's feature names as the Linux kernel spells them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, and say why."""
    features = cpu_features()
    for marker in item.iter_markers("isa"):
        name = marker.args[0]
        if name not in features:
            pytest.skip(f"this processor ({platform.machine()}) has no {name}")
    if item.get_closest_marker("gpu") and ctypes.util.find_library("cuda") is None:
        pytest.skip("no CUDA driver on this machine")
