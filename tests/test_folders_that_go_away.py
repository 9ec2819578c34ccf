"""The path is not the folder: OUT or the spool is moved, replaced or unmounted during a run."""

import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import (
    JOBS,
    Box,
    Started,
    assert_sound,
    identities,
    is_alive,
    journal_lines,
    names,
    record,
    story,
    tree,
    wait_until,
    waiting,
)
from spooling import A0
from torture import mounts

import gpuspool
from gpuspool.spool.errors import FolderGone
from gpuspool.spool.layout import OUT_MARK, hidden_name
from gpuspool.spool.open_folder import OUT, SPOOL, OpenFolder, folder_id, open_out
from gpuspool.spool.processes import MARK, mark_of, run_mark
from gpuspool.worker.context import Task
from gpuspool.worker.outputs import Outputs

needs_mounts = pytest.mark.skipif(bool(mounts.why_not()), reason=mounts.why_not() or "-")

PAYLOADS = ["go"] * 6 + ["wait"] * 8
# What `gpuspool` says where a folder went away.
GONE = "is not the folder that it was"


def start(box: Box, *options: str | Path, payloads: list[str] | None = None) -> Started:
    """Start a run S of which two tasks wait for the gate, each in a worker of its own."""
    started = box.start(*command(box, *options, payloads=payloads))
    wait_until(lambda: len(waiting(box)) >= 2)
    return started


def command(box: Box, *options: str | Path, payloads: list[str] | None = None) -> list[str | Path]:
    tasks = box.tasks(list(payloads or PAYLOADS))
    words: list[str | Path] = ["run", f"{JOBS}/gates.py:publishes", "--tasks", tasks]
    words += ["--spool", "S", "--ranks", "2", "--arg", f"gate={box / 'gate'}", "-q"]
    return [*words, *options]


def open_gate(box: Box) -> None:
    (box / "gate").touch()


def published(out: Path) -> list[str]:
    """The outputs in a folder, as `ls` shows them."""
    return [name for name in names(out) if name.endswith(".txt")]


def told_complete(spool: Path) -> list[str]:
    """The outputs that the journals call complete."""
    lines = [line for line in journal_lines(spool) if line["state"] == "complete"]
    return sorted(name for line in lines for name, _ in line["outputs"])


def assert_nothing_failed(spool: Path) -> None:
    assert names(spool / "failed-tasks") == []


def mv(box: Box) -> None:
    (box / "O").rename(box / "true")


def mv_and_mkdir(box: Box) -> None:
    mv(box)
    (box / "O").mkdir()


def mv_and_link(box: Box) -> None:
    mv(box)
    (box / "elsewhere").mkdir()
    (box / "O").symlink_to(box / "elsewhere")


def another_run(box: Box) -> None:
    box.run("run", f"{JOBS}/gates.py:publishes", "--lines", box.lines(1, "one"), "--spool", "S2",
            "--out", "O2", "-q")  # fmt: skip
    mv(box)
    (box / "O2").rename(box / "O")


@pytest.mark.parametrize("take_away", [mv, mv_and_mkdir, mv_and_link, another_run])
def test_nothing_is_told_complete_beside_an_out_that_was_moved(
    box: Box, take_away: Callable[[Box], None]
) -> None:
    started = start(box, "--out", "O")
    take_away(box)
    before = published(box / "O")
    open_gate(box)
    done = started.wait(1)
    assert str(box / "O") in done.err
    assert GONE in done.err
    assert published(box / "O") == before, "nothing is written into another folder"
    assert told_complete(box / "S") == published(box / "true")
    assert_nothing_failed(box / "S")
    assert box.processes() == []
    # Put back, the same command goes on.
    if (box / "O").is_symlink():
        (box / "O").unlink()
    elif (box / "O").exists():
        (box / "O").rename(box / "beside")
    (box / "true").rename(box / "O")
    box.run(*command(box, "--out", "O"))
    assert_sound(box, "S", len(PAYLOADS))


