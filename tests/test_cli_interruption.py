"""Ctrl-C while `tvmconv tune` works, wherever Python happens to be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from command_line import Capture

from tvmconv import cli
from tvmconv.cli.interruption import Interruption
from tvmconv.config import LayerConfig
from tvmconv.tuning import run
from tvmconv.tuning.session import Progress


def test_an_interruption_that_a_destructor_swallows_still_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    began = []

    def tune_tasks(*unused: object, callback: Any, **more: object) -> None:
        for trial in range(1, 100):
            began.append(trial)
            if trial == 3:
                with contextlib.suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            callback(Progress("up", "searching", trial, 0, None, None, 1.0, None, None, None))

    monkeypatch.setattr(run, "tune_tasks", tune_tasks)
    layer = tmp_path / "up.json"
    layer.write_text(json.dumps(LayerConfig(4, 2, strides=2, name="up").get_config()))
    command = ["tune", str(layer), "--input-shape", "1,2,2,2,4", "--logs", str(tmp_path / "log")]
    assert cli.main([*command, "--cost-model", "random"]) == 130
    assert began == [1, 2, 3]
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["tvmconv: error: interrupted"]
    assert "3 candidates are kept" in captured.out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_and_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as one:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            one.check()
    finally:
        signal.signal(signal.SIGINT, before)
    seen = []

    def elsewhere() -> None:
        with Interruption() as one:
            seen.append(signal.getsignal(signal.SIGINT))
            one.check()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
