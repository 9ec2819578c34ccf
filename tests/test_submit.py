"""`gpuspool submit` and `resume --slurm`: what is planned, written, submitted, and refused.

Slurm's commands are small scripts here, which keep a queue in a file; what a real Slurm makes of
what they are given is tested elsewhere.
"""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import JOBS, Box, Started, assert_sound, names, record, tree, wait_until, waiting
from slurm_stubs import Stubs, failing_stubs
from spooling import admit, living_process

import gpuspool
from gpuspool import Submission
from gpuspool.orchestrator.api import in_queue
from gpuspool.orchestrator.api import submitting as api
from gpuspool.orchestrator.api.in_queue import SlurmQueue, pause_after
from gpuspool.orchestrator.plan import imports
from gpuspool.orchestrator.report.queued import is_queued
from gpuspool.orchestrator.slurm import submitting
from gpuspool.orchestrator.slurm.elements import Queued, counted, elements_in
from gpuspool.orchestrator.slurm.script import Array
from gpuspool.orchestrator.slurm.submitting import (
    NodeShape,
    fair_cpus,
    gpus_in,
    id_in,
    node_shapes_in,
    split_arrays,
)
from gpuspool.spool.errors import GpuspoolError, UsageError
from gpuspool.spool.file_system import file_system_type, is_of_one_host
from gpuspool.spool.layout import Layout
from gpuspool.spool.view import open_view

DOUBLE = f"{JOBS}/plain.py:double"
CONFIG = "MaxArraySize            = {largest}"

# An array gets the next number, and each of its elements a row in the queue, behind its name.
SBATCH = """
name=$(sed -n 's/^#SBATCH --job-name=//p' "$3")
last=${{2#--array=0-}}; last=${{last%%%*}}
id=$(($(cat {queue}.id) + 1)); echo $id > {queue}.id
i=0; while [ $i -le $last ]; do echo "$name $id|PENDING|None" >> {queue}; i=$((i + 1)); done
echo $id
"""