@needs_mounts
@pytest.mark.parametrize("way", ["unmounted", "covered"])
def test_nothing_is_told_complete_beside_an_out_that_was_unmounted(box: Box, way: str) -> None:
    out = box / "O"
    out.mkdir()
    disk = mounts.Tmpfs(box / "disk", 1 << 20, 100)
    try:
        if way == "unmounted":
            disk.show_at(out)
        started = start(box, "--out", out)
        if way == "unmounted":
            mounts.call("umount", "--lazy", out)
        else:
            disk.show_at(out)
        open_gate(box)
        assert GONE in started.wait(1).err
        assert published(out) == [], "nothing lies where the mount was, or in what covers it"
        assert_nothing_failed(box / "S")
        refused = box.run("resume", "S", "-q", code=2)
        assert "Mount" in refused.err
        assert "--out-moved-to" in refused.err
        assert tree(out) == {}, "a refused start leaves nothing"
        if way == "unmounted":
            disk.show_at(out)
        else:
            mounts.call("umount", "--lazy", out)
        assert published(out) == told_complete(box / "S")
        box.run("resume", "S", "-q")
        assert_sound(box, "S", len(PAYLOADS))
    finally:
        disk.unmount()


def test_no_task_is_blamed_for_what_it_met_while_out_was_gone(box: Box) -> None:
    started = start(box, "--out", "O", payloads=["go", "go", "raise", "raise"])
    mv(box)
    open_gate(box)
    started.wait(1)
    assert_nothing_failed(box / "S")
    (box / "true").rename(box / "O")
    box.run(*command(box, "--out", "O", payloads=["go", "go", "raise", "raise"]), code=3)


def test_nothing_is_told_complete_beside_an_out_that_was_deleted_while_workers_wrote(
    box: Box,
) -> None:
    """`rm -r` removes what it finds; the folder stays, since something is written to it again."""
    started = start(box, "--out", "OUT")
    for name in os.listdir(box / "OUT"):
        (box / "OUT" / name).unlink()
    open_gate(box)
    err = started.wait(1).err
    assert GONE in err
    assert f"it does not bear the mark {OUT_MARK}" in err
    assert_nothing_failed(box / "S")
    again = box.run(*command(box, "--out", "OUT"), code=2)
    assert "--missing-outputs` computes them again" in again.err
    box.run("redo", "S", "--missing-outputs", "-q")
    assert len(published(box / "OUT")) == len(PAYLOADS)


def test_what_is_left_of_a_spool_that_was_deleted_is_named(box: Box) -> None:
    """Workers that live on for a moment write into it again."""
    (box / "S" / "outputs").mkdir(parents=True)
    err = box.run(*command(box), code=2).err
    assert f"{box / 'S'} is there, holds something and is no spool" in err
    shutil.rmtree(box / "S")
    open_gate(box)
    box.run(*command(box))


def test_a_live_spool_that_is_moved_ends_and_goes_on_where_it_is(box: Box) -> None:
    started = start(box)
    (box / "S").rename(box / "T")
    open_gate(box)
    done = started.wait(1)
    assert str(box / "S") in done.err
    assert not (box / "S").exists(), "nothing is made at the old path"
    assert told_complete(box / "T") == published(box / "T" / "outputs")
    closings = [record(path) for path in (box / "T" / "failed").iterdir()]
    assert {one["by"] for one in closings} == {"rank-0000.a00", "rank-0001.a00"}
    assert {one["reason"] for one in closings} == {"io"}, "they gave their tasks back themselves"
    assert all(str(box / "S") in one["error"]["message"] for one in closings)
    box.run("resume", "T", "-q")
    assert_sound(box, "T", len(PAYLOADS))


@pytest.mark.parametrize("is_removed", [False, True])
def test_old_workers_do_nothing_in_a_spool_that_was_made_at_their_path(
    box: Box, is_removed: bool
) -> None:
    started = start(box, "--arg", "code=old")
    if is_removed:
        # As it is being removed, they may write into it once more.
        (box / "S").rename(box / "removed")
        shutil.rmtree(box / "removed")
    else:
        (box / "S").rename(box / "T")
    old = box.processes()
    (box / "gate.waiting").unlink()
    # The first parent is stopped, so that its workers are the only ones who could notice.
    os.kill(started.pid, signal.SIGSTOP)
    new = box.start(*command(box, "--arg", "code=new"))
    wait_until(lambda: len(waiting(box)) >= 2)
    open_gate(box)
    new.wait(0)
    os.kill(started.pid, signal.SIGCONT)
    started.wait(1)
    wait_until(lambda: not any(is_alive(pid) for pid in old))
    assert_sound(box, "S", len(PAYLOADS))
    texts = {path.read_text().split(" by ")[1] for path in (box / "S" / "outputs").glob("*.txt")}
    assert texts == {"new\n"}
    assert {line["attempt"] for line in journal_lines(box / "S")} <= set(identities(box / "S"))


