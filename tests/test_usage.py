"""What attempts tell of what they use, while they run: who was killed or lost has told it too."""

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import JOBS, PATIENCE_S, Box, Nvml, record, wait_until
from spooling import A0, cuts, intend, make_spool, view_of

from gpuspool.spool.layout import Layout
from gpuspool.spool.open_folder import OpenFolder
from gpuspool.spool.records import Usage
from gpuspool.spool.states import Phase
from gpuspool.spool.usage import TAIL_BYTES, each_usage, last_usage
from gpuspool.spool.view import open_view
from gpuspool.worker import gpu
from gpuspool.worker.doing import Doing
from gpuspool.worker.gpu import names_of
from gpuspool.worker.resources import family
from gpuspool.worker.usage import CLOSELY_S, SELDOM_S, UsageLog

USED = f"{JOBS}/used.py"
# Beats come each second then, and not each ten seconds.
OFTEN = ("--lease", "12s")
TEN_MIB = 10 * 1024 * 1024


def command(box: Box, job: str, *options: str, lines: int = 1) -> list[str]:
    words = ["run", f"{USED}:{job}", "--lines", box.lines(lines), "--spool", "S"]
    return [*words, "--arg", f"spool={box / 'S'}", *OFTEN, *options]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 3)


def log_of(layout: Layout) -> UsageLog:
    return UsageLog(layout, intend(layout, A0, device="cpu"))


