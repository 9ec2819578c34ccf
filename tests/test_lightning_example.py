"""The recipe for Lightning, with the real library: stopped, killed, with a file that is no wave."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from example_runs import EXAMPLES, PYTHON, kill_and_go_on, needs
from helpers import Box, assert_sound, journal_lines, kill, names, wait_until

EXAMPLE = EXAMPLES / "lightning"
RUN: list[str | Path] = ["run", f"{EXAMPLE}/predict.py:Predict", "waves/**/*.npy", "--ranks", "1"]
RUN += ["--arg", "checkpoint=waves.ckpt"]
# `make torture` runs these: what they import takes longer than what they test.
pytestmark = [pytest.mark.slow, needs("lightning")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*PYTHON, EXAMPLE / "train.py"], cwd=folder, env=environment, check=True)
    return folder


@pytest.fixture
def waves(box: Box, trained: Path) -> Box:
    """The box with a checkpoint and 300 waves."""
    shutil.copytree(trained, box.home, dirs_exist_ok=True)
    return box


def test_the_kinds_are_those_of_the_folders_after_a_kill_half_way(waves: Box) -> None:
    results = kill_and_go_on(waves, RUN, "spool-Predict", 300)
    agree = [one["key"].partition("/")[0] == one["result"]["kind"] for one in results]
    assert sum(agree) > 280


def test_a_stop_signal_to_all_processes_fails_no_task(waves: Box) -> None:
    """Lightning has a handler of its own for SIGTERM while it predicts."""
    job = (EXAMPLE / "predict.py").read_text().replace("batch_size = 256", "batch_size = 2")
    waves.write("predict.py", job)
    waves.write("model.py", (EXAMPLE / "model.py").read_text())
    run = ["run", "predict.py:Predict", *RUN[2:]]
    started = waves.start(*run)
    wait_until(lambda: len(journal_lines(waves / "spool-Predict")) > 20)
    for pid in waves.processes():
        kill(pid, signal.SIGTERM)
    started.wait(75)
    assert 20 < len(journal_lines(waves / "spool-Predict")) < 300
    waves.run(*run)
    assert_sound(waves, "spool-Predict", 300)
    assert names(waves / "spool-Predict" / "failed-tasks") == []


def test_a_wave_that_cannot_be_read_fails_alone(waves: Box) -> None:
    waves.write("waves/sine/bad.npy", "no array")
    waves.run(*RUN, code=3)
    results = waves.results("spool-Predict")
    assert len(results) == 301
    assert [one["key"] for one in results if one["state"] != "complete"] == ["sine/bad.npy"]