@pytest.mark.parametrize("shares_out", [False, True])
def test_a_copy_of_a_live_spool_leaves_the_original_alone(box: Box, shares_out: bool) -> None:
    options = ["--out", "O"] if shares_out else []
    started = start(box, *options)
    shutil.copytree(box / "S", box / "C")
    workers = identities(box / "S")
    copy = box.start("resume", "C", "-q")
    wait_until(lambda: len(waiting(box)) >= 4, timeout=80)
    assert all(is_alive(pid) for pid in workers.values())
    assert box.status("C")["parents"][-1]["pid"] == copy.pid
    if shares_out:
        hidden = [path.name for path in (box / "O").glob(".gpuspool-*")]
        assert len(hidden) == len(set(hidden))
    open_gate(box)
    copy.wait(0)
    started.wait(0)
    assert identities(box / "S") == workers, "no worker of the original was replaced"
    assert names(box / "S" / "failed") == names(box / "S" / "stopped") == []
    assert_sound(box, "S", len(PAYLOADS))
    assert_sound(box, "C", len(PAYLOADS))


def test_the_copy_of_a_spool_is_not_waited_for_where_only_the_original_lives(box: Box) -> None:
    started = start(box)
    shutil.copytree(box / "S", box / "C")
    assert box.status("C")["state"] == "stopped"
    assert gpuspool.wait(box / "C", timeout_s=30)["state"] == "stopped"
    open_gate(box)
    started.wait(0)


def drain(box: Box, started: Started) -> None:
    """Drain a run whose workers wait for the gate, which is opened once they were told."""
    started.signal(signal.SIGTERM)
    wait_until(lambda: '"draining"' in story(box / "S"))
    open_gate(box)
    started.wait(75)


def half_done(box: Box) -> list[str | Path]:
    """A drained run S with OUT `O` that has published some of its outputs; its command."""
    words = command(box, "--out", "O")
    drain(box, start(box, "--out", "O"))
    assert 0 < len(published(box / "O")) < len(PAYLOADS)
    return words


def test_a_start_is_refused_while_published_outputs_are_nowhere(box: Box) -> None:
    words = half_done(box)
    (box / "O").rename(box / "true")
    for verb in (words, ["resume", "S"], ["retry", "S"]):
        refused = box.run(*verb, code=2)
        assert str(box / "O") in refused.err
        assert "--out-moved-to" in refused.err
        assert not (box / "O").exists(), "OUT is never made anew"
    assert any(str(box / "O") in problem for problem in box.problems("S"))
    (box / "O").mkdir()
    assert "no mark" in box.run(*words, code=2).err
    assert tree(box / "O") == {}
    (box / "O").rmdir()
    (box / "true").rename(box / "O")
    box.run(*words)
    assert_sound(box, "S", len(PAYLOADS))


def test_the_outputs_of_a_spool_are_missed_too(box: Box) -> None:
    drain(box, start(box))
    (box / "S" / "outputs").rename(box / "true")
    assert "--out-moved-to" in box.run("resume", "S", code=2).err
    box.run("resume", "S", "--out-moved-to", "true", "-q")
    assert_sound(box, "S", len(PAYLOADS))
    assert len(published(box / "true")) == len(PAYLOADS)
    assert not (box / "S" / "outputs").exists()


