"""Tuning for a CUDA device without one: what is refused, and runs on times from a formula."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
from cuda_samples import needs_nvcc
from tuning_simulation import Simulation

from tvmconv import cuda_machine, targets
from tvmconv.cli import main
from tvmconv.codegen import device, toolchain
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.cuda_devices import ARCHITECTURES
from tvmconv.errors import BuildError, ConfigError, TargetError
from tvmconv.runtime.cuda_driver import Hardware
from tvmconv.schedules.space import Space
from tvmconv.tuning import cuda_use, lookup, platforms, records, workloads
from tvmconv.tuning.records import Record
from tvmconv.tuning.run import task_of, tune_tasks
from tvmconv.tuning.runners import LocalBuilder, Task
from tvmconv.tuning.session import Budget

NO_DRIVER = shutil.which("nvidia-smi") is None
CONFIG = LayerConfig(32, 3, strides=2, padding="same", name="up")
SHAPE = (1, 8, 8, 8, 32)


def task(
    shape: tuple[int, ...] = SHAPE, config: LayerConfig = CONFIG, algorithm: str = "auto"
) -> Task:
    hardware = Hardware(0, "A100", (8, 0), 108, 1_410_000, 1_215_000, 5120, "13.0")
    machine = cuda_machine.CudaMachine(ARCHITECTURES["sm_80"], targets.native().triple, hardware)
    return Task("up", config, shape, Workload.of(config, shape), machine, algorithm)


def seconds(space: Space, tiling: CudaTiling) -> float:
    """A time that the rules' models explain for the most part: the rest is a hash."""
    variant = space.find(tiling)
    assert variant is not None, tiling
    luck = zlib.crc32(repr(tiling).encode()) % 1000 / 1000
    return variant.cycles(tiling) / 1.4e9 * (1 + 0.2 * luck) * (0.7 if tiling.resident == 4 else 1)


@pytest.mark.parametrize("model", ["random", "xgb"])
def test_a_run_ends_with_a_winner_that_compiling_would_take(tmp_path: Path, model: str) -> None:
    if model == "xgb":
        pytest.importorskip("xgboost", reason="the cost model needs xgboost")
    one = task()
    space = platforms.space(one.work, one.machine)
    simulation = Simulation(lambda tiling: seconds(space, tiling), tmp_path / "made")  # type: ignore[arg-type]
    log = tmp_path / "log"
    (result,) = tune_tasks(
        [one], Budget(trials=40), log=log, cost_model=model, builder=simulation, runner=simulation
    )
    found = [r for path in records.workload_files(log) for r in records.read_file(path)]
    assert len(found) == 42 and simulation.run[0] == space.default
    assert found[0].limit_gflops == platforms.limit_gflops(one.machine, one.work, None)
    assert found[0].machine["cpu_model"] == "A100"
    assert result.gain > 0.1 or model == "random"  # which finds something better now and then
    assert result.record.trace is not None
    assert lookup.best([log], "cuda-80", result.record.workload_key, cores=108) == result.record
    (again,) = tune_tasks(
        [one], Budget(trials=3), log=log, cost_model=model, builder=simulation, runner=simulation
    )
    assert again.resumed == 40


def run(one: Task, tmp_path: Path, trials: int = 12) -> Record:
    """The winner of a search that a formula times: what the rules' models find cheapest."""
    space = platforms.space(one.work, one.machine, one.algorithm, one.precision)
    simulation = Simulation(
        lambda tiling: seconds(space, tiling), tmp_path / f"made-{one.precision}"
    )  # type: ignore[arg-type]
    (result,) = tune_tasks(
        [one], Budget(trials=trials), log=tmp_path / "log", cost_model="random",
        builder=simulation, runner=simulation,
    )  # fmt: skip
    return result.record


def chosen(one: Task, tmp_path: Path, **asked: str) -> cuda_use.CudaChoice:
    assert isinstance(one.machine, cuda_machine.CudaMachine)
    (found,) = cuda_use.choose(
        [one.work], [one.machine.architecture], logs=tmp_path / "log", **asked
    )
    return found


def test_a_run_over_toom_cook_is_for_those_who_ask_for_it(tmp_path: Path) -> None:
    one = task(algorithm="toom-cook")
    winner = run(one, tmp_path)
    assert winner.kind == winner.algorithm == "toom-cook"
    asked = chosen(one, tmp_path, algorithm="toom-cook")
    assert asked.origin == f"record:{winner.id}"
    for algorithm in ("auto", "direct"):  # it has met no direct form
        other = chosen(one, tmp_path, algorithm=algorithm)
        assert other.origin == "default" and other.tiling.form != "toom-cook"


