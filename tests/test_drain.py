"""Stopping a run so that it can go on: signals, `drain`, the time limit, the grace; and nothing
left running.
"""

import os
import signal
import stat
import time
from pathlib import Path

import msgspec
import pytest
from helpers import (
    GPUSPOOL,
    JOBS,
    Box,
    assert_sound,
    identities,
    interrupt_twice,
    is_alive,
    journal_lines,
    kill,
    names,
    ran,
    record,
    start_gated,
    wait_until,
    waiting,
)
from spooling import intend, make_spool

from gpuspool.orchestrator.supervise.drain import (
    ASKED,
    NEW_CODE,
    SAME_SIGNAL_S,
    Cause,
    Drain,
    DrainWatch,
    order_drain,
    signals_to,
)
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import publish
from gpuspool.spool.states import Ending
from gpuspool.spool.view import Control, read_control

PAYLOADS = ["wait", "wait", *["go"] * 8]
GRACE_S = 25.0


def spoil_a_heartbeat(layout: Layout) -> Path:
    """Let there be an attempt of another host whose heartbeat cannot be read: its path.

    A socket cannot be opened as a file is, whoever tries: ENXIO.
    """
    parent = msgspec.structs.replace(myself(), host="elsewhere", boot_id="another")
    heartbeat = layout.heartbeat("rank-0002.a00")
    os.mknod(heartbeat, stat.S_IFSOCK | 0o600)
    intend(layout, "rank-0002.a00", parent=parent)
    return heartbeat