def test_an_out_that_was_moved_is_remembered(box: Box) -> None:
    words = half_done(box)
    (box / "O").rename(box / "N")
    box.run(*words, "--out-moved-to", "N")
    assert_sound(box, "S", len(PAYLOADS))
    assert len(published(box / "N")) == len(PAYLOADS)
    assert not (box / "O").exists()
    for copy in ("run.json", "job/run.json"):
        assert record(box / "S" / copy)["out"] == str(box / "N")
    # Nobody has to say it again, and both ways to name OUT mean this run.
    box.run("resume", "S", "-q")
    box.run(*words)
    box.run(*command(box, "--out", "N"))
    box.run(*words, "--out-moved-to", "N")


def test_an_out_that_was_moved_is_named_by_a_variable_or_from_python(box: Box) -> None:
    half_done(box)
    (box / "O").rename(box / "N")
    box.run("resume", "S", "-q", "--time-limit", "0", env={"GPUSPOOL_OUT_MOVED_TO": "N"}, code=75)
    (box / "N").rename(box / "M")
    report = gpuspool.retry(box / "S", out_moved_to=box / "M", quiet=True, devices="cpu")
    assert report.ok
    assert_sound(box, "S", len(PAYLOADS))


def test_only_the_folder_that_holds_the_outputs_is_taken_for_out(box: Box) -> None:
    words = half_done(box)
    (box / "O").rename(box / "N")
    another_run_with_out(box, "X")
    (box / "empty").mkdir()
    wrongs = [
        ("none", "no such"),
        ("X", "another run"),
        ("empty", "not there"),
        ("S/logs", "spool"),
    ]
    for wrong, why in wrongs:
        assert why in box.run(*words, "--out-moved-to", wrong, code=2).err
    assert tree(box / "empty") == {}
    # `mv N/* M` leaves the mark behind, which is a hidden file.
    (box / "M").mkdir()
    for name in names(box / "N"):
        (box / "N" / name).rename(box / "M" / name)
    box.run(*words, "--out-moved-to", "M")
    assert_sound(box, "S", len(PAYLOADS))


def another_run_with_out(box: Box, out: str) -> None:
    box.run("run", f"{JOBS}/gates.py:publishes", "--lines", box.lines(1, "one"), "--spool", "S2",
            "--out", out, "-q")  # fmt: skip


def test_out_is_not_moved_under_workers_that_write_to_it(box: Box) -> None:
    started = start(box, "--out", "O")
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    shutil.copytree(box / "O", box / "N")
    done = box.run("resume", "S", "--out-moved-to", "N", code=6)
    assert "gpuspool drain" in done.err
    assert record(box / "S" / "run.json")["out"] == str(box / "O")


def test_an_out_without_any_output_is_made_anew(box: Box) -> None:
    started = start(box, "--out", "O", payloads=["hold"] * 4)
    box.kill_all()
    started.wait()
    shutil.rmtree(box / "O")
    open_gate(box)
    box.run(*command(box, "--out", "O", payloads=["hold"] * 4))
    assert_sound(box, "S", 4)


@pytest.mark.parametrize("spool", ["S", "T"])
def test_an_out_on_which_the_mark_was_only_begun_is_empty(box: Box, spool: str) -> None:
    """Whoever made the run was killed, or lost power, while it wrote the mark."""
    started = start(box, "--out", "O", payloads=["hold"] * 4)
    box.kill_all()
    started.wait()
    shutil.rmtree(box / "O")
    (box / "O").mkdir()
    (box / "O" / hidden_name(OUT_MARK)).write_text("7a")
    open_gate(box)
    words = command(box, "--out", "O", payloads=["hold"] * 4)
    box.run(*[spool if word == "S" else word for word in words])
    assert_sound(box, spool, 4)


def test_adopted_workers_notice_too_and_the_next_start_goes_on(box: Box) -> None:
    started = start(box, "--out", "O")
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    adopter = box.start("resume", "S", "-q")
    wait_until(lambda: box.status("S")["parents"][-1]["pid"] == adopter.pid)
    mv(box)
    open_gate(box)
    assert GONE in adopter.wait(1).err
    assert box.processes() == []
    assert told_complete(box / "S") == published(box / "true")
    box.run("resume", "S", "-q", "--out-moved-to", "true")
    assert_sound(box, "S", len(PAYLOADS))