def lines_in(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# Of whom there are figures.


def waiting(box: Box) -> list[str]:
    """A run of one task, which waits for the gate."""
    box.write(
        "job.py", "from gates import pass_gate\ndef f(task, ctx): pass_gate(ctx.args['gate'])\n"
    )
    words = ["run", "job.py:f", "--lines", box.lines(1), "--spool", "S", *OFTEN]
    return [*words, "--arg", f"gate={box / 'gate'}"]


def usage_of(box: Box) -> Usage | None:
    """What the first attempt told last, once there is a spool."""
    if not (box / "S" / "run.json").exists():
        return None
    return open_view(box / "S").usage(A0)


PATH = {"PYTHONPATH": str(JOBS)}


def test_an_attempt_that_runs_has_told_of_the_call_that_it_is_in(box: Box) -> None:
    run = box.start(*waiting(box), env=PATH)
    first = wait_until(lambda: (now := usage_of(box)) and now.busy_s > 0 and now)
    later = wait_until(lambda: (now := usage_of(box)) and now.at > first.at and now)
    assert later.done == 0
    assert later.busy_s > first.busy_s
    assert later.idle_s["load"] == first.idle_s["load"] > 0
    assert set(later.idle_s) == {"start", "load", "inputs", "publish", "work"}
    assert later.rss > TEN_MIB
    assert (later.gpu, later.gpu_mem, later.gpu_mem_total) == (None, None, None)
    (box / "gate").touch()
    run.wait(0)
    assert box.problems("S") == []


def row_of(box: Box, attempt: str) -> Any:
    rows = record(box / "S" / "summary.json")["attempts"]
    return next(row for row in rows if row["attempt"] == attempt)


def test_an_attempt_that_was_killed_has_figures(box: Box) -> None:
    box.run(*command(box, "die"))
    usage = usage_of(box)
    assert usage is not None
    assert usage.busy_s > 0
    row = row_of(box, A0)
    assert row["reason"] == "crash"
    assert row["busy_s"] == usage.busy_s
    assert row["seconds"] >= usage.busy_s


def test_an_attempt_that_was_lost_has_figures(box: Box) -> None:
    box.start(*waiting(box), env=PATH)
    wait_until(lambda: (now := usage_of(box)) and now.busy_s > 0)
    box.kill_all()
    (box / "gate").touch()
    box.run("resume", "S", env=PATH)
    usage = usage_of(box)
    assert usage is not None
    row = row_of(box, A0)
    assert row["reason"] == "lost"
    assert row["busy_s"] == usage.busy_s > 0


def test_the_memory_of_what_a_job_has_started_counts(box: Box) -> None:
    box.write("sizes", f"{40 * TEN_MIB}\n")
    words = ["run", f"{USED}:fill", "--lines", "sizes", "--spool", "S", *OFTEN]
    box.run(*words, "--arg", f"spool={box / 'S'}")
    assert box.results("S")[0]["result"]["rss"] > 40 * TEN_MIB


def test_the_processor_time_of_a_process_stays_counted_when_it_has_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    before = family()
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        during = family()
    after = family()
    assert during.cpu_s - before.cpu_s >= 0.35
    assert after.cpu_s >= during.cpu_s
    assert after.resident_bytes < during.resident_bytes


def test_the_first_line_comes_at_once_and_later_ones_seldom(layout: Layout) -> None:
    log = log_of(layout)
    began = log._began
    path = layout.usage(A0)
    for second in range(0, 100, 10):
        log.add(Doing(), began + second)
    assert len(lines_in(path)) == 10
    told: list[int] = []
    for second in range(0, 600, 10):
        # Beats are not on time to the second: every other minute one comes a little early.
        log.add(Doing(), began + CLOSELY_S + 1 + second - (0.2 if second % 120 == 60 else 0.0))
        if len(lines_in(path)) > 10 + len(told):
            told.append(second)
    assert told == list(range(0, 600, int(SELDOM_S)))


# What must not hurt, and where nothing must be written.


def test_a_spool_of_an_earlier_version_gets_the_folder_from_whoever_writes(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(3), "--spool", "S")
    told = box / "S" / "usage"
    for path in told.iterdir():
        path.unlink()
    told.rmdir()
    assert box.problems("S") == []
    layout = Layout(box / "S")
    log = UsageLog(layout, intend(make_spool(box / "third", 1), A0))
    log.add(Doing(), log._began)
    assert [usage.done for usage in each_usage(layout, A0)] == [0]


def test_a_folder_that_was_removed_is_made_again(layout: Layout) -> None:
    log = log_of(layout)
    log.add(Doing(), log._began)
    path = layout.usage(A0)
    path.unlink()
    path.parent.rmdir()
    log.add(Doing(complete=2), log._began + 1)
    assert [line.get("done") for line in lines_in(path)] == [2]


def test_what_cannot_be_written_is_said_once_and_hurts_nothing(box: Box) -> None:
    box.run(*command(box, "spoil"))
    log = (box / "S" / "logs" / f"{A0}.log").read_text()
    assert log.count("cannot write down what this process uses") == 1
    assert (box / "S" / "usage").read_text() == "no folder\n"
    assert [line["state"] for line in box.results("S")] == ["complete"]


def test_a_line_that_was_written_in_part_costs_no_other_one(layout: Layout) -> None:
    log = log_of(layout)
    log.add(Doing(complete=1), log._began)
    path = layout.usage(A0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The disk takes ten bytes of the next line, and nothing of the one after that.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        log.add(Doing(complete=2), log._began + 1)
        with pytest.raises(OSError, match="too large"):
            log.add(Doing(complete=3), log._began + 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.add(Doing(complete=4), log._began + 3)
    assert [usage.done for usage in each_usage(layout, A0)] == [1, 4]
    last = last_usage(layout, A0)
    assert last is not None
    assert last.done == 4


def test_nothing_is_written_to_another_run_that_took_the_path(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "s", 1)
    folder = OpenFolder(spool.root, "the spool")
    log = log_of(Layout(folder.held))
    log.add(Doing(), log._began)
    os.rename(spool.root, tmp_path / "moved")
    other = make_spool(tmp_path / "s", 1)
    log.add(Doing(complete=1), log._began + 1)
    # Also where the file has to be made anew.
    moved = Layout(tmp_path / "moved").usage(A0)
    moved.unlink()
    log.add(Doing(complete=2), log._began + 2)
    assert list(other.usage(A0).parent.iterdir()) == []
    assert [line.get("done") for line in lines_in(moved)] == [2]
    folder.close()


def test_a_file_of_the_jobs_that_got_the_descriptor_stays_as_it_is(
    layout: Layout, tmp_path: Path
) -> None:
    log = log_of(layout)
    log.add(Doing(), log._began)
    assert log._fd is not None
    # As a job does that closes all descriptors and opens files of its own.
    own = tmp_path / "own"
    fd = os.open(own, os.O_WRONLY | os.O_CREAT)
    os.dup2(fd, log._fd)
    log.add(Doing(complete=1), log._began + 1)
    assert own.read_bytes() == b""
    assert [usage.done for usage in each_usage(layout, A0)] == [0, 1]
    os.close(log._fd)
    log.add(Doing(complete=2), log._began + 2)
    assert [usage.done for usage in each_usage(layout, A0)] == [0, 1, 2]
    os.close(fd)


def test_a_line_takes_one_call_on_a_name_at_first_and_none_later(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(layout)
    opened: list[str] = []
    real = os.open

    def watched(path: Any, *args: Any, **more: Any) -> int:
        if str(layout.root) in os.fspath(path):
            opened.append(os.fspath(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", watched)
    for second in range(5):
        log.add(Doing(), log._began + second)
    assert opened == [str(layout.usage(A0))]


# Reading.


def test_a_file_that_is_cut_tells_its_whole_lines(layout: Layout) -> None:
    log = log_of(layout)
    for second in range(3):
        log.add(Doing(complete=second), log._began + second)
    path = layout.usage(A0)
    data = path.read_bytes()
    for cut in cuts(data):
        path.write_bytes(cut)
        n_whole = cut.count(b"\n")
        assert [usage.done for usage in each_usage(layout, A0)] == list(range(n_whole))
        last = last_usage(layout, A0)
        assert (None if last is None else last.done) == (n_whole - 1 if n_whole else None)


def test_the_last_line_of_a_long_file_is_found_at_its_end(layout: Layout) -> None:
    log = log_of(layout)
    while not layout.usage(A0).exists() or layout.usage(A0).stat().st_size < 3 * TAIL_BYTES:
        log.add(Doing(complete=7), log._began)
    log.add(Doing(complete=8), log._began)
    last = last_usage(layout, A0)
    assert last is not None
    assert last.done == 8
    assert list(each_usage(layout, A0))[-1] == last


def test_who_told_nothing_has_no_figures(layout: Layout) -> None:
    assert view_of(layout).usage(A0) is None
    layout.usage(A0).parent.rmdir()
    assert view_of(layout).usage(A0) is None
    assert list(each_usage(layout, A0)) == []


# Devices.


@pytest.mark.parametrize(
    ("device", "uuids", "first", "names"),
    [
        ("cpu", [], "", []),
        ("", [], "", []),
        ("0", ["GPU-a"], "", ["GPU-a"]),
        ("0", [], "", []),
        ("0", [""], "GPU-a", ["GPU-a"]),
        ("GPU-ab", [], "", ["GPU-ab"]),
        ("GPU-ab", [], "GPU-abcd", ["GPU-abcd"]),
        ("MIG-1", [], "GPU-abcd", ["MIG-1"]),
        ("0,1", ["GPU-a", "GPU-b"], "GPU-a", ["GPU-a", "GPU-b"]),
        ("0,1", ["GPU-a", ""], "GPU-a", []),
    ],
)
def test_a_device_is_asked_for_by_its_uuid(
    device: str, uuids: list[str], first: str, names: list[str]
) -> None:
    assert names_of(device, uuids, first) == names


def told_of_gpu(box: Box, env: Any, *options: str) -> Any:
    box.run(*command(box, "gpu", *options), env={"GPUSPOOL_DEVICE_CHECK": "off", **env})
    return box.results("S")[0]["result"]


MEMORY = {"NVML_MEMORY": "4096/81920"}


def test_a_card_tells_how_busy_and_how_full_it_is(box: Box, nvml: Nvml) -> None:
    line = told_of_gpu(box, nvml.lists("GPU-aaaa@1", NVML_BUSY="37", **MEMORY))
    assert (line["gpu"], line["gpu_mem"], line["gpu_mem_total"]) == (37.0, 4096, 81920)


def test_of_two_cards_the_mean_and_the_sums_are_told(box: Box, nvml: Nvml) -> None:
    env = nvml.lists("GPU-aaaa@1 GPU-bbbb@2", NVML_BUSY="37", **MEMORY)
    line = told_of_gpu(box, env, "--gpus-per-rank", "2")
    assert (line["gpu"], line["gpu_mem"], line["gpu_mem_total"]) == (37.0, 8192, 163840)


def test_a_mig_instance_tells_how_full_it_is_and_not_how_busy(box: Box, nvml: Nvml) -> None:
    line = told_of_gpu(box, nvml.lists("GPU-aaaa@1#MIG-1", NVML_BUSY="37", **MEMORY))
    assert "gpu" not in line
    assert (line["gpu_mem"], line["gpu_mem_total"]) == (4096, 81920)


@pytest.mark.parametrize("trouble", [{"NVML_INIT": "999"}, {"NVML_HANGS": "1"}])
def test_a_driver_that_fails_or_hangs_costs_its_figures_alone(
    box: Box, nvml: Nvml, trouble: dict[str, str]
) -> None:
    env = nvml.lists("GPU-aaaa@1", NVML_BUSY="37", **MEMORY, **trouble)
    devices = ("--devices", "GPU-aaaa")
    done = box.run(*command(box, "twice", *devices), env={"GPUSPOOL_DEVICE_CHECK": "off", **env})
    [line] = [result["result"] for result in box.results("S")]
    assert not {"gpu", "gpu_mem", "gpu_mem_total"} & set(line)
    assert line["rss"] > TEN_MIB
    assert "Traceback" not in done.err + (box / "S" / "logs" / f"{A0}.log").read_text()


class Driver:
    """Stands for NVML. hangs: no question is answered until `answer` is set."""

    NVMLError = NVMLError_LibraryNotFound = OSError

    def __init__(self, hangs: bool = False) -> None:
        self.n_asked = 0
        self.answer = threading.Event()
        if not hangs:
            self.answer.set()

    def nvmlInit(self) -> None:
        self.n_asked += 1
        assert self.answer.wait(PATIENCE_S)

    def nvmlDeviceGetHandleByUUID(self, name: bytes) -> bytes:
        return name

    def nvmlDeviceGetUtilizationRates(self, _: bytes) -> Any:
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetMemoryInfo(self, _: bytes) -> Any:
        return SimpleNamespace(used=1, total=2)


def test_a_driver_that_has_not_come_back_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(hangs=True)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(gpu, "PATIENCE_S", 0.01)
    gpus = gpu.Gpus()
    assert [gpus.read(["GPU-a"]) for _ in range(3)] == [gpu.NOTHING] * 3
    assert driver.n_asked == 1, "each question that hangs would cost a thread"
    driver.answer.set()
    # The answer that came late is that of an earlier moment.
    wait_until(lambda: gpus.read(["GPU-a"]) == gpu.Reading(37.0, 1, 2))
    assert driver.n_asked == 1


@pytest.mark.parametrize("phase", Phase)
def test_a_driver_is_asked_only_once_the_job_is_made(
    phase: Phase, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that the job may want to choose by itself what is loaded first."""
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    log = UsageLog(layout, intend(layout, A0, device="GPU-a"))
    log.add(Doing(phase=phase), log._began)
    is_made = phase not in (Phase.LOADING, Phase.MAKING, Phase.WAITING)
    assert driver.n_asked == is_made
    assert [line.get("gpu") for line in lines_in(layout.usage(A0))] == [37.0 if is_made else None]


def test_a_rank_without_a_gpu_asks_no_driver(box: Box) -> None:
    box.run(*command(box, "once"))
    assert box.results("S")[0]["result"] is False