def finish_drain(box: Box, command: list[str | Path], code: int = 75) -> None:
    """After a drain with both ranks at the gate: those two tasks are done, nothing else is; the
    rest follows.
    """
    assert sorted(line["task"] for line in journal_lines(box / "S")) == [0, 1]
    assert box.processes() == []
    stopped = [record(box / "S" / "stopped" / name) for name in names(box / "S" / "attempts")]
    assert [(closing["state"], closing["reason"]) for closing in stopped] == [
        ("stopped", "drained")
    ] * 2
    assert box.status("S")["state"] == "stopped"
    assert record(box / "S" / "summary.json")["exit_code"] == code
    box.run(*command)
    assert_sound(box, "S", len(PAYLOADS))
    assert sorted(ran(box)) == list(range(len(PAYLOADS)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_drains(box: Box, number: signal.Signals) -> None:
    command: list[str | Path] = [
        "run",
        f"{JOBS}/gates.py:gated",
        "--tasks",
        box.tasks(PAYLOADS),
        "--ranks",
        "2",
    ]
    command += ["--arg", f"gate={box / 'gate'}", "--spool", "S"]
    as_from_a_terminal = (
        "env",
        "--default-signal=HUP",
        GPUSPOOL,
    )  # these tests may run under nohup
    started = box.start(*command, program=as_from_a_terminal)
    wait_until(lambda: len(waiting(box)) == 2)
    started.signal(number)
    wait_until(lambda: f"{number.name} received" in started.err)
    assert not started.is_over()
    (box / "gate").touch()
    done = started.wait(75)
    assert "drained with 2 of 10 tasks complete" in done.err
    assert "gpuspool resume S" in done.err
    finish_drain(box, command)


def test_drain_from_another_process(box: Box) -> None:
    started, command = start_gated(box, PAYLOADS, "--ranks", "2")
    wait_until(lambda: len(waiting(box)) == 2)
    asked = box.run("drain", "S")
    assert asked.out == ""
    assert "gpuspool wait" in asked.err
    wait_until(lambda: "`gpuspool drain` asked for it" in started.err)
    (box / "gate").touch()
    started.wait(4)
    finish_drain(box, command, 4)


def test_a_drain_of_what_does_not_run_stops_no_later_run(box: Box) -> None:
    command = ["run", f"{JOBS}/plain.py:fails_until_fixed", "--tasks", box.tasks(["bad", "good"])]
    command += ["--arg", "fixed=fixed", "--spool", "S"]
    box.run(*command, code=3)
    assert "there is nothing to stop" in box.run("drain", "S").err
    box.run("drain", "S")
    (box / "fixed").touch()
    box.run("retry", "S")
    assert_sound(box, "S", 2)


def test_a_drain_reaches_an_orchestrator_that_only_adopted_workers(box: Box) -> None:
    """It started none itself; it, too, must stop when it is asked to."""
    started, command = start_gated(box, PAYLOADS, "--ranks", "2")
    wait_until(lambda: len(waiting(box)) == 2)
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    again = box.start(*command, "--ranks", "2")
    wait_until(lambda: again.err.count("outlived") == 2)
    box.run("drain", "S")
    wait_until(lambda: "asked for it" in again.err)
    (box / "gate").touch()
    again.wait(4)
    finish_drain(box, command, 4)


def test_a_signal_to_an_orchestrator_that_adopted_drains_its_workers_too(box: Box) -> None:
    started, command = start_gated(box, PAYLOADS, "--ranks", "2")
    wait_until(lambda: len(waiting(box)) == 2)
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    again = box.start(*command, "--ranks", "2")
    wait_until(lambda: again.err.count("outlived") == 2)
    again.signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM received" in again.err)
    (box / "gate").touch()
    again.wait(75)
    finish_drain(box, command)


def test_the_time_limit_drains(box: Box) -> None:
    """The tasks end when they are told to; a Slurm script requeues on the exit code."""
    command = [
        "run",
        f"{JOBS}/gates.py:gated_polite",
        "--lines",
        box.lines(4),
        "--ranks",
        "2",
        "--spool",
        "S",
    ]
    command += ["--arg", f"gate={box / 'gate'}"]
    done = box.run(*command, "--time-limit", "1s", code=75)
    assert "the time limit is reached" in done.err
    assert box.processes() == []
    before = journal_lines(box / "S")
    assert all(line["result"] is True for line in before), (
        "a long task may look whether it should end"
    )
    (box / "gate").touch()
    box.run(*command, "--time-limit", "1h")
    results = assert_sound(box, "S", 4)
    assert sum(result["result"] for result in results) == len(before) <= 2


def test_a_drain_that_could_not_be_told_is_told_when_the_trouble_is_over(box: Box) -> None:
    """A worker of another host is judged by heartbeats; while one cannot be read no look succeeds.

    The orchestrator's own workers are told all the same, and everybody else later.
    """
    started, _ = start_gated(box, ["wait"] * 4, "--ranks", "2", job="gated_polite")
    wait_until(lambda: len(waiting(box)) == 2)
    heartbeat = spoil_a_heartbeat(Layout(box / "S"))
    wait_until(lambda: "trying again" in started.err)
    started.signal(signal.SIGTERM)
    wait_until(lambda: len(journal_lines(box / "S")) == 2)
    assert "SIGTERM received" not in started.err
    heartbeat.unlink()
    done = started.wait(75)
    assert "SIGTERM received: workers finish the tasks in hand" in done.err
    assert "drained with 2 of 4 tasks complete" in done.err


def test_trouble_that_lasts_ends_the_workers_before_the_run(box: Box) -> None:
    started, _ = start_gated(box, ["wait"] * 4, "--ranks", "2", job="gated_polite")
    wait_until(lambda: len(waiting(box)) == 2)
    spoil_a_heartbeat(Layout(box / "S"))
    done = started.wait(1)
    assert "trying again for 8 s" in done.err
    assert "workers are stopped" in done.err
    assert box.processes() == []
    assert len(journal_lines(box / "S")) == 2, "what was in hand was finished"


def test_a_second_interrupt_kills(box: Box) -> None:
    started, command = start_gated(box, PAYLOADS, "--ranks", "2")
    wait_until(lambda: len(waiting(box)) == 2)
    interrupt_twice(started, "SIGINT received")
    done = started.wait(130)
    assert "SIGINT received twice: workers are killed" in done.err
    assert "interrupted with 0 of 10 tasks complete" in done.err
    assert box.processes() == []
    assert {
        record(box / "S" / "stopped" / name)["reason"] for name in names(box / "S" / "attempts")
    } == {"killed"}
    (box / "gate").touch()
    box.run(*command)
    assert_sound(box, "S", len(PAYLOADS))


def test_an_interrupt_that_is_passed_on_too_is_one() -> None:
    """As by `timeout --foreground`, which gets the terminal's, and passes it on."""
    received: list[int] = []
    with signals_to(received):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGINT, signal.SIGTERM]
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + SAME_SIGNAL_S)
        os.kill(os.getpid(), signal.SIGINT)
        assert received.count(signal.SIGINT) == 2


def test_a_task_that_outlives_the_grace_is_killed_and_nobody_is_blamed(box: Box) -> None:
    """However often: a task that is longer than each walltime's grace must not become a failure."""
    started, command = start_gated(box, ["wait"], "--grace", "0.2s")
    for attempt in range(2):
        if attempt:
            started = box.start(*command)
        wait_until(lambda: len(waiting(box)) == attempt + 1)  # noqa: B023 - called at once
        started.signal(signal.SIGTERM)
        assert "drained with 0 of 1 tasks complete" in started.wait(75).err
        assert box.processes() == []
        closing = record(box / "S" / "stopped" / f"rank-0000.a{attempt:02d}.json")
        assert (closing["reason"], closing.get("suspects", 0), closing.get("lost", [])) == (
            "killed",
            0,
            [],
        )
    (box / "gate").touch()
    box.run(*command)
    assert_sound(box, "S", 1)