def test_workers_without_a_parent_notice_by_themselves(box: Box) -> None:
    started = start(box, "--out", "O")
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    mv(box)
    open_gate(box)
    wait_until(lambda: box.processes() == [])
    assert not (box / "O").exists()
    assert told_complete(box / "S") == published(box / "true")
    assert_nothing_failed(box / "S")


def test_an_open_folder_notices_whatever_comes_to_its_path(tmp_path: Path) -> None:
    path = tmp_path / "P"
    path.mkdir()
    folder = OpenFolder(path, SPOOL)
    folder.check()
    # Many file systems give the next folder the number of the last one that was removed.
    path.rmdir()
    with pytest.raises(FolderGone, match=str(path)):
        folder.check()
    path.mkdir()
    with pytest.raises(FolderGone, match="another folder"):
        folder.check()
    path.rmdir()
    path.write_text("a file")
    with pytest.raises(FolderGone):
        folder.check()


def test_a_folder_that_is_held_open_is_reached_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "P"
    path.mkdir()
    folder = OpenFolder(path, OUT)
    path.rename(tmp_path / "Q")
    (folder.held / "x").write_text("x")
    assert (tmp_path / "Q" / "x").read_text() == "x"
    assert folder_id(tmp_path / "Q") == folder.folder_id
    (tmp_path / "Q").rename(path)
    folder.check()


def test_a_mark_that_cannot_be_read_is_named_by_its_path(tmp_path: Path) -> None:
    mark = tmp_path / OUT_MARK
    mark.write_text("a run")
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Room for the folder's descriptor, and for none more.
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        with pytest.raises(OSError, match=str(mark)) as raised:
            open_out(tmp_path, "a run")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE


def a_task(key: str) -> Task:
    return Task(index=0, key=key, payload=None, cost=1.0)


@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_below_out_that_was_replaced_takes_no_output(
    tmp_path: Path, is_link: bool
) -> None:
    out = tmp_path / "O"
    out.mkdir()
    outputs = Outputs(out, A0)
    outputs.in_hand = (0,)
    outputs.path(a_task("sub/a"), "").write_text("a")
    assert outputs.publish([0]) == {0: [("sub/a", 1)]}
    outputs.path(a_task("sub/b"), "").write_text("b")
    (out / "sub").rename(tmp_path / "true")
    if is_link:
        (tmp_path / "elsewhere").mkdir()
        (out / "sub").symlink_to(tmp_path / "elsewhere")
    else:
        (out / "sub").mkdir()
    (out / "sub" / "b").write_text("foreign")
    with pytest.raises(FolderGone, match="sub"):
        outputs.publish([0])
    assert (out / "sub" / "b").read_text() == "foreign"
    with pytest.raises(FolderGone, match="sub"):
        outputs.path(a_task("sub/c"), "")


def test_what_was_published_as_out_went_away_is_not_believed(tmp_path: Path) -> None:
    """Looks before and after: the second one finds what happened in between."""
    out = tmp_path / "O"
    out.mkdir()
    folder = OpenFolder(out, OUT)
    looks = []

    def check() -> None:
        folder.check()
        looks.append(len(published(out)))

    outputs = Outputs(out, A0, check)
    outputs.in_hand = (0,)
    outputs.path(a_task("a"), ".txt").write_text("a")
    outputs.publish([0])
    assert looks == [0, 1]
    outputs.path(a_task("b"), ".txt").write_text("b")
    out.rename(tmp_path / "true")
    with pytest.raises(FolderGone):
        outputs.publish([0])
    assert not out.exists()


def test_a_worker_never_makes_out(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "O", A0)
    outputs.in_hand = (0,)
    with pytest.raises(FileNotFoundError):
        outputs.path(a_task("sub/a"), "")
    assert isinstance(outputs.trouble, FileNotFoundError)
    assert not (tmp_path / "O").exists()


def test_hidden_outputs_tell_the_run_and_the_folder_of_its_spool(box: Box) -> None:
    job = "def f(task, ctx):\n    path = ctx.output(task, '.txt')\n"
    box.write("j.py", job + "    path.write_text('x')\n    return path.name\n")
    box.run("run", "j.py:f", "--lines", box.lines(1), "--spool", "S", "-q")
    name = box.results("S")[0]["result"]
    run = record(box / "S" / "run.json")["id"]
    assert name == f".gpuspool-{run}.{folder_id(box / 'S')}-rank-0000.a00-0-.txt"


