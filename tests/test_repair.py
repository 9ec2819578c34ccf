"""Damage to what the whole spool hangs on is repaired, and the damaged file is kept; none of it
stops a resume.
"""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest
from helpers import JOBS, PATIENCE_S, Box, assert_sound, half_done, names, record
from spooling import make_spool

from gpuspool.orchestrator.supervise.repair import repair
from gpuspool.spool.view import load_run

PAYLOADS = 40  # of half_done


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.chmod(0o644)
    match how:
        case "zeroes":
            path.write_bytes(bytes(len(data)))
        case "flipped":
            path.write_bytes(
                data[: len(data) // 2]
                + bytes([data[len(data) // 2] ^ 0xFF])
                + data[len(data) // 2 + 1 :]
            )
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()


@pytest.mark.parametrize("how", ["zeroes", "flipped", "empty", "gone"])
@pytest.mark.parametrize("name", ["FORMAT", "run.json", "job/run.json", "job/gates.py"])
def test_what_a_spool_hangs_on_is_restored(box: Box, name: str, how: str) -> None:
    command = half_done(box)
    whole = (box / "S" / name).read_bytes()
    damage(box / "S" / name, how)
    broken = (box / "S" / name).read_bytes() if how != "gone" else b""
    box.run(*(["resume", "S"] if how in ("zeroes", "gone") else command))
    assert_sound(box, "S", PAYLOADS)
    if (
        name != "run.json" or how != "flipped"
    ):  # a flipped bit may leave valid JSON, other than it was
        assert (box / "S" / name).read_bytes() == whole or record(box / "S" / name) == record(
            box / "S" / "run.json"
        )
    copies = [
        path for path in (box / "S" / "corrupt").iterdir() if path.name.endswith(Path(name).name)
    ]
    assert [copy.read_bytes() for copy in copies] in (
        [broken],
        [] if how == "flipped" else [broken],
    )


@pytest.mark.parametrize(
    "name",
    ["claims", "heartbeat", "complete", "failed-tasks", "control", "usage", "logs", "corrupt"],
)
def test_a_missing_folder_is_made_again(box: Box, name: str) -> None:
    half_done(box)
    shutil.rmtree(box / "S" / name)
    box.run("resume", "S")
    results = box.results("S")
    assert [result["state"] for result in results] == ["complete"] * PAYLOADS


def test_a_job_copy_that_nobody_has_any_more_is_refused_with_ways_on(box: Box) -> None:
    gates = box.job("gates.py")
    box.job("plain.py")
    command = [
        "run",
        "gates.py:gated",
        "--tasks",
        box.tasks(["a", "b"]),
        "--arg",
        "gate=gate",
        "--spool",
        "S",
    ]
    box.run(*command)
    damage(box / "S" / "job" / "gates.py", "zeroes")
    gates.unlink()
    done = box.run("resume", "S", code=5)
    assert "Restore either" in done.err
    assert "--keep-done" in done.err


def test_a_worker_runs_no_copy_of_a_job_that_is_damaged(box: Box) -> None:
    """Damaged after the orchestrator looked: here by the first worker's own job."""
    job = "import pathlib\ndef f(task, ctx):\n"
    job += "    path = next(pathlib.Path(ctx.args['copy']).glob('*.py'))\n"
    job += "    path.write_text(path.read_text() + '# changed')\n    import os; os._exit(3)\n"
    box.write("job.py", job)
    command = [
        "run",
        "job.py:f",
        "--lines",
        box.lines(2),
        "--spool",
        "S",
        "--arg",
        f"copy={box / 'S' / 'job'}",
    ]
    done = box.run(*command, "--max-restarts", "0", code=4)
    assert "is damaged or missing" in done.err


def test_a_spool_with_a_link_for_a_folder_is_refused(box: Box) -> None:
    half_done(box)
    (box / "S" / "claims").rename(box / "elsewhere")
    os.symlink(box / "elsewhere", box / "S" / "claims")
    assert "symbolic link" in box.run("resume", "S", code=2).err


def test_a_half_made_spool_is_told_and_not_used(box: Box) -> None:
    box.write(".S.999999999.0.00c0ffee/FORMAT", "gpuspool 1\n")
    box.write(
        ".S.1.0.00c0ffee/FORMAT", "gpuspool 1\n"
    )  # pid 1 lives: somebody may be making it right now
    done = box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(2), "--spool", "S")
    assert ".S.999999999.0.00c0ffee was left half made" in done.err
    assert ".S.1.0" not in done.err
    assert names(box / "S")[0] == "FORMAT"


def test_no_secret_of_the_environment_reaches_a_file(box: Box) -> None:
    box.run(
        "run",
        f"{JOBS}/plain.py:double",
        "--lines",
        box.lines(2),
        "--spool",
        "S",
        env={"MY_TOKEN": "hunter2-xyz"},
    )
    found = [
        path
        for path in (box / "S").rglob("*")
        if path.is_file() and b"hunter2-xyz" in path.read_bytes()
    ]
    assert found == []


def test_several_that_repair_at_the_same_moment_repair_it_once(tmp_path: Path) -> None:
    """As where locks do not work, and several starts come at once."""
    layout = make_spool(tmp_path / "s", 4)
    run = load_run(layout)
    n_rounds, n_threads = 20, 6
    gate = threading.Barrier(n_threads)

    def repair_each() -> None:
        for number in range(n_rounds):
            if gate.wait(PATIENCE_S) == 0:
                shutil.rmtree(layout.subdir("failed"))
                layout.code(f"{number:032x}").write_text("{}")
            gate.wait(PATIENCE_S)
            repair(layout, run)
            gate.wait(PATIENCE_S)

    with ThreadPoolExecutor(n_threads) as pool:
        jobs = [pool.submit(repair_each) for _ in range(n_threads)]
        for job in as_completed(jobs):
            if job.exception() is not None:
                gate.abort()
    assert [str(job.exception()) for job in jobs if job.exception() is not None] == []
    assert layout.subdir("failed").is_dir()
    kept = [name for name in names(layout.corrupt) if name.startswith("job-code-")]
    assert len(kept) == n_rounds