def test_a_run_under_nohup_survives_the_terminal(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/gates.py:gated",
        "--tasks",
        box.tasks(["wait", "go"]),
        "--spool",
        "S",
    ]
    command += ["--arg", f"gate={box / 'gate'}"]
    started = box.start(*command, program=("nohup", GPUSPOOL))
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGHUP)
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 2)


def children(box: Box) -> list[int]:
    return [int(pid) for pid in (box / "children").read_text().split()]


def test_children_of_the_job_die_with_their_worker(box: Box) -> None:
    """As data loaders that their job forgot about."""
    command = ["run", f"{JOBS}/gates.py:with_children", "--lines", box.lines(4), "--ranks", "2"]
    box.run(*command, "--arg", f"children={box / 'children'}", "--spool", "S")
    assert len(children(box)) == 4
    assert not any(map(is_alive, children(box)))
    assert box.processes() == []
    assert_sound(box, "S", 4)


def test_children_die_with_a_worker_that_is_killed(box: Box) -> None:
    box.write("job.py", "import gates\ndef job(task, ctx):\n    gates.with_children(task, ctx)\n"
              "    gates.pass_gate(ctx.args['children'] + '.gate')\n")  # fmt: skip
    command = [
        "run",
        "job.py:job",
        "--lines",
        box.lines(1),
        "--arg",
        f"children={box / 'children'}",
        "--spool",
        "S",
    ]
    started = box.start(*command, "--grace", "0s", env={"PYTHONPATH": str(JOBS)})
    wait_until((box / "children").exists)
    wait_until(lambda: children(box))
    started.signal(signal.SIGTERM)
    started.wait(75)
    assert not any(map(is_alive, children(box)))
    assert box.processes() == []


def test_commands_die_with_a_worker_that_is_killed(box: Box) -> None:
    script = 'echo $$ > "$0"; exec sleep 1000'
    command = [
        "run",
        "--lines",
        box.lines(1),
        "--spool",
        "S",
        "--",
        "sh",
        "-c",
        script,
        str(box / "children"),
        "{key}",
    ]
    started = box.start("run", "--grace", "0s", *command[1:])
    wait_until((box / "children").exists)
    pid = wait_until(lambda: children(box))[0]
    started.signal(signal.SIGINT)
    started.wait(75)
    assert not is_alive(pid)
    os.stat(box / "S" / "stopped" / "rank-0000.a00.json")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 1)


def test_where_nobody_asks_there_is_no_drain(layout: Layout) -> None:
    watch = DrainWatch(layout, 3, GRACE_S, [], deadline=100.0)
    assert order_drain(layout, 2, ASKED)
    assert watch.hear(read_control(layout), 99.0) is None
    assert watch.drain is None


def test_a_drain_says_why_and_when_its_grace_is_over(layout: Layout) -> None:
    received: list[int] = []
    watch = DrainWatch(layout, 3, GRACE_S, received)
    received.append(signal.SIGTERM)
    drain = Drain("SIGTERM received", 10.0 + GRACE_S)
    assert watch.hear(Control(), 10.0) == drain
    assert (drain.ending, drain.is_interrupted) == (Ending.DRAINED, False)
    assert watch.hear(Control(), 11.0) == drain, "the grace does not begin anew"
    watch.note_told(drain)
    assert watch.hear(Control(), 12.0) is None
    assert watch.drain == drain


def test_the_time_limit_and_the_control_folder_ask_for_a_drain(layout: Layout) -> None:
    late = DrainWatch(layout, 3, GRACE_S, [], deadline=100.0)
    assert late.deadline == 100.0
    told = late.hear(Control(), 100.5)
    assert told == Drain("the time limit is reached", 100.5 + GRACE_S, cause=Cause.TIME)
    asked = DrainWatch(layout, 3, GRACE_S, [])
    assert order_drain(layout, 3, ASKED)
    drain = Drain("`gpuspool drain` asked for it", 5.0 + GRACE_S, Ending.STOPPED)
    assert asked.hear(read_control(layout), 5.0) == drain
    assert not drain.is_own


def test_an_order_that_cannot_be_read_holds_all_the_same(layout: Layout) -> None:
    publish(layout.drain(4), b"of an earlier version")
    watch = DrainWatch(layout, 3, GRACE_S, [])
    drain = watch.hear(read_control(layout), 5.0)
    assert drain is not None
    assert drain.ending is Ending.STOPPED


