"""The seed API: independent workers, what they report, and how they end. All processes are real."""

import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import seed_workers
from helpers import Box, Started, is_alive, names, record, tree, wait_until

from gpuspool.orchestrator import gpu_coordinator
from gpuspool.orchestrator.gpu_coordinator import GPUProcessCoordinator
from gpuspool.orchestrator.plan.devices import find_pool
from gpuspool.orchestrator.report.results import Results
from gpuspool.orchestrator.report.status import status
from gpuspool.spool.errors import UsageError
from gpuspool.spool.view import open_view

DEVICES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "SLURM_JOB_GPUS",
    "SLURM_STEP_GPUS",
    "SLURM_GPUS_ON_NODE",
)
Make = Callable[[int], GPUProcessCoordinator]


def has_gpu() -> bool:
    try:
        return bool(find_pool(None, {}).tokens)
    except UsageError:
        return True


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def make(out: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes coordinators on one output_dir, with tokens that no device has; none of their workers
    is left behind.
    """
    for name in DEVICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    made: list[GPUProcessCoordinator] = []

    def one(world_size: int) -> GPUProcessCoordinator:
        made.append(GPUProcessCoordinator(world_size, out))
        return made[-1]

    yield one
    for coordinator in made:
        for worker in coordinator.workers.values():
            worker.kill()
            worker.join()


def run(
    coordinator: GPUProcessCoordinator, worker_fn: Callable[..., Any], *args: Any
) -> list[dict[str, Any]]:
    """One generation, all of whose workers must complete; returns the reports."""
    coordinator.spawn_workers(worker_fn, args)
    done = coordinator.wait_for_completion(60)
    assert done == dict.fromkeys(range(coordinator.world_size), True)
    return coordinator.collect_results()


def codes(coordinator: GPUProcessCoordinator) -> dict[int, int | None]:
    return {rank: worker.exitcode for rank, worker in coordinator.workers.items()}


def start_parent(box: Box, out: Path, world_size: int, worker: str, args: str) -> Started:
    """Another process that spawns and waits."""
    source = (
        "import sys, pathlib, seed_workers\n"
        "from gpuspool.orchestrator.gpu_coordinator import GPUProcessCoordinator\n"
        f"coordinator = GPUProcessCoordinator({world_size}, sys.argv[1])\n"
        f"coordinator.spawn_workers(seed_workers.{worker}, ({args},))\n"
        "pathlib.Path('waits').touch()\n"
        "coordinator.wait_for_completion()\n"
    )
    env = {"CUDA_VISIBLE_DEVICES": "0,1", "PYTHONPATH": str(Path(seed_workers.__file__).parent)}
    as_from_a_terminal = (
        "env",
        "--default-signal=INT",
        sys.executable,
    )  # a shell's background jobs ignore it
    return box.start(box.write("parent.py", source), out, program=as_from_a_terminal, env=env)


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"S"


def tell_from_here(rank: int, world_size: int, results_queue: Any) -> None:
    results_queue.put({"rank": rank, "module": __name__, "file": __file__})


def test_spawn_workers_creates_processes(
    make: Make, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gpuspool.orchestrator.gpu_coordinator")
    coordinator, gate = make(3), out / "gate"
    assert (coordinator.world_size, coordinator.output_dir, coordinator.workers) == (3, out, {})
    coordinator.spawn_workers(seed_workers.wait_for, (gate,))
    workers = coordinator.workers
    assert [worker.name for worker in workers.values()] == [
        "gpu_worker_0",
        "gpu_worker_1",
        "gpu_worker_2",
    ]
    assert len({worker.pid for worker in workers.values()} - {os.getpid()}) == 3
    assert all(worker.is_alive() and worker.exitcode is None for worker in workers.values())
    workers[0].join(0)
    assert workers[0].is_alive()
    gate.touch()
    for worker in workers.values():
        worker.join()
        assert (worker.is_alive(), worker.exitcode) == (False, 0)
    assert "Spawned worker 2 (CUDA_VISIBLE_DEVICES=2)" in caplog.messages
    assert "Worker 2 completed" in caplog.messages


@pytest.mark.parametrize(
    ("inherited", "expected"),
    [
        ("2,3", ["2", "3"]),
        ("GPU-5a1b,GPU-77fe,GPU-0000", ["GPU-5a1b", "GPU-77fe"]),
        ("MIG-2dc1/7/0,MIG-2dc1/8/0", ["MIG-2dc1/7/0", "MIG-2dc1/8/0"]),
        ("", ["", ""]),
    ],
)
def test_cuda_visible_devices_set(
    make: Make, monkeypatch: pytest.MonkeyPatch, inherited: str, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    reports = run(make(2), seed_workers.tell)
    assert [report["visible"] for report in reports] == expected
    assert [report["check"] for report in reports] == [None, None]
    assert {report["order"] for report in reports} == {
        "PCI_BUS_ID" if expected[0].isdigit() else None
    }


@pytest.mark.skipif(has_gpu(), reason="NVML finds a GPU here, and so its UUID is the token")
def test_cuda_visible_devices_set_to_the_rank_where_nothing_tells_of_a_device(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    reports = run(make(3), seed_workers.tell)
    assert [(report["visible"], report["check"]) for report in reports] == [
        ("0", "off"),
        ("1", "off"),
        ("2", "off"),
    ]


def test_more_ranks_than_devices_are_refused(
    make: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(UsageError, match=r"world_size 3, but there are 2 device\(s\): 2,3"):
        make(3).spawn_workers(seed_workers.tell, ())
    assert not out.exists()


def test_wait_for_completion_all_success(make: Make, out: Path, box: Box) -> None:
    coordinator = make(2)
    assert coordinator.wait_for_completion(1) == {}
    reports = run(coordinator, seed_workers.tell)
    assert [(report["rank"], report["world_size"]) for report in reports] == [(0, 2), (1, 2)]
    assert coordinator.wait_for_completion(0) == {0: True, 1: True}
    spool = out / "spool-0000"
    assert box.status(spool)["tasks"] == {
        "total": 2,
        "complete": 2,
        "failed": 0,
        "running": 0,
        "waiting": 0,
    }
    assert [(result["key"], result["state"]) for result in box.results(spool)] == [
        ("rank-0000", "complete"),
        ("rank-0001", "complete"),
    ]
    assert box.run("verify", spool, "--json").record()["problems"] == []
    assert "spawn_workers" in box.run("resume", spool, code=2).err


def test_partial_failure(make: Make, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each way to end is one rank; the first returns only when all others have ended. Large reports
    outlive them.
    """
    ways = ["return", "raise", (3,), "SIGKILL", "abort", ("a reason",), (), (-1,)]
    expected = {0: None, 1: 1, 2: 3, 3: -9, 4: 7, 5: 1, 6: 0, 7: 255}
    coordinator, gate = make(8), out / "gate"
    coordinator.spawn_workers(seed_workers.end_in_its_way, (ways, gate))
    wait_until(lambda: codes(coordinator) == expected)
    assert coordinator.wait_for_completion(0) == {
        rank: code == 0 for rank, code in expected.items()
    }
    gate.touch()
    assert coordinator.wait_for_completion(60) == {rank: rank in (0, 6) for rank in range(8)}
    assert [report["text"] for report in coordinator.collect_results()] == [
        str(rank) * 200_000 for rank in range(8)
    ]
    told = "\n".join(caplog.messages)
    assert re.search(
        r"Worker 1 failed with exit code 1 \(log .*rank-0001.a00.log\): Traceback", told
    )
    assert "ValueError: rank 1 raised this" in told
    assert "Worker 3 failed with exit code -9" in told
    view = open_view(out / "spool-0000")
    assert status(view)["state"] == "failed"
    assert [result.error and result.error.kind for result in Results(view)] == [
        None, "exception", "exit", "lost", "lost", "exit", None, "exit",
    ]  # fmt: skip
    assert view.open_attempts == []


def test_reading_an_exitcode_changes_nothing(make: Make, out: Path) -> None:
    """Its attempt is closed by whoever waits for it, once."""
    coordinator = make(1)
    coordinator.spawn_workers(seed_workers.end_in_its_way, (["SIGKILL"], out / "gate"))
    worker, spool = coordinator.workers[0], out / "spool-0000"
    wait_until(lambda: not worker.is_alive())
    before = tree(spool)
    assert [worker.exitcode, worker.is_alive(), worker.exitcode] == [-9, False, -9]
    assert tree(spool) == before
    assert open_view(spool).open_attempts == [worker.attempt]
    worker.join()
    view = open_view(spool)
    assert (view.open_attempts, view.closed[worker.attempt].exit_code) == ([], -9)
    after = tree(spool)
    worker.join()
    assert worker.settle()
    assert coordinator.wait_for_completion(0) == {0: False}
    assert (tree(spool), worker.exitcode) == (after, -9)


@pytest.mark.parametrize("way", ["collect_results", "terminate_all", "spawn_workers"])
def test_a_worker_that_ended_unseen_is_settled_by_the_next_act(
    make: Make, out: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = make(1)
    coordinator.spawn_workers(seed_workers.end_in_its_way, (["abort"], out / "gate"))
    worker = coordinator.workers[0]
    wait_until(lambda: worker.exitcode == 7)
    assert "Worker 0 failed" not in caplog.text
    args = (seed_workers.tell, ()) if way == "spawn_workers" else ()
    getattr(coordinator, way)(*args)
    assert "Worker 0 failed with exit code 7" in caplog.text
    assert open_view(out / "spool-0000").open_attempts == []


def test_timeout_is_one_deadline(make: Make, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    coordinator, gate = make(4), out / "gate"
    coordinator.spawn_workers(seed_workers.wait_for, (gate,))
    began = time.monotonic()
    assert coordinator.wait_for_completion(timeout=4.0) == dict.fromkeys(range(4), False)
    assert 4.0 <= time.monotonic() - began < 16.0, "one deadline, not one for each of four workers"
    assert all(worker.is_alive() for worker in coordinator.workers.values())
    assert any(
        re.fullmatch(r"Worker 3 timed out after 4 s \(pid \d+\); it goes on", text)
        for text in caplog.messages
    )
    with pytest.raises(UsageError, match="workers 0, 1, 2, 3 still run"):
        coordinator.spawn_workers(seed_workers.tell, ())
    gate.touch()
    assert coordinator.wait_for_completion() == dict.fromkeys(range(4), True)


def test_results_queue_receives_reports(make: Make) -> None:
    """1 MB from each worker and nobody reads: a pipe would be full long before."""
    coordinator = make(2)
    reports = run(coordinator, seed_workers.put_many, 500)
    assert [(report["rank"], report["number"]) for report in reports] == [
        (r, n) for r in range(2) for n in range(500)
    ]
    assert coordinator.collect_results() == []
    assert coordinator.results_queue.empty()


def test_reports_are_there_while_the_worker_runs_and_are_given_once(make: Make, out: Path) -> None:
    coordinator, gate = make(1), out / "gate"
    coordinator.spawn_workers(seed_workers.wait_for, (gate,))
    wait_until(lambda: not coordinator.results_queue.empty())
    assert coordinator.results_queue.get_nowait() == {"rank": 0, "at": "first"}
    assert coordinator.collect_results() == []
    gate.touch()
    assert coordinator.wait_for_completion(60) == {0: True}
    assert coordinator.collect_results() == [{"rank": 0, "at": "last"}]


def test_reports_keep_their_types_and_what_has_none_raises_in_the_worker(
    make: Make, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = make(1)
    coordinator.spawn_workers(seed_workers.put_odd, (out,))
    assert coordinator.wait_for_completion(60) == {0: False}
    (report,) = coordinator.collect_results()
    assert math.isnan(report.pop("nan"))
    assert report == {1: (out, None), "array": [0, 1, 2], "scalar": 0.5}
    assert "report['x'][0]: a builtin_function_or_method" in caplog.text


def test_a_new_coordinator_collects_after_the_old_parent_was_killed(
    make: Make, out: Path, box: Box
) -> None:
    """The workers go on without their parent, and end by themselves."""
    parent = start_parent(box, out, 2, "wait_for", "pathlib.Path('gate').absolute()")
    coordinator = make(2)
    found: list[dict[str, Any]] = []
    wait_until(lambda: found.extend(coordinator.collect_results()) or len(found) == 2)
    parent.signal(signal.SIGKILL)
    parent.wait(-signal.SIGKILL)
    assert sorted(found, key=str) == [{"rank": rank, "at": "first"} for rank in range(2)]
    (box / "gate").touch()
    wait_until(lambda: len(names(out / "spool-0000" / "complete")) == 2)
    assert coordinator.collect_results() == [{"rank": rank, "at": "last"} for rank in range(2)]
    assert len(make(2).collect_results()) == 4, "each object gets each report"


def test_worker_args_keep_their_types(make: Make) -> None:
    args = (
        1,
        1.0,
        True,
        None,
        "text",
        (1, (2, [3])),
        Path("/a/b"),
        {"k": [Path("c"), (None,)], "$path": 0},
        {0: "z"},
    )
    (report,) = run(make(1), seed_workers.tell, *args)
    assert repr(report["args"]) == repr(args)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((0, {"x": [lambda: None]}), r"worker_args\[1\]\['x'\]\[0\]: a function"),
        ((sys.stderr,), r"worker_args\[0\]: a "),
        (((1, {2, 3}),), r"worker_args\[0\]\[1\]: a set \(\{2, 3\}\)"),
        ({"a": 1}, "worker_args is a dict"),
    ],
)
def test_an_argument_that_cannot_be_passed_on_is_named(
    make: Make, out: Path, args: Any, named: str
) -> None:
    with pytest.raises(TypeError, match=named):
        make(1).spawn_workers(seed_workers.tell, args)
    assert not out.exists()


def test_an_open_file_is_a_type_error(make: Make, tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(TypeError, match=r"worker_args\[0\]: a TextIOWrapper"),
    ):
        make(1).spawn_workers(seed_workers.tell, (file,))


def test_status_knows_that_the_program_of_a_coordinator_is_there(
    make: Make, out: Path, box: Box
) -> None:
    gate = box / "gate"
    make(2).spawn_workers(seed_workers.wait_for, (gate,))
    wait_until(lambda: box.status(out / "spool-0000")["tasks"]["running"] == 2)
    assert box.status(out / "spool-0000")["left_alone"] == 0
    assert "is gone" not in box.run("status", out / "spool-0000").out
    gate.touch()


def test_terminate_all_ends_stuck_workers_and_their_children(
    make: Make, out: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_coordinator, "GRACE_S", 0.3)
    coordinator = make(2)
    coordinator.spawn_workers(seed_workers.be_stuck, ([1],))
    reports: list[dict[str, Any]] = []
    wait_until(lambda: reports.extend(coordinator.collect_results()) or len(reports) == 2)
    pids = [pid for report in reports for pid in report["pids"]]
    assert all(map(is_alive, pids))
    coordinator.terminate_all()
    assert codes(coordinator) == {0: -signal.SIGTERM, 1: -signal.SIGKILL}
    wait_until(lambda: not any(map(is_alive, pids)))
    assert coordinator.wait_for_completion(0) == {0: False, 1: False}
    assert names(out / "spool-0000" / "stopped") == ["rank-0000.a00.json", "rank-0001.a00.json"]
    assert record(out / "spool-0000" / "stopped" / "rank-0001.a00.json")["reason"] == "killed"
    assert any(text.startswith("Terminating worker 0 (pid ") for text in caplog.messages)
    assert "Worker 1 terminated (killed by SIGKILL)" in caplog.messages
    coordinator.terminate_all()


def test_ctrl_c_while_waiting_ends_the_workers(box: Box, out: Path) -> None:
    parent = start_parent(box, out, 1, "be_stuck", "[]")
    watching = GPUProcessCoordinator(1, out)
    wait_until(lambda: not watching.results_queue.empty())
    # It says that it is about to wait. Once it sleeps after that, it does wait.
    wait_until((box / "waits").exists)
    wait_until(lambda: is_asleep(parent.pid))
    parent.signal(signal.SIGINT)
    assert "KeyboardInterrupt" in parent.wait(-signal.SIGINT).err
    pids = watching.results_queue.get_nowait()["pids"]
    wait_until(lambda: not any(map(is_alive, pids)))


def test_workers_independent(make: Make) -> None:
    coordinator = make(3)
    ids = [report["ids"] for report in run(coordinator, seed_workers.tell)]
    assert [pid for pid, _, _ in ids] == [worker.pid for worker in coordinator.workers.values()]
    assert {parent for _, parent, _ in ids} == {os.getpid()}
    assert len({session for _, _, session in ids}) == 3, (
        "each leads a session, and so a process group, of its own"
    )


def test_spawn_not_fork(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_workers, "CHANGED_BY_THE_PARENT", "yes")
    coordinator = make(1)
    assert coordinator.ctx.get_start_method() == "spawn"
    (report,) = run(coordinator, seed_workers.tell)
    assert (report["changed"], report["modules"], report["main"]) == (
        "no",
        [],
        ("worker", "__main__.py"),
    )


def test_a_function_in_a_test_file(make: Make) -> None:
    (report,) = run(make(1), tell_from_here)
    assert report == {"rank": 0, "module": __name__, "file": __file__}


FUNCTION = "def work(rank, world_size, results_queue):\n    results_queue.put([__name__, VALUE])\n"
PARENT = """
from gpuspool.orchestrator.gpu_coordinator import GPUProcessCoordinator
def main():
    coordinator = GPUProcessCoordinator(1, "out")
    coordinator.spawn_workers(work, ())
    print(coordinator.wait_for_completion(60), *coordinator.collect_results())
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("module", [[], ["-m"]])
def test_a_function_in_main(box: Box, module: list[str]) -> None:
    """`python script.py`, and `python -m package.script` with an import that only the package can
    give.
    """
    box.write("package/beside.py", "VALUE = 'beside'\n")
    what, name = ("package.script", "package.script") if module else ("package/script.py", "script")
    box.write(
        "package/script.py", f"from {'.' * len(module)}beside import VALUE\n{FUNCTION}{PARENT}"
    )
    done = box.run(*module, what, program=(sys.executable,), env={"CUDA_VISIBLE_DEVICES": "0"})
    assert done.out == f"{{0: True}} ['{name}', 'beside']\n"


def test_a_function_in_a_package_that_is_not_installed(box: Box) -> None:
    box.write("elsewhere/package/__init__.py", "from .beside import VALUE\n")
    box.write("elsewhere/package/beside.py", "VALUE = 'beside'\n")
    box.write("elsewhere/package/deep/__init__.py", "")
    box.write("elsewhere/package/deep/work.py", f"from .. import VALUE\n{FUNCTION}")
    source = (
        f"import sys\nsys.path.append('elsewhere')\nfrom package.deep.work import work\n{PARENT}"
    )
    done = box.python(source, env={"CUDA_VISIBLE_DEVICES": "0"})
    assert done.out == "{0: True} ['package.deep.work', 'beside']\n"


def test_a_function_without_a_name_in_a_file_is_refused(make: Make, box: Box) -> None:
    def nested(rank: int, world_size: int, results_queue: Any) -> None:
        pass

    for function in (
        lambda *_: None,
        nested,
        "text".upper,
        GPUProcessCoordinator(1, box.home).collect_results,
    ):
        with pytest.raises(TypeError, match="cannot be found by its name in another process"):
            make(1).spawn_workers(function, ())
    with pytest.raises(UsageError, match="worker_fn print is not in a file"):
        make(1).spawn_workers(print, ())
    done = box.run("-c", f"VALUE = 1\n{FUNCTION}{PARENT}", program=(sys.executable,), code=1)
    assert "worker_fn work is not in a file" in done.err


def test_what_cannot_be_imported_in_the_worker_fails_with_1(
    make: Make, box: Box, tmp_path: Path
) -> None:
    only_once = f"import pathlib\npathlib.Path({str(tmp_path / 'once')!r}).touch(exist_ok=False)\n"
    box.write("script.py", f"{only_once}VALUE = 1\n{FUNCTION}{PARENT}")
    done = box.run("script.py", program=(sys.executable,), env={"CUDA_VISIBLE_DEVICES": "0"})
    assert done.out == "{0: False}\n"
    assert "Worker 0 failed with exit code 1" in done.err
    assert "FileExistsError" in done.err


def test_two_generations_in_one_output_dir(make: Make, out: Path) -> None:
    first, second = make(2), make(1)
    assert len(run(first, seed_workers.tell, "a")) == 2
    assert [report["args"] for report in run(first, seed_workers.tell, "b")] == [("b",), ("b",)]
    assert names(out) == ["spool-0000", "spool-0001"]
    assert [report["args"] for report in second.collect_results()] == [("b",), ("b",)], (
        "those of the newest"
    )
    assert [report["args"] for report in run(second, seed_workers.tell, "c")] == [("c",)]
    assert names(out)[-1] == "spool-0002"


def test_coordinators_that_start_at_the_same_time_get_a_generation_each(
    make: Make, out: Path
) -> None:
    coordinators = [make(1) for _ in range(4)]
    spawn = [(one.spawn_workers, (seed_workers.tell, (i,))) for i, one in enumerate(coordinators)]
    threads = [threading.Thread(target=target, args=args) for target, args in spawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.wait_for_completion(60) for one in coordinators] == [{0: True}] * 4
    assert [[report["args"] for report in one.collect_results()] for one in coordinators] == [
        [(i,)] for i in range(4)
    ]
    assert len(names(out)) == 4


def test_the_example_of_the_docs_runs(box: Box) -> None:
    text = (Path(__file__).parent.parent / "docs" / "seed-api.md").read_text()
    example, expected = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    assert box.python(example, env={"CUDA_VISIBLE_DEVICES": "0,1"}).out == expected