def test_toom_cook_that_beat_the_direct_forms_is_compiled(tmp_path: Path) -> None:
    one = task()
    space = platforms.space(one.work, one.machine)

    def told(tiling: CudaTiling) -> float:
        return 1e-3 if tiling == space.default else 1e-4 if tiling.form == "toom-cook" else 2e-3

    simulation = Simulation(told, tmp_path / "made")  # type: ignore[arg-type]
    (result,) = tune_tasks(
        [one], Budget(trials=12), log=tmp_path / "log", cost_model="random",
        builder=simulation, runner=simulation,
    )  # fmt: skip
    assert result.record.kind == "toom-cook" and result.gain > 5
    auto = chosen(one, tmp_path, algorithm="auto")
    assert auto.tiling.form == "toom-cook" and auto.origin == f"record:{result.record.id}"
    assert chosen(one, tmp_path, algorithm="direct").origin == "default"


def test_tf32_has_records_of_its_own(tmp_path: Path) -> None:
    plain = task()
    one = task_of("up", CONFIG, SHAPE, plain.machine, precision="tf32")
    assert one.precision == "tf32" and one.tolerance > plain.tolerance
    winner = run(one, tmp_path)
    assert winner.decisions["form"] == "mma" and winner.workload["precision"] == "tf32"
    assert winner.workload_key != workloads.key(plain.described)
    assert chosen(one, tmp_path, precision="tf32").origin == f"record:{winner.id}"
    assert chosen(one, tmp_path).origin == "default"
    larger = task((1, 8, 8, 9, 32))
    assert chosen(larger, tmp_path, precision="tf32").transfer
    assert chosen(larger, tmp_path).origin == "default"
    full = run(plain, tmp_path)
    assert full.decisions["form"] != "mma"
    assert chosen(one, tmp_path, precision="tf32").origin == f"record:{winner.id}"


def test_tf32_where_there_is_none() -> None:
    machine = task().machine
    few = LayerConfig(4, 3, strides=2, padding="same", name="up")
    assert task_of("up", few, SHAPE, machine, precision="tf32").precision == "full"
    half = LayerConfig(32, 3, strides=2, padding="same", dtype="float16")
    with pytest.raises(ConfigError, match="float32 layers only"):
        task_of("up", half, SHAPE, machine, precision="tf32")
    with pytest.raises(TargetError, match="CUDA devices only"):
        task_of("up", CONFIG, SHAPE, targets.native(), precision="tf32")
    old = cuda_machine.CudaMachine(ARCHITECTURES["sm_75"], targets.native().triple)
    with pytest.raises(TargetError, match="from sm_80 on"):
        task_of("up", CONFIG, SHAPE, old, precision="tf32")
    with pytest.raises(ConfigError, match="Expected precision to be one of"):
        task_of("up", CONFIG, SHAPE, machine, precision="half")


@needs_nvcc
def test_a_candidate_for_a_board_is_built_here() -> None:
    try:
        toolchain.find_for("aarch64-linux-gnu")
    except BuildError as exc:
        pytest.skip(str(exc))
    board = cuda_machine.elsewhere("cuda:sm_87", targets.native().triple)
    one = Task("up", CONFIG, SHAPE, Workload.of(CONFIG, SHAPE), board)
    builder = LocalBuilder(1)
    try:
        (built,) = builder.build(one, [platforms.space(one.work, board).default])
        assert built.folder is not None, built.failure
        parts = [(built.folder / name).read_bytes() for name in ("candidate.h", "libcandidate.a")]
        for made in (device.build, device.program):  # for TVM's RPC, and for ssh
            code = made("candidate", *parts, board.triple)
            assert code[:4] == b"\x7fELF" and code[18:20] == b"\xb7\0"  # AArch64
    finally:
        builder.close()


def test_the_command_knows_the_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, log = tmp_path / "up.json", tmp_path / "log"
    source.write_text(json.dumps({"class_name": "Conv3DTranspose", "config": CONFIG.get_config()}))
    arguments = ["tune", str(source), "--input-shape", "1,8,8,8,32", "--logs", str(log)]
    assert main([*arguments, "--precision", "tf32"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "precision 'tf32' is for CUDA devices only" in line
    assert not log.exists()


def test_a_layer_that_toom_cook_does_not_serve() -> None:
    one = task(config=LayerConfig(32, 2, strides=2, name="up"), algorithm="toom-cook")
    with pytest.raises(ConfigError, match="one tap"):
        platforms.space(one.work, one.machine, one.algorithm)


def test_no_nvcc_is_said_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", str(tmp_path / "nowhere"))
    with pytest.raises(BuildError, match="NVCC="):
        tune_tasks([task()], Budget(trials=3), log=tmp_path / "log", cost_model="random")


@pytest.mark.skipif(not NO_DRIVER, reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("target", ["cuda:native", "cuda:sm_90", "cuda"])
def test_without_a_device_one_line_says_so(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "up.json"
    source.write_text("{}")
    arguments = ["tune", str(source), "--target", target, "--logs", str(tmp_path / "log")]
    assert main([*arguments, "--input-shape", "1,2,2,2,4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tvmconv: error: ")
    assert "tuning needs such a device" in line and "--device" in line
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("target", ["cuda:sm_72", "cuda:sm_80,sm_90"])
def test_a_device_elsewhere_is_of_one_architecture(target: str) -> None:
    from tvmconv.tuning.run import processor

    with pytest.raises(TargetError):
        processor(target, elsewhere=True)
