"""What comes after the worst: a reboot, damage to what a round was, a drive that stumbles, another
orchestrator.
"""

import ctypes
import os
from pathlib import Path

import pytest
from helpers import GPUSPOOL, JOBS, Box, journal_lines, names, ran, record, wait_until, waiting
from spooling import A0, JOB, begin, dead_process, intend, make_spool, view_of

from gpuspool.orchestrator.supervise.launch import Orders
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool.identity import identity_of, liveness, myself
from gpuspool.spool.publish import publish
from gpuspool.spool.records import Options
from gpuspool.spool.states import Life, Phase
from gpuspool.spool.view import read_control
from gpuspool.worker.beat import Beat
from gpuspool.worker.drain import Drain
from gpuspool.worker.modules import Modules
from gpuspool.worker.nudges import Nudges
from gpuspool.worker.standing import Standing

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces")


@needs_root
def test_after_a_reboot_a_lost_claim_makes_no_finished_task_run_again(box: Box) -> None:
    """A new boot id: the dead are closed by their leases, long after the orchestrator has begun."""
    renamed = ("unshare", "--uts", "sh", "-c", 'hostname before; exec "$@"', "sh", GPUSPOOL)
    payloads = [f"go {i}" for i in range(60)] + ["wait"] * 2
    command = ["run", f"{JOBS}/gates.py:gated", "--tasks", box.tasks(payloads), "--ranks", "1"]
    command += ["--arg", f"gate={box / 'gate'}", "--spool", "S", "--lease", "1", "--quiet"]
    started = box.start(*command, program=renamed)
    # What is done has its line by then, so that nothing but the task at the gate runs again.
    wait_until(lambda: waiting(box) and len(journal_lines(box / "S")) == len(ran(box)) > 30)
    box.kill_all()
    started.wait()
    claims = names(box / "S" / "claims" / "rank-0000")
    assert len(claims) > 3
    (box / "S" / "claims" / "rank-0000" / claims[len(claims) // 2]).unlink()
    (box / "gate").touch()
    box.run("resume", "S", "--lease", "1", "--quiet")
    assert {result["state"] for result in box.results("S")} == {"complete"}
    assert sorted(ran(box)) == list(range(62)), "each once"


def test_a_retry_runs_also_where_the_one_before_it_was_damaged(box: Box) -> None:
    box.write("job.py", "def f(task, ctx):\n    raise ValueError\n")
    box.run("run", "job.py:f", "--lines", box.lines(2), "--spool", "S", "--keep-going", code=3)
    box.run("retry", "S", code=3)
    (retry,) = (box / "S" / "manifests").glob("retry-*.jsonl")
    data = bytearray(retry.read_bytes())
    for at in (10, data.index(b"\n") + 10):
        data[at] ^= 1
    retry.write_bytes(data)
    before = len(journal_lines(box / "S"))
    box.run("retry", "S", code=3)
    assert len(journal_lines(box / "S")) == before + 2


def test_the_beat_goes_on_after_a_look_for_a_drain_that_failed(tmp_path: Path) -> None:
    """Without its thread nothing is synced, nor is any drain seen."""
    layout = make_spool(tmp_path / "s", 4)
    intent = intend(layout, A0)
    drain = Drain(is_published=lambda: read_control(layout).stops(0))
    standing = Standing(layout, A0, lease_s=120)
    modules = Modules(layout, intent.job, "/", [])
    beat = Beat(layout, intent, myself(), begin(layout, A0), drain, standing, modules, Nudges(None))
    beat._lease_s = 0.6  # looks and beats each 50 ms
    layout.control.rmdir()
    layout.control.symlink_to(layout.control)  # ELOOP
    beat.start()
    path = layout.heartbeat(A0)
    seen = [wait_until(lambda: path.exists() and path.read_bytes())]
    for _ in range(4):
        seen.append(wait_until(lambda: path.read_bytes() != seen[-1] and path.read_bytes()))
    layout.control.unlink()
    layout.control.mkdir()
    publish(layout.drain(0), b"")
    wait_until(lambda: drain.is_requested)
    beat.finish()


def test_the_beat_goes_on_where_no_record_of_modules_can_be_written(tmp_path: Path) -> None:
    """Others would take the attempt for dead. The record is written once that can be done."""
    layout = make_spool(tmp_path / "s", 4)
    intent = intend(layout, A0)
    modules = Modules(layout, intent.job, "/", [])
    standing = Standing(layout, A0, lease_s=120)
    beat = Beat(
        layout, intent, myself(), begin(layout, A0), Drain(), standing, modules, Nudges(None)
    )
    beat.doing.phase = Phase.RUNNING
    folder = layout.subdir("job")
    folder.rename(tmp_path / "away")
    beat.beat()
    assert record(layout.heartbeat(A0)).get("code", "") == ""
    (tmp_path / "away").rename(folder)
    beat.beat()
    assert layout.code(record(layout.heartbeat(A0))["code"]).exists()


def test_an_attempt_that_another_parent_is_starting_is_none_of_this_ones(tmp_path: Path) -> None:
    """They would close each other's."""
    layout = make_spool(tmp_path / "s", 4)
    other = identity_of(os.getppid())
    orders = Orders(epoch=3, job=JOB, options=Options(), world_size=2)
    intend(layout, A0, epoch=3, parent=other)
    assert Workers(view_of(layout), orders).life(A0) is Life.ELSEWHERE
    mine = make_spool(tmp_path / "t", 4)
    intend(mine, A0, epoch=3)
    assert Workers(view_of(mine), orders).life(A0) is Life.DEAD


@needs_root
def test_a_process_that_proc_hides_is_not_taken_for_dead() -> None:
    """hidepid: who looks at a colleague's run sees nothing of it."""
    me, gone = myself(), dead_process()
    child = os.fork()
    if child == 0:
        libc, private = ctypes.CDLL(None), (1 << 18) | (1 << 14)  # MS_PRIVATE | MS_REC
        libc.unshare(0x20000)  # CLONE_NEWNS
        libc.mount(b"none", b"/", None, private, None)
        libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2")
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        hidden = not Path(f"/proc/{me.pid}").exists()
        os._exit(
            0 if (hidden, liveness(me), liveness(gone)) == (True, Life.ELSEWHERE, "dead") else 1
        )
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
