"""When a start has its Slurm job started again, how it asks for that, and when it must not."""

import signal

import pytest
from helpers import JOBS, Box, Started, is_alive, start_gated, wait_until, waiting
from slurm_stubs import Stubs, failing_stubs

from gpuspool.orchestrator.slurm import requeue as module
from gpuspool.orchestrator.slurm.requeue import requeue

JOB = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "3"}
ASKED = ["requeue Incomplete 15_3"]


@pytest.fixture
def stubs(box: Box) -> Stubs:
    """A Slurm that takes each request for a restart."""
    made = failing_stubs(box)
    made.add("squeue", "echo '17|15|3|1:00:00'")
    made.add("scontrol", "true")
    return made


def requeues(stubs: Stubs) -> list[str]:
    return [words for words in stubs.called("scontrol") if words.startswith("requeue")]


def start(box: Box, *options: str, env: dict[str, str] = JOB) -> Started:
    """A start of two tasks that wait for a gate, in an element of an array, without any grace."""
    box.environment.update(env)
    started, _ = start_gated(box, ["wait", "wait"], "--ranks", "1", "--grace", "0", *options)
    return started


def is_asking(stubs: Stubs) -> bool:
    return requeues(stubs) == ASKED


@pytest.mark.parametrize("end", ["SIGUSR2", "time limit"])
def test_a_start_whose_time_is_up_asks_once_all_is_written_and_waits_to_be_ended(
    box: Box, stubs: Stubs, end: str
) -> None:
    # What is written by then is noted at the very moment of the request.
    keeps = (
        f"cp {box / 'S'}/summary.json {box / 'then'}.new && mv {box / 'then'}.new {box / 'then'}"
    )
    stubs.add("scontrol", f"[ $1 != requeue ] || {{ {keeps}; }}")
    options = ["--time-limit", "1s"] if end == "time limit" else []
    started = start(box, "--requeue", "3", *options)
    if end == "SIGUSR2":
        wait_until(lambda: waiting(box))
        started.signal(signal.SIGUSR2)
    wait_until((box / "then").exists)
    assert is_asking(stubs)
    assert '"drained"' in (box / "then").read_text()
    wait_until(lambda: "start job 15_3 again, 1 of 3" in started.err)
    assert "drained with 0 of 2 tasks complete" in started.err
    assert is_alive(started.pid), "its exit code would be the job's"
    # Slurm ends what it starts again in this way.
    started.signal(signal.SIGTERM)
    started.wait(-signal.SIGTERM)
    assert requeues(stubs) == ASKED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_who_wants_an_end_gets_it(box: Box, stubs: Stubs, number: signal.Signals) -> None:
    started = start(box, "--requeue", "3")
    wait_until(lambda: waiting(box))
    started.signal(number)
    started.wait(75)
    assert requeues(stubs) == []


def test_who_wants_an_end_while_the_time_is_up_gets_it(box: Box, stubs: Stubs) -> None:
    started = start(box, "--requeue", "3", "--grace", "1d")
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGUSR2)
    wait_until(lambda: "SIGUSR2 received" in started.err)
    started.signal(signal.SIGTERM)
    (box / "gate").touch()
    started.wait(75)
    assert requeues(stubs) == []


def test_a_drain_by_order_is_no_reason_to_begin_again(box: Box, stubs: Stubs) -> None:
    started = start(box, "--requeue", "3")
    wait_until(lambda: waiting(box))
    box.run("drain", "S")
    started.wait(None)
    assert started.process.returncode in (4, 75)
    assert requeues(stubs) == []


def test_without_the_option_nothing_is_asked(box: Box, stubs: Stubs) -> None:
    started = start(box)
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGUSR2)
    started.wait(75)
    assert requeues(stubs) == []


def test_a_run_whose_last_tasks_complete_in_the_grace_is_over(box: Box, stubs: Stubs) -> None:
    box.environment.update(JOB)
    payloads = ["wait"]
    started, _ = start_gated(box, payloads, "--ranks", "1", "--grace", "1d", "--requeue", "3")
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGUSR2)
    wait_until(lambda: "SIGUSR2 received" in started.err)
    (box / "gate").touch()
    started.wait(0)
    assert requeues(stubs) == []


def test_a_job_that_was_started_again_often_enough_ends(box: Box, stubs: Stubs) -> None:
    started = start(
        box, "--requeue", "3", "--time-limit", "0", env={**JOB, "SLURM_RESTART_COUNT": "3"}
    )
    done = started.wait(75)
    assert "Slurm job 15_3 was started again 3 times; --requeue 3 allows no more" in done.err
    assert requeues(stubs) == []


def test_outside_of_a_job_the_option_has_no_effect_and_says_so(box: Box, stubs: Stubs) -> None:
    done = start(box, "--requeue", "3", "--time-limit", "0", env={}).wait(75)
    assert "this is no job of Slurm's" in done.err
    assert stubs.calls == []


@pytest.mark.parametrize("verb", ["resume", "join"])
def test_resume_and_join_ask_too(box: Box, stubs: Stubs, verb: str) -> None:
    start(box, "--time-limit", "0", env={}).wait(75)
    started = box.start(verb, "S", "--requeue", "1", "--time-limit", "0", env=JOB)
    wait_until(lambda: is_asking(stubs))
    started.signal(signal.SIGTERM)
    started.wait(-signal.SIGTERM)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, stubs: Stubs) -> Stubs:
    """Nobody waits between two tries."""
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    monkeypatch.setenv("PATH", stubs.path)
    return stubs


def test_what_slurm_refuses_is_told_after_some_tries(impatient: Stubs) -> None:
    impatient.add("scontrol", "echo Requested operation is presently disabled >&2; exit 1")
    said: list[str] = []
    requeue(2, "drained.", said.append, JOB)
    assert requeues(impatient) == ASKED * module.TRIES
    assert said[-1].startswith("warning: Slurm job 15_3 was not requeued: Requested operation is")


def test_a_controller_that_comes_back_is_asked_again(impatient: Stubs, box: Box) -> None:
    impatient.add("scontrol", f"[ -e {box / 'up'} ] || {{ touch {box / 'up'}; exit 1; }}")
    said: list[str] = []
    requeue(2, "drained.", said.append, JOB, wait_s=0)
    assert requeues(impatient) == ASKED * 2
    assert said[-1] == (
        "warning: Slurm was asked to start job 15_3 again, and has not ended this start of it"
    )


def test_a_job_that_squeue_does_not_know_is_never_named_to_scontrol(impatient: Stubs) -> None:
    """The variables of an array may be those of the job from inside of which this one came."""
    impatient.add("squeue", "echo '99|15|3|1:00:00'")
    said: list[str] = []
    requeue(2, "drained.", said.append, JOB)
    assert requeues(impatient) == []
    assert "squeue does not list job 17" in said[-1]
    impatient.add("squeue", "echo '17|17|N/A|1:00:00'")
    requeue(2, "drained.", said.append, JOB, wait_s=0)
    assert requeues(impatient) == ["requeue Incomplete 17"]


def test_counts_that_make_no_sense_are_refused(box: Box) -> None:
    run = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(1), "--spool", "S"]
    assert "at least 0" in box.run(*run, "--requeue", "-1", code=2).err
    assert "begin anew" in box.run(*run, "--requeue", "1", "--fresh", code=2).err
    assert not (box / "S").exists()