def test_an_order_that_came_while_a_start_had_no_epoch_yet_means_it_too(layout: Layout) -> None:
    order_drain(layout, 2, ASKED)
    for drained, is_meant in ((-1, True), (1, True), (2, False)):
        watch = DrainWatch(layout, 3, GRACE_S, [])
        watch.hear_before(read_control(layout), drained, 5.0)
        assert (watch.drain is not None) == is_meant


def test_an_order_to_make_way_for_new_code_means_none_that_it_does_not_name(layout: Layout) -> None:
    """A start that came meanwhile may be another one with that code."""
    order_drain(layout, 2, NEW_CODE)
    watch = DrainWatch(layout, 3, GRACE_S, [])
    watch.hear_before(read_control(layout), -1, 5.0)
    assert watch.hear(read_control(layout), 5.0) is None
    older = DrainWatch(layout, 2, GRACE_S, [])
    assert older.hear(read_control(layout), 5.0) is not None


def test_an_order_is_heard_that_came_before_one_to_make_way_for_new_code(layout: Layout) -> None:
    order_drain(layout, 1, ASKED)
    order_drain(layout, 2, NEW_CODE)
    watch = DrainWatch(layout, 3, GRACE_S, [])
    watch.hear_before(read_control(layout), 1, 5.0)
    assert watch.drain is None
    watch.hear_before(read_control(layout), -1, 5.0)
    assert watch.drain is not None


def test_the_word_of_another_parent_is_none_for_this_one(layout: Layout) -> None:
    publish(layout.leave(2), b"")
    publish(layout.leave(4), b"")
    control = read_control(layout)
    assert DrainWatch(layout, 3, GRACE_S, []).hear(control, 5.0) is None
    assert [control.stops(epoch) for epoch in (1, 2, 3, 4)] == [False, True, False, True]


def test_a_second_interrupt_ends_the_grace_at_once(layout: Layout) -> None:
    received: list[int] = [signal.SIGINT]
    watch = DrainWatch(layout, 3, GRACE_S, received)
    drain = watch.hear(Control(), 10.0)
    assert drain == Drain("SIGINT received", 10.0 + GRACE_S, cause=Cause.TERMINAL)
    watch.note_told(drain)
    received.append(signal.SIGINT)
    interrupted = watch.hear(Control(), 12.0)
    assert interrupted is not None
    assert (interrupted.kill_at, interrupted.ending) == (12.0, Ending.INTERRUPTED)
    watch.note_told(interrupted)
    received.append(signal.SIGINT)
    assert watch.hear(Control(), 13.0) is None, "it cannot become harder"
    assert watch.drain == interrupted


def test_an_interrupt_ends_the_grace_of_any_drain(layout: Layout) -> None:
    received: list[int] = []
    watch = DrainWatch(layout, 3, GRACE_S, received)
    watch.begin("3 tasks failed, --max-failed 3", 10.0, Ending.TOO_MANY_FAILED)
    begun = watch.hear(Control(), 10.0)
    assert begun is not None
    assert (begun.kill_at, begun.ending) == (10.0 + GRACE_S, Ending.TOO_MANY_FAILED)
    watch.note_told(begun)
    received.append(signal.SIGINT)
    assert watch.hear(Control(), 11.0) is None, "it drains already"
    received.append(signal.SIGINT)
    assert watch.hear(Control(), 12.0) == watch.drain
    assert watch.drain is not None
    assert watch.drain.is_interrupted


def test_a_start_leaves_where_it_has_had_nothing_to_do_for_a_while(box: Box) -> None:
    """Others finish what they have in hand, and it is theirs to say how the run ended."""
    started, command = start_gated(box, ["wait"])
    wait_until(lambda: waiting(box))
    done = box.run(*command, "--leave-when-idle", "0.3s", code=75)
    assert "nothing to do for 0.3 s" in done.err
    assert not started.is_over()
    assert len(names(box / "S" / "attempts")) == 1, "nobody was started"
    (box / "gate").touch()
    started.wait(0)


def test_a_worker_that_became_idle_is_taken_along(box: Box) -> None:
    started, _ = start_gated(box, ["wait", "wait"])
    wait_until(lambda: len(waiting(box)) == 1)
    second = box.start("resume", "S", "--leave-when-idle", "0.5s")
    wait_until(lambda: len(waiting(box)) == 2)
    victim = identities(box / "S")["rank-0000.a00"]
    # The first one stands still, so the second has nothing to do once the gate is open.
    kill(victim, signal.SIGSTOP)
    (box / "gate").touch()
    second.wait(75)
    assert record(box / "S" / "stopped" / "rank-0001.a00.json")["reason"] == "drained"
    kill(victim, signal.SIGCONT)
    started.wait(0)
    assert_sound(box, "S", 2)