def test_a_copy_removes_no_hidden_output_of_the_original(box: Box) -> None:
    started = start(box, "--out", "O")
    shutil.copytree(box / "S", box / "C")
    run = record(box / "S" / "run.json")["id"]
    writing = box / "O" / f".gpuspool-{run}.{folder_id(box / 'S')}-rank-0000.a00-3-.txt"
    writing.write_text("half of it")
    left = box / "O" / f".gpuspool-{run}.{folder_id(box / 'C')}-rank-0000.a01-3-.txt"
    copy = box.start("resume", "C", "-q", "--max-restarts", "9")
    wait_until(lambda: len(waiting(box)) >= 4, timeout=80)
    left.write_text("of a worker that dies")
    os.kill(identities(box / "C")["rank-0000.a01"], signal.SIGKILL)
    # The original must not end before the copy does: then nothing of it may be written any more.
    original = [started.pid, *identities(box / "S").values()]
    for pid in original:
        os.kill(pid, signal.SIGSTOP)
    open_gate(box)
    copy.wait(0)
    assert writing.exists(), "the original's attempt counts as dead in the copy, and lives"
    assert not left.exists(), "what was left by an attempt of its own is removed"
    for pid in original:
        os.kill(pid, signal.SIGCONT)
    started.wait(0)


def test_a_worker_does_nothing_in_a_spool_that_it_was_not_started_for(box: Box) -> None:
    """Between the parent's look and the worker's start another run may come to the path."""
    started = start(box)
    shutil.copytree(box / "S", box / "C")
    shutil.rmtree(box / "C" / "journal")
    (box / "C" / "journal").mkdir()
    worker = (sys.executable, "-P", "-m", "gpuspool.worker")
    meant = mark_of(run_mark(record(box / "S" / "run.json")["id"], folder_id(box / "S")), A0)
    words = ["--spool", box / "C", "--rank", "0", "--attempt", "0"]
    done = box.run(*words, program=worker, env={MARK: meant}, code=5)
    assert "is not the spool" in done.out
    assert names(box / "C" / "journal") == []
    open_gate(box)
    started.wait(0)


def test_reading_verbs_tell_that_the_outputs_are_not_there(box: Box) -> None:
    open_gate(box)
    box.run(*command(box, "--out", "O"))
    for verb in (["results", "S"], ["wait", "S"]):
        assert box.run(*verb).err == ""
    (box / "O").rename(box / "N")
    for verb in (["results", "S"], ["wait", "S"]):
        done = box.run(*verb)
        assert str(box / "O") in done.err
        assert "--out-moved-to" in done.err
    assert str(box / "O") in box.run("verify", "S", code=5).out


def test_a_new_run_takes_no_folder_for_its_own_that_only_was_said_to_be_it(box: Box) -> None:
    box.write("N/notes.txt", "somebody's")
    done = box.run(*command(box), "--out-moved-to", "N", code=2)
    assert "--out" in done.err
    assert tree(box / "N") == {"notes.txt": b"somebody's"}


def test_a_look_whether_out_takes_data_is_taken_in_the_folder_that_out_was(tmp_path: Path) -> None:
    """Another run's folder may have come to its path in this moment."""
    out, true = tmp_path / "OUT", tmp_path / "true"
    out.mkdir()
    held = OpenFolder(out, OUT).held
    outputs = Outputs(out, "w", held=held)
    out.rename(true)
    out.mkdir()
    true_stamp, stamp = true.stat().st_mtime_ns, out.stat().st_mtime_ns
    outputs.probe(out)
    assert out.stat().st_mtime_ns == stamp, "nothing was made in what is there now"
    assert true.stat().st_mtime_ns != true_stamp
    assert names(true) == names(out) == []
    (true / "in the way").write_text("")
    with pytest.raises(NotADirectoryError) as raised:
        outputs.probe(out / "in the way")
    assert raised.value.filename == str(out / "in the way"), "people know the path"