class Queue(Stubs):
    """A Slurm that takes all."""

    def __init__(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(box)
        self.file = box.home.parent / "queue"
        self.file.touch()
        Path(f"{self.file}.id").write_text("100")
        self.add("sbatch", SBATCH.format(queue=self.file))
        self.add("squeue", f'sed -n "s/^$5 //p" {self.file}')
        self.add("scontrol", f"echo '{CONFIG.format(largest=1001)}'")
        self.add("sinfo", "echo 'main*|16|gpu:4'; echo 'big|64|gpu:a100:8(S:0-3)'")
        monkeypatch.setenv("PATH", self.path)
        box.environment["PATH"] = self.path

    def states(self, *states: str) -> None:
        """Of the run in S, Slurm has these elements, all of one array.

        A state may have a reason behind it: "PENDING|Priority".
        """
        name = f"gpuspool-{record(Path('S/run.json'))['id']}"
        rows = [state if "|" in state else f"{state}|None" for state in states]
        new = Path(f"{self.file}.new")
        new.write_text("".join(f"{name} 100|{row}\n" for row in rows))
        new.rename(self.file)


@pytest.fixture
def queue(box: Box, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """A Slurm that takes all, for the box and for this process, whose folder all nodes see."""
    monkeypatch.chdir(box.home)
    for module in (api, imports):
        monkeypatch.setattr(module, "file_system_type", lambda _: "nfs4")
    return Queue(box, monkeypatch)


def submit(**options: Any) -> Submission:
    """Submit three elements of four tasks, unless options say otherwise."""
    return gpuspool.submit(
        DOUBLE, **{"items": [1, 2, 3, 4], "elements": 3, "spool": "S", **options}
    )


def option_in(script: Path | None, name: str) -> str | None:
    """The value of an option in a script; None where it has none."""
    assert script is not None
    found = re.search(rf"^#SBATCH --{name}(?:=(.*))?$", script.read_text(), re.MULTILINE)
    return None if found is None else found[1] or ""


def test_a_run_is_planned_and_submitted_and_nothing_runs(box: Box, queue: Queue) -> None:
    done = submit(max_at_once=2, time="4h", requeue=20)
    assert done.jobs == ["101"]
    assert done.elements == 3
    assert done.script == box / "S" / "slurm" / "0001.sh"
    assert queue.called("sbatch") == [f"--parsable --array=0-2%2 {done.script}"]
    assert option_in(done.script, "array") == "0-2%2"
    run = record(box / "S" / "run.json")
    assert option_in(done.script, "job-name") == f"gpuspool-{run['id']}"
    assert run["manifests"] == 3
    assert names(box / "S" / "attempts") == []
    assert box.status("S")["tasks"]["total"] == 4


def test_what_was_submitted_is_a_run_like_any_other(box: Box, queue: Queue) -> None:
    script = submit(elements=1, no_gres=True).script
    assert script is not None
    box.run(script, program=("bash",), env={"SLURM_JOB_ID": None})
    assert_sound(box, "S", 4)
    assert "every task of" in submit(elements=1).message
    assert "every task of" in gpuspool.resubmit("S").message
    assert len(queue.called("sbatch")) == 1


def test_the_same_command_submits_what_is_missing(box: Box, queue: Queue) -> None:
    submit()
    assert submit().elements == 0
    assert "nothing submitted: 3 elements" in submit().message
    queue.states("RUNNING", "COMPLETING", "PENDING")
    done = submit(partition="big", max_at_once=2)
    assert (done.elements, names(box / "S" / "slurm")) == (1, ["0001.sh", "0002.sh"])
    assert queue.called("sbatch")[-1] == f"--parsable --array=0-0%1 {done.script}"
    assert option_in(done.script, "array") == "0-2%2", "the script says what is wanted in all"
    assert option_in(done.script, "partition") == "big"


def test_resume_submits_what_is_missing_by_the_newest_script(box: Box, queue: Queue) -> None:
    submit()
    queue.states()
    newest = submit(elements=5, max_at_once=4).script
    queue.states("RUNNING", "PENDING")
    done = gpuspool.resubmit("S")
    assert (done.script, done.elements) == (newest, 3)
    assert queue.called("sbatch")[-1] == f"--parsable --array=0-2%2 {newest}"
    assert gpuspool.resubmit("S").elements == 0
    queue.states("SUSPENDED", *["REQUEUE_HOLD"] * 4)
    assert "5 elements" in box.run("resume", "S", "--slurm").err
    queue.states(*["RUNNING"] * 4, "TIMEOUT")
    assert box.run("resume", "S", "--slurm", "--json").record()["elements"] == 1


def test_an_array_that_would_be_too_large_becomes_several(box: Box, queue: Queue) -> None:
    queue.add("scontrol", f"echo '{CONFIG.format(largest=5)}'")
    done = submit(elements=12, max_at_once=4)
    assert [call.split()[1] for call in queue.called("sbatch")] == [
        "--array=0-4%2",
        "--array=0-4%1",
        "--array=0-1%1",
    ]
    assert (done.jobs, done.elements) == (["101", "102", "103"], 12)
    assert submit(elements=12).elements == 0


@pytest.mark.parametrize(
    ("elements", "at_once", "largest", "arrays"),
    [
        (1, None, 1001, [(1, None)]),
        (1001, None, 1001, [(1001, None)]),
        (1002, None, 1001, [(1001, None), (1, None)]),
        (12, 7, 5, [(5, 3), (5, 2), (2, 2)]),
        (12, 2, 5, [(5, 1), (5, 1), (2, 1)]),
        (3, 9, 1, [(1, 3), (1, 3), (1, 3)]),
    ],
)
def test_arrays_share_what_may_run_at_once(
    elements: int, at_once: int | None, largest: int, arrays: list[tuple[int, int | None]]
) -> None:
    assert split_arrays(elements, at_once, largest) == [Array(*array) for array in arrays]


def test_elements_that_are_over_are_missing() -> None:
    states = ["PENDING", "RUNNING", "COMPLETING", "CANCELLED", "TIMEOUT", "CONFIGURING"]
    rows = "".join(f"{number}|{state}|None\n" for number, state in enumerate(states))
    alive = [element.array for element in elements_in(rows + "x\n\n") if element.is_alive]
    assert alive == ["0", "1", "5"]


def test_elements_are_counted_with_the_reasons_for_which_they_are_pending() -> None:
    rows = (
        "12|RUNNING|None\n12|SUSPENDED|None\n12|COMPLETING|None\n12|FAILED|NonZeroExitCode\n"
        "12|PENDING|None\n12|PENDING|Resources\n12|PENDING|Priority\n13|PENDING|Priority\n"
        "13|PENDING|ReqNodeNotAvail, UnavailableNodes:n[1-2]|x\n"
        "14|PENDING|DependencyNeverSatisfied\n15|REQUEUE_HOLD|job requeued in held state\n"
    )
    queued = counted(elements_in(rows))
    assert (queued.pending, queued.running, queued.ending) == (7, 2, 1)
    assert queued.reasons == {
        "Priority": 2,
        "Resources": 1,
        "ReqNodeNotAvail, UnavailableNodes:n[1-2]|x": 1,
        "DependencyNeverSatisfied": 1,
        "job requeued in held state": 1,
    }
    assert next(iter(queued.reasons)) == "Priority"
    assert queued.stuck == ["DependencyNeverSatisfied", "job requeued in held state"]
    assert counted([]) == Queued()


def test_nothing_of_the_job_around_reaches_the_one_that_is_submitted(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, box: Box
) -> None:
    queue.add("sbatch", f"env > {box / 'env'}; echo 7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("SBATCH_OUTPUT", "old")
    monkeypatch.setenv("SLURM_CLUSTERS", "one")
    monkeypatch.setenv("MODULES", "cuda")
    submit()
    told = (box / "env").read_text()
    assert "SLURM_RESTART_COUNT" not in told
    assert "SBATCH_OUTPUT" not in told
    assert "SLURM_CLUSTERS=one" in told
    assert "MODULES=cuda" in told


def test_what_a_profile_says_of_jobs_holds_where_the_script_does_not_say_it(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, box: Box
) -> None:
    queue.add("sbatch", f"env > {box / 'env'}; {SBATCH.format(queue=queue.file)}")
    monkeypatch.setenv("SBATCH_ACCOUNT", "ours")
    monkeypatch.setenv("SBATCH_PARTITION", "big")
    monkeypatch.setenv("SBATCH_QOS", "low")
    monkeypatch.setenv("SBATCH_GPUS", "8")
    submit(qos="high")
    told = (box / "env").read_text()
    assert "SBATCH_ACCOUNT=ours" in told
    assert "SBATCH_PARTITION=big" in told
    assert "SBATCH_QOS" not in told
    assert "SBATCH_GPUS" not in told
    assert queue.called("sinfo")[-1].endswith("-p big"), "whose nodes tell the cores of a GPU"
    queue.states()
    (box / "env").unlink()
    gpuspool.resubmit("S")
    assert "SBATCH_ACCOUNT=ours" in (box / "env").read_text()


# What a real Slurm does seldom.


def test_what_slurm_refuses_is_told_in_its_words_and_the_same_command_goes_on(
    queue: Queue, box: Box
) -> None:
    queue.add("sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    with pytest.raises(UsageError, match="invalid partition specified: nope"):
        submit(partition="nope")
    queue.add("sbatch", SBATCH.format(queue=queue.file))
    done = submit(partition="main")
    assert (done.elements, done.script) == (3, box / "S" / "slurm" / "0001.sh")


def test_what_slurm_refused_is_not_what_is_submitted_again(queue: Queue, box: Box) -> None:
    submit(partition="main")
    queue.states()
    queue.add("sbatch", "echo 'sbatch: error: Invalid --time specification' >&2; exit 1")
    with pytest.raises(UsageError, match="is removed again; --dry-run shows it"):
        submit(time="soon")
    queue.add("sbatch", SBATCH.format(queue=queue.file))
    done = gpuspool.resubmit("S")
    assert (done.elements, done.script) == (3, box / "S" / "slurm" / "0001.sh")


def test_sbatch_that_fails_after_submitting_has_submitted(queue: Queue) -> None:
    queue.add("sbatch", SBATCH.format(queue=queue.file) + "echo timed out >&2; exit 1")
    done = submit()
    assert (done.jobs, done.elements) == (["101"], 3)
    assert submit().elements == 0


def test_a_greeting_before_the_id_is_no_part_of_it(queue: Queue) -> None:
    greeting = "echo Welcome to login1; echo '--> Verifying 2 quotas...OK'"
    queue.add("sbatch", greeting + SBATCH.format(queue=queue.file))
    assert submit().jobs == ["101"]
    assert id_in("7;alpha\n") == "7"


def test_sbatch_that_succeeds_without_an_id_is_asked_after(queue: Queue) -> None:
    queue.add("sbatch", "echo nothing done")
    with pytest.raises(UsageError, match=r"did not take .*told no job's id, but 'nothing done'"):
        submit()
    queue.add("sbatch", "{ " + SBATCH.format(queue=queue.file) + "} >/dev/null")
    assert submit().jobs == ["101"]


def test_sbatch_that_takes_too_long_is_asked_after(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "SBATCH_S", 1.0)
    queue.add("sbatch", SBATCH.format(queue=queue.file) + "sleep 1000")
    assert submit().jobs == ["101"]
    queue.states()
    queue.add("sbatch", "sleep 1000")
    with pytest.raises(UsageError, match="sbatch did not answer within 1 s"):
        submit()


def test_an_array_of_an_earlier_command_is_none_of_this_one(queue: Queue) -> None:
    submit()
    queue.states("RUNNING")
    queue.add("sbatch", "echo Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(UsageError, match=r"Unable to contact(.|\n)*with other options, or later"):
        submit()


def test_of_several_arrays_those_before_a_refusal_are_told(queue: Queue) -> None:
    queue.add("scontrol", f"echo '{CONFIG.format(largest=2)}'")
    once = f"[ ! -s {queue.file} ] || {{ echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }}\n"
    queue.add("sbatch", once + SBATCH.format(queue=queue.file))
    with pytest.raises(UsageError, match=r"QOSMaxSubmit(.|\n)*Submitted before that: 101"):
        submit()
    queue.add("sbatch", SBATCH.format(queue=queue.file))
    assert gpuspool.resubmit("S").elements == 1


def test_where_nobody_answers_nobody_knows(queue: Queue, box: Box) -> None:
    queue.add("sbatch", f"rm {queue.file}; echo Socket timed out >&2; exit 1")
    done = box.run(*command(), code=1)
    assert "nobody knows whether the jobs were submitted" in done.err
    assert "Socket timed out" in done.err
    assert "gpuspool resume" in done.err
    assert "--slurm" in done.err
    assert issubclass(UsageError, GpuspoolError)


def test_a_run_whose_elements_are_pending_is_queued_and_not_stopped(queue: Queue, box: Box) -> None:
    submit()
    queue.states("PENDING|Priority", "PENDING|Priority", "PENDING|JobHeldAdmin", "RUNNING")
    done = box.run("status", "S")
    first, *rest = done.out.splitlines()
    assert "  queued  0 %" in first
    assert (
        "in Slurm's queue: 3 elements pending (2 Priority, 1 JobHeldAdmin), 1 element running; "
        "1 does not start unless something is done about it: JobHeldAdmin"
    ) in " ".join(rest)
    assert rest[-1] == "next: gpuspool wait S"
    assert done.err == ""
    now = box.run("status", "S", "--json").record()
    assert now["state"] == "stopped"
    assert now["queued"] == {
        "pending": 3,
        "running": 1,
        "ending": 0,
        "reasons": {"Priority": 2, "JobHeldAdmin": 1},
        "stuck": ["JobHeldAdmin"],
    }


def test_a_run_of_which_slurm_has_nothing_is_stopped(queue: Queue, box: Box) -> None:
    submit()
    queue.states()
    done = box.run("status", "S")
    assert "  not started  0 %" in done.out.splitlines()[0]
    assert done.out.endswith("next: gpuspool resume S --slurm\n")
    assert "queue" not in done.out + done.err
    assert box.status("S")["queued"]["pending"] == 0
    assert "  not started  " in box.run("wait", "S", code=4).out


def test_where_squeue_does_not_answer_it_is_pointed_to(queue: Queue, box: Box) -> None:
    """A run that was just submitted looks like one that has stopped."""
    submit()
    queue.add("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    name = f"-n gpuspool-{record(box / 'S' / 'run.json')['id']}"
    done = box.run("status", "S")
    assert f"squeue --me {name}" in done.err
    assert "  not started  " in done.out
    assert f"squeue --me {name}" in box.run("wait", "S", code=4).err
    assert f"scancel --me {name} --state=PENDING" in box.run("drain", "S").err
    silent = box.run("status", "S", "--json")
    assert (silent.err, silent.record()["queued"]) == ("", None)


def test_slurm_is_asked_only_of_a_run_that_it_was_given_and_that_seems_to_have_stopped(
    queue: Queue, box: Box
) -> None:
    def look_at(spool: str, state: str) -> None:
        now = box.run("status", spool, "--json").record()
        assert (now["state"], now["queued"]) == (state, None)

    job = [
        f"{JOBS}/gates.py:gated",
        "--tasks",
        box.tasks(["wait"]),
        "--arg",
        f"gate={box / 'gate'}",
    ]
    box.run("submit", *job, "--spool", "S", "--elements", "1", "--no-gres")
    asked = len(queue.called("squeue"))
    box.run("run", *job, "--spool", "T", "--time-limit", "0", code=75)
    look_at("T", "stopped")
    box.run("wait", "T", code=4)
    start = run_here(box)
    wait_until(lambda: waiting(box))
    look_at("S", "running")
    box.run("wait", "S", "--timeout", "0.3s", code=4)
    (box / "gate").touch()
    start.wait(0)
    look_at("S", "complete")
    box.run("wait", "S")
    assert len(queue.called("squeue")) == asked


def run_here(box: Box) -> Started:
    """Start what an element of the run in S would, here."""
    return box.start(box / "S/slurm/0001.sh", program=("bash",), env={"SLURM_JOB_ID": None})


def test_who_waits_for_a_run_waits_for_its_turn_too(queue: Queue, box: Box) -> None:
    submit(no_gres=True)
    queue.states("PENDING|Priority", "PENDING|Priority", "PENDING|Resources")
    waits = box.start("wait", "S")
    logs = box.start("logs", "S", "--follow")
    watch = box.start("status", "S", "--watch")
    told = "Slurm has 3 elements pending (2 Priority, 1 Resources): waits for that"
    wait_until(lambda: told in waits.err)
    # Each of the three has asked a second time, so none has ended after its first look.
    wait_until(lambda: len(queue.called("squeue")) >= 1 + 3 * 2)
    run_here(box).wait(0)
    for looks in (waits, logs, watch):
        looks.wait(0)
    assert waits.err.count("Slurm has") == 1


def test_a_run_whose_elements_leave_the_queue_is_over(queue: Queue, box: Box) -> None:
    submit()
    queue.states("PENDING|Priority")
    waits = box.start("wait", "S")
    wait_until(lambda: "Slurm has" in waits.err)
    queue.states("FAILED|NonZeroExitCode")
    done = waits.wait(4)
    assert "  not started  " in done.out


def test_elements_that_slurm_never_starts_are_told_and_waited_for(queue: Queue, box: Box) -> None:
    submit()
    queue.states("PENDING|DependencyNeverSatisfied", "PENDING|PartitionDown", "PENDING")
    done = box.run("wait", "S", "--timeout", "1s", code=4)
    assert (
        "2 do not start unless something is done about it: DependencyNeverSatisfied, PartitionDown"
        in done.err
    )
    assert "  queued  " in done.out


def test_a_squeue_that_hangs_holds_up_nobody_for_longer_than_he_waits(
    queue: Queue, box: Box
) -> None:
    submit()
    queue.add("squeue", "exec sleep 1000")
    done = box.run("wait", "S", "--timeout", "0.5s", code=4)
    assert "squeue --me" in done.err
    assert "  not started  " in done.out


# What is heard of the queue by those who look again and again.

STOPPED = {"state": "stopped"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look asks squeue."""
    monkeypatch.setattr(in_queue, "SHORTEST_PAUSE_S", 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The one number in it is the time by which questions to squeue are told apart."""
    seconds = [1000.0]
    monkeypatch.setattr(in_queue, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def test_squeue_is_asked_rarely(queue: Queue) -> None:
    submit()
    asked = len(queue.called("squeue"))
    looks = SlurmQueue(open_view("S"))
    seen = [looks.with_look(STOPPED)["queued"] for _ in range(20)]
    assert len(queue.called("squeue")) == asked + 1
    assert {each["pending"] for each in seen} == {3}
    assert [pause_after(n_asked) for n_asked in range(1, 7)] == [2, 4, 8, 16, 30, 30]
    assert pause_after(10**6) == 30


@pytest.mark.usefixtures("impatient")
def test_the_queue_outlives_a_controller_that_does_not_answer_for_a_while(
    queue: Queue, clock: list[float]
) -> None:
    submit()
    told: list[str] = []
    looks = SlurmQueue(open_view("S"), tell=told.append)
    assert is_queued(looks.with_look(STOPPED))
    queue.add("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    assert is_queued(looks.with_look(STOPPED))
    assert is_queued(looks.with_look(STOPPED))
    (text,) = told
    assert "Unable to contact slurm controller" in text
    assert "3 elements pending when squeue answered last" in text
    assert "so this waits on, for 30 minutes" in text
    clock[0] += 29 * 60
    assert is_queued(looks.with_look(STOPPED))
    clock[0] += 2 * 60
    assert looks.with_look(STOPPED)["queued"] is None


@pytest.mark.usefixtures("impatient")
def test_an_element_that_ends_may_be_queued_again(queue: Queue, clock: list[float]) -> None:
    submit()
    told: list[str] = []
    looks = SlurmQueue(open_view("S"), tell=told.append)
    queue.states("COMPLETING")
    now = looks.with_look({**STOPPED, "says": "stopped (drained)"})
    assert is_queued(now)
    assert now["says"] == "stopped (drained)"
    queue.states("PENDING|BeginTime")
    assert looks.with_look(STOPPED)["says"] == "queued"
    queue.states("COMPLETING")
    assert is_queued(looks.with_look(STOPPED))
    clock[0] += 4 * 60
    assert is_queued(looks.with_look(STOPPED))
    clock[0] += 2 * 60
    assert not is_queued(looks.with_look(STOPPED))
    assert told == [
        "nothing of it is at work now; Slurm has 1 element pending (BeginTime): waits for that"
    ]


@pytest.mark.usefixtures("impatient")
def test_what_was_heard_of_the_queue_is_forgotten_once_the_run_lives(queue: Queue) -> None:
    submit()
    looks = SlurmQueue(open_view("S"))
    assert is_queued(looks.with_look(STOPPED))
    assert looks.with_look({"state": "running"})["queued"] is None
    queue.add("squeue", "exit 1")
    assert looks.with_look(STOPPED)["queued"] is None


def test_elements_that_drain_are_told_and_what_to_do(queue: Queue, box: Box) -> None:
    """To Slurm they run, so that nothing is missing yet."""
    submit()
    queue.states("RUNNING", "RUNNING", "PENDING")
    layout = Layout(box / "S")
    with living_process() as who:
        admit(layout, 0, who, job_id="100_0")
        admit(layout, 1, who, job_id="100_1")
        assert "of them drain" not in gpuspool.resubmit("S").message
        gpuspool.drain("S")
        admit(layout, 2, who, job_id="100_2")
        message = gpuspool.resubmit("S").message
        assert "3 elements of" in message
        assert "2 of them drain, by an order from before" in message
        assert "`gpuspool resume S --slurm` submits what is missing then" in message
        assert "2 of them drain" in submit(elements=4).message
    queue.states("RUNNING", "RUNNING", "PENDING")
    assert "of them drain" not in gpuspool.resubmit("S").message, "they have ended"


def test_a_resume_outside_of_slurm_tells_that_it_submits_nothing(queue: Queue, box: Box) -> None:
    submit()
    words = ["resume", "S", "--time-limit", "0", "--devices", "cpu"]
    here = "this start works here"
    done = box.run(*words, code=75)
    assert here in done.err
    assert done.err.endswith("`gpuspool resume S --slurm` goes on: it submits what is missing.\n")
    assert here not in box.run(*words, env={"SLURM_JOB_ID": "1"}, code=75).err


def test_without_squeue_nothing_is_submitted_again(queue: Queue, box: Box) -> None:
    submit()
    queue.add("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    for words in (command("--elements", "4"), ["resume", "S", "--slurm"]):
        done = box.run(*words, code=2)
        assert "Unable to contact slurm controller" in done.err
        assert "`sbatch S/slurm/0001.sh`" in done.err
    assert len(queue.called("sbatch")) == 1


def command(*options: str) -> list[str]:
    """The command line of one element of the same run."""
    tasks = Path("tasks.jsonl")
    tasks.write_text("1\n2\n3\n4\n")
    return ["submit", DOUBLE, "--tasks", str(tasks), "--elements", "1", "--spool", "S", *options]


# What each element asks for.


def test_gpus_bring_their_share_of_the_cores(queue: Queue) -> None:
    script = submit(gpus_per_element=2, ranks_per_gpu=2).script
    assert option_in(script, "gres") == "gpu:2"
    assert option_in(script, "cpus-per-task") == "8"
    assert record(Path("S/run.json"))["manifests"] == 3 * 2 * 2


@pytest.mark.parametrize(
    ("options", "gres", "cpus", "ranks"),
    [
        ({}, "gpu:1", "4", 1),
        ({"gres": "gpu:a100:2", "partition": "big"}, "gpu:a100:2", "16", 2),
        ({"gres": "gpu", "cpus_per_element": 3}, "gpu", "3", 1),
        ({"no_gres": True, "ranks": 6}, None, "6", 6),
        ({"devices": "cpu"}, None, "1", 1),
        ({"whole_nodes": True}, None, None, 4),
        ({"whole_nodes": True, "partition": "big", "gpus_per_rank": 4}, None, None, 2),
        ({"whole_nodes": True, "gres": "gpu:4"}, "gpu:4", None, 4),
        ({"gpus_per_element": 8}, "gpu:8", None, 8),
    ],
)
def test_elements_ask_for_what_they_were_said_to_need(
    queue: Queue, options: dict[str, Any], gres: str | None, cpus: str | None, ranks: int
) -> None:
    queue.add("sinfo", 'case "$*" in *"-p big"*) echo "big|64|gpu:a100:8(S:0-3)";; *) '
              "echo 'main*|16|gpu:4'; echo 'big|64|gpu:8';; esac")  # fmt: skip
    script = submit(**options).script
    assert option_in(script, "gres") == gres
    assert option_in(script, "cpus-per-task") == cpus
    assert record(Path("S/run.json"))["manifests"] == 3 * ranks


def test_where_sinfo_says_nothing_slurm_chooses_the_cores(queue: Queue) -> None:
    queue.add("sinfo", "exit 1")
    assert option_in(submit().script, "cpus-per-task") is None
    submit(whole_nodes=True, spool="T")
    assert record(Path("T/run.json"))["manifests"] == 3 * api.USUAL_GPUS


def test_generic_resources_and_shapes_of_nodes_are_read() -> None:
    assert [gpus_in(text) for text in ("(null)", "", "gpu", "gpu:4", "gpu:a100:2(S:0-1)")] == [
        *(0, 0, 1, 4, 2)
    ]
    assert gpus_in("gpu:a100:4(S:0,1),gpu:v100:2,nvme:1,gpu_mem:80") == 6
    rows = "main*|16|gpu:4\nmain*|8+|(null)\nbig|64|gpu:8\nodd|x|gpu:1\n"
    assert node_shapes_in(rows, is_default=True) == [NodeShape(16, 4), NodeShape(8, 0)]
    assert len(node_shapes_in(rows, is_default=False)) == 3
    shapes = [NodeShape(16, 4), NodeShape(8, 0), NodeShape(96, 8)]
    assert [fair_cpus(shapes, gpus) for gpus in (1, 4, 8, 9)] == [4, 16, 96, None]


def test_the_users_own_lines_are_copied_and_come_first(queue: Queue, box: Box) -> None:
    box.write("mine.sh", "module load cuda\n")
    script = submit(setup="mine.sh").script
    assert (box / "S" / "slurm" / "setup.sh").read_text() == "module load cuda\n"
    assert script is not None
    assert script.read_text().splitlines()[-2] == f". {box / 'S'}/slurm/setup.sh"


def test_a_dry_run_shows_the_script_and_writes_nothing(queue: Queue, box: Box) -> None:
    words = command("--dry-run", "--sbatch", "--mem=4G")
    before = tree(box.home)
    done = box.run(*words)
    assert tree(box.home) == before
    assert "would make" in done.err
    assert "#SBATCH --mem=4G" in done.err
    assert queue.called("sbatch") == []
    box.run(*command())
    assert "would submit" in box.run(*command("--dry-run")).err


@pytest.mark.parametrize(
    ("options", "joins_with"),
    [
        ({"no_gres": True}, " --devices cpu"),
        ({"no_gres": True, "requeue": 3}, " --devices cpu --requeue 3"),
        ({"no_gres": True, "devices": "0,1"}, ""),
        ({"no_gres": True, "sbatch": "--gpus-per-node=2"}, ""),
        ({}, ""),
    ],
)
def test_elements_that_ask_for_no_gpu_use_none(
    queue: Queue, box: Box, options: dict[str, Any], joins_with: str
) -> None:
    """A site without device cgroups shows each job all GPUs of its node."""
    script = submit(**options).script
    assert script is not None
    assert script.read_text().endswith(f" join {box / 'S'}{joins_with}\n")


def test_elements_whose_time_is_up_for_good_are_told_of(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(time="4h")
    told = capsys.readouterr().err
    assert "before its time (4h) is over, and is not started again then: --requeue N" in told
    for options in ({"time": "4h", "requeue": 3}, {}):
        queue.states()
        submit(**options)
        assert "--requeue" not in capsys.readouterr().err


# What is refused.


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"elements": 0}, "--elements 0"),
        ({"max_at_once": 0}, "--max-at-once 0"),
        ({"gpus_per_element": 0}, "--gpus-per-element 0"),
        ({"gpus_per_element": 1, "no_gres": True}, "exclude each other"),
        ({"gres": "gpu:1", "gpus_per_element": 1}, "exclude each other"),
        ({"whole_nodes": True, "gpus_per_element": 1}, "exclude each other"),
        ({"gpus_per_element": 3, "gpus_per_rank": 2}, "does not divide"),
        ({"ranks": 2}, "--ranks-per-gpu"),
        ({"time_limit_s": 60}, "--time is that of the jobs"),
        ({"sbatch": "--array=0-9"}, "--elements says"),
        ({"sbatch": "'open"}, "Quote it"),
        ({"setup": "missing.sh"}, "--setup missing.sh"),
        ({"requeue": -1}, "--requeue -1"),
        ({"spool": "a\\b"}, "backslash"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    queue: Queue, box: Box, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        submit(**options)
    assert names(box.home) == []
    assert queue.called("sbatch") == []


def test_who_says_no_number_of_elements_is_told_what_one_is(queue: Queue, box: Box) -> None:
    done = box.run("submit", DOUBLE, "--lines", box.lines(2), "--spool", "S", code=2)
    assert "--elements N is missing" in done.err
    assert "--elements 4" in done.err
    assert not (box / "S").exists()


def test_without_sbatch_nothing_is_made(box: Box) -> None:
    words = ["submit", DOUBLE, "--lines", box.lines(2), "--elements", "1", "--spool", "S"]
    done = box.run(*words, env={"PATH": "/nonexistent"}, code=2)
    assert "there is no sbatch on PATH" in done.err
    assert not (box / "S").exists()


def test_a_folder_that_only_this_host_sees_is_refused_for_several_elements(
    queue: Queue, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "file_system_type", lambda _: "tmpfs")
    with pytest.raises(UsageError, match="tmpfs, which no other host can see"):
        submit()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_one_element_is_warned_of_a_folder_that_its_node_may_not_see(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setattr(api, "file_system_type", lambda _: kind)
    submit(elements=1)
    assert f"lies on {kind}, a disk of this host. The jobs work only if" in capsys.readouterr().err


def test_a_disk_of_this_host_is_warned_of(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "file_system_type", lambda _: "ext4")
    submit()
    assert (
        "lies on ext4, a disk of this host. The jobs work only if this host exports"
        in capsys.readouterr().err
    )


def test_memory_is_a_file_system_that_only_this_host_sees() -> None:
    assert is_of_one_host("tmpfs")
    assert not is_of_one_host("ext4")
    if Path("/dev/shm").is_mount():
        assert is_of_one_host(file_system_type(Path("/dev/shm/nothing/here")))


def test_many_interpreters_from_one_network_file_system_are_warned_of(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(elements=8)
    assert "warning" not in capsys.readouterr().err
    submit(elements=9)
    assert "9 elements that start at once read" in capsys.readouterr().err


def test_a_job_that_changed_is_refused_with_the_diff_and_how_to_go_on(
    queue: Queue, box: Box
) -> None:
    plain = box.job("plain.py")
    inputs = ["plain.py:double", "--lines", "lines", "--add", "--spool", "S"]
    box.lines(4)
    box.run("run", *inputs)
    plain.write_text(plain.read_text().replace("2 *", "3 *"))
    box.lines(6)
    for more in ([], ["--keep-done"], ["--dry-run"]):
        done = box.run("submit", *inputs, "--elements", "1", *more, code=2)
        assert "+    return 3 *" in done.err
        assert "`gpuspool run` with the same words and --keep-done" in done.err
    assert box.status("S")["tasks"]["total"] == 4
    assert queue.called("sbatch") == []
    box.run("run", *inputs, "--keep-done")
    box.lines(8)
    box.run("submit", *inputs, "--elements", "1")
    assert box.status("S")["tasks"]["total"] == 8
    assert len(queue.called("sbatch")) == 1


def test_a_changed_job_that_completed_nothing_begins_anew(queue: Queue, box: Box) -> None:
    plain = box.job("plain.py")
    words = ["submit", "plain.py:double", "--lines", box.lines(4), "--elements", "1"]
    box.run(*words)
    plain.write_text(plain.read_text() + "\n# changed\n")
    assert "--fresh loses nothing" in box.run(*words, code=2).err
    said = box.run(*words, "--fresh").err
    assert len(queue.called("sbatch")) == 2
    assert "1 element of the run before" in said
    assert "scancel --me -n gpuspool-" in said


def test_join_runs_the_copy_whatever_became_of_the_file(queue: Queue, box: Box) -> None:
    plain = box.job("plain.py")
    box.run("submit", "plain.py:double", "--lines", box.lines(4), "--elements", "1", "--spool", "S")
    plain.write_text("this is no Python\n")
    box.run("join", "S")
    assert_sound(box, "S", 4)


def test_a_spool_that_was_not_submitted_is_not_submitted_again(queue: Queue, box: Box) -> None:
    box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", "S", "--time-limit", "0", code=75)
    assert "was not submitted to Slurm yet" in box.run("resume", "S", "--slurm", code=2).err


@pytest.mark.parametrize("other", ["", "another run"])
def test_elements_of_a_spool_that_was_moved_are_not_sent_to_its_old_path(
    queue: Queue, box: Box, other: str
) -> None:
    submit(spool="it's S")
    os.rename("it's S", "moved")
    if other:
        submit(spool="it's S")
    n_before = len(queue.called("sbatch"))
    queue.file.write_text("")
    with pytest.raises(UsageError, match=r"elements that join .*/it's S, and not .*/moved"):
        gpuspool.resubmit("moved")
    assert len(queue.called("sbatch")) == n_before
    # What it says leads on, and so does the old path, once it leads to the spool again.
    submit(spool="moved")
    queue.file.write_text("")
    os.rename("moved", "again")
    os.symlink("again", "moved")
    assert gpuspool.resubmit("again").elements == 3


def test_a_script_without_its_array_is_not_guessed_at(queue: Queue, box: Box) -> None:
    script = submit().script
    assert script is not None
    script.write_text(script.read_text().replace("--array=0-2", "--array=1,7"))
    with pytest.raises(UsageError, match="does not say how many elements"):
        gpuspool.resubmit("S")


def test_options_of_a_start_make_no_sense_beside_slurm(queue: Queue, box: Box) -> None:
    submit()
    assert "--ranks is of a start" in box.run("resume", "S", "--slurm", "--ranks", "2", code=2).err
    box.run("resume", "S", "--slurm", env={"GPUSPOOL_RANKS": "2"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody")
@pytest.mark.parametrize("name", ["0001.sh", "setup.sh", ""])
def test_a_script_of_somebody_else_is_not_submitted(queue: Queue, box: Box, name: str) -> None:
    box.write("mine.sh", "true\n")
    submit(setup="mine.sh")
    queue.states()
    os.chown(box / "S" / "slurm" / name, 424242, -1)
    with pytest.raises(UsageError, match="424242"):
        gpuspool.resubmit("S")
    gpuspool.resubmit("S", trust_owner="424242")


def test_an_unsubmitted_run_of_failing_commands_is_told(box: Box) -> None:
    failing_stubs(box)
    words = ["submit", DOUBLE, "--lines", box.lines(2), "--elements", "1", "--spool", "S"]
    done = box.run(*words, code=2)
    assert "none was submitted" in done.err
    assert "no such answer" in done.err
