"""`submit`, `join`, requeues and refusals, on a real Slurm."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from helpers import GPUSPOOL, JOBS, Box, assert_sound, names, record, wait_until, waiting
from slurm.cluster import POLL_S, Cluster
from slurm_stubs import Stubs

from gpuspool.spool.file_system import file_system_type, is_of_one_host

DOUBLE = f"{JOBS}/plain.py:double"
GATED = f"{JOBS}/gates.py:gated"

one_node = pytest.mark.parametrize("slurm", [{"nodes": 1}], indirect=True)
two_nodes = pytest.mark.parametrize("slurm", [{"nodes": 2}], indirect=True)


@pytest.fixture
def shared(box: Box) -> None:
    """Several elements are refused where the folder of the test lies on one host alone."""
    kind = file_system_type(box.home)
    if is_of_one_host(kind):
        pytest.skip(f"{box.home} lies on {kind}, which no other host could see")


def submit(box: Box, *options: str | Path, tasks: int = 12, code: int = 0) -> str:
    """Submit a run of some tasks into S, one element unless options say more.

    Returns the id of its array.
    """
    command: list[str | Path] = ["submit", DOUBLE, "--lines", box.lines(tasks), "--spool", "S"]
    done = box.run(*command, "--elements", "1", "--json", *options, code=code)
    jobs: list[str] = done.record()["jobs"] if code == 0 else []
    return jobs[0] if jobs else done.err


def submit_gated(box: Box, *options: str, tasks: int = 2) -> str:
    """Submit a run whose tasks wait for the gate; returns the id of its array."""
    command = ["submit", GATED, "--tasks", box.tasks(["wait"] * tasks), "--spool", "S"]
    command += ["--arg", f"gate={box / 'gate'}", "--elements", "1", "--json"]
    job: str = box.run(*command, *options).record()["jobs"][0]
    return job


def said(box: Box, job: str, element: int = 0) -> str:
    """What an element of the run in S printed."""
    path = box / "S" / "slurm" / f"{job}_{element}.out"
    return path.read_text() if path.exists() else ""


def restarts(slurm: Cluster, job: str) -> int:
    return int(slurm.show(job)["Restarts"])


def test_elements_share_a_run_and_all_end_well(box: Box, slurm: Cluster, shared: None) -> None:
    box.write(
        "slow.py", "import time\ndef f(task, ctx):\n    time.sleep(0.1)\n    return ctx.rank\n"
    )
    command = ["submit", "slow.py:f", "--lines", box.lines(120), "--spool", "S", "--elements", "4"]
    (job,) = box.run(*command, "--json").record()["jobs"]
    slurm.wait_for(job, "COMPLETED", "FAILED")
    assert {*slurm.states(job).values()} == {"COMPLETED"}, said(box, job)
    assert len({result["result"] for result in assert_sound(box, "S", 120)}) == 4
    assert sorted(path.name for path in (box / "S" / "slurm").iterdir()) == [
        "0001.sh",
        *(f"{job}_{element}.out" for element in range(4)),
    ]


@one_node
def test_a_spool_with_a_nasty_path_is_submitted(box: Box, slurm: Cluster) -> None:
    spool = "a b'c\"d#e 50% %A hetjob $HOME`id` é"
    box.write("setup.sh", "export SAYS=from-setup\n")
    box.write("job.py", "import os\ndef f(task, ctx):\n    return os.environ['SAYS']\n")
    command = ["submit", "job.py:f", "--lines", box.lines(2), "--spool", spool, "--elements", "1"]
    done = box.run(*command, "--setup", "setup.sh", "--json").record()
    slurm.wait_for(done["jobs"][0], "COMPLETED", "FAILED")
    results = assert_sound(box, spool, 2)
    assert [result["result"] for result in results] == ["from-setup"] * 2
    assert f"{done['jobs'][0]}_0.out" in names(box / spool / "slurm")


@one_node
def test_a_whole_node_is_used_whole(box: Box, slurm: Cluster) -> None:
    box.write("job.py", "def f(task, ctx):\n    return ctx.world_size\n")
    command = ["submit", "job.py:f", "--lines", box.lines(6), "--spool", "S", "--elements", "1"]
    (job,) = box.run(*command, "--whole-nodes", "--json").record()["jobs"]
    slurm.wait_for(job, "COMPLETED", "FAILED")
    assert {result["result"] for result in assert_sound(box, "S", 6)} == {3}
    assert record(box / "S" / "run.json")["manifests"] == 3


# The time of a job, and its restarts.


@one_node
@pytest.mark.parametrize(
    ("time", "drains_in"),
    [("30", "29:2"), ("2:00:00", "1:59:2"), ("1-01:00:00", "24:59:2"), ("3h", "2:59:2")],
)
def test_an_element_knows_when_its_job_ends(
    box: Box, slurm: Cluster, time: str, drains_in: str
) -> None:
    job = submit(box, "--time", time)
    slurm.wait_for(job, "COMPLETED", "FAILED")
    # KillWait is 8 s, so the grace is 5 s; the margin is 30 s.
    assert re.search(rf"drains in {drains_in}\d: Slurm job {job}_0 ends 0:35 later", said(box, job))


@one_node
@pytest.mark.parametrize("time", [["--time", "UNLIMITED"], []], ids=["as asked", "partition"])
def test_a_job_without_limit_has_none(box: Box, slurm: Cluster, time: list[str]) -> None:
    job = submit(box, *time)
    slurm.wait_for(job, "COMPLETED", "FAILED")
    assert f"Slurm job {job}_0 has no time limit" in said(box, job)


@one_node
def test_an_element_whose_time_is_up_goes_on_after_a_restart(box: Box, slurm: Cluster) -> None:
    """The signal that --signal=B: sends reaches gpuspool, since the script has become it."""
    job = submit_gated(box, "--requeue", "3")
    wait_until(lambda: waiting(box))
    waits = box.start("wait", "S")
    slurm.run("scancel", "--signal=USR2", "--batch", f"{job}_0")
    wait_until(lambda: "is asked to start" in said(box, job))
    assert "drained with 0 of 2 tasks complete" in said(box, job)
    assert f"Slurm is asked to start job {job}_0 again, 1 of 3" in said(box, job)
    wait_until(lambda: "Slurm has 1 element pending (BeginTime)" in waits.err)
    (box / "gate").touch()
    slurm.wait_for(job, "COMPLETED")
    waits.wait(0)
    assert restarts(slurm, job) == 1
    assert_sound(box, "S", 2)
    parents = box.status("S")
    assert parents["tasks"]["complete"] == 2


@one_node
def test_a_run_that_slurm_has_yet_to_start_is_waited_for(box: Box, slurm: Cluster) -> None:
    job = submit(box, "--sbatch", "--hold")
    waits = box.start("wait", "S")
    wait_until(lambda: "does not start unless something is done about it: JobHeld" in waits.err)
    assert "  queued  " in box.run("status", "S").out
    slurm.run("scontrol", "release", job)
    assert "  complete  " in waits.wait(0).out


@one_node
def test_who_waits_right_after_submit_returns_once_the_run_is_complete(
    box: Box, slurm: Cluster
) -> None:
    submit(box)
    assert "  complete  100 %" in box.run("wait", "S").out


@one_node
def test_a_job_that_was_cancelled_stays_cancelled(box: Box, slurm: Cluster) -> None:
    job = submit_gated(box, "--requeue", "3")
    wait_until(lambda: waiting(box))
    slurm.run("scancel", f"{job}_0")
    slurm.wait_for(job, "CANCELLED")
    wait_until(lambda: "drained with 0 of 2" in said(box, job))
    assert "is asked to start" not in said(box, job)
    assert restarts(slurm, job) == 0


@one_node
def test_a_job_that_asks_for_a_restart_while_it_is_cancelled_stays_cancelled(
    box: Box, slurm: Cluster
) -> None:
    """The request may cross the cancellation on its way."""
    box.write(
        "ask.py",
        "import signal\n"
        "from gpuspool.orchestrator.slurm.requeue import requeue\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
        "requeue(3, 'drained.', lambda text: print(text, flush=True), wait_s=0)\n"
        "print('asked', flush=True)\n",
    )
    out = box / "out"
    wrap = f"exec {sys.executable} {box / 'ask.py'}"
    job = slurm.submit("--requeue", f"--output={out}", "--wrap", wrap)
    wait_until(lambda: out.exists() and "ready" in out.read_text())
    slurm.run("scancel", job)
    wait_until(lambda: "asked" in out.read_text())
    slurm.wait_for(job, "CANCELLED")
    assert "was not requeued" not in out.read_text()
    assert restarts(slurm, job) == 0


@one_node
def test_what_is_submitted_from_inside_of_an_element_is_not_taken_for_it(
    box: Box, slurm: Cluster
) -> None:
    """sbatch hands down SLURM_ARRAY_JOB_ID and SLURM_RESTART_COUNT of the job around it."""
    run = f"{GPUSPOOL} run {GATED} --tasks {box.tasks(['wait'])} --arg gate={box / 'gate'} "
    run += "--spool S --requeue 1 --time-limit 0"
    inner = box.write("inner.sh", f"#!/bin/bash\nenv > inner.env\nexec {run}\n")
    command = f"sbatch --parsable --requeue --output=inner.out {inner} > inner.id; sleep 1000"
    outer = slurm.submit("--array=5", "--wrap", command)
    wait_until(lambda: (box / "inner.id").exists() and (box / "inner.id").read_text())
    job = (box / "inner.id").read_text().strip()
    wait_until(lambda: restarts(slurm, job) == 1, poll=POLL_S)
    assert f"SLURM_ARRAY_JOB_ID={outer}" in (box / "inner.env").read_text()
    assert slurm.state(f"{outer}_5") == "RUNNING"
    assert restarts(slurm, outer) == 0


@one_node
def test_a_restart_that_slurm_refuses_is_told_and_the_job_ends_with_75(
    box: Box, slurm: Cluster
) -> None:
    job = submit_gated(box, "--requeue", "3", "--sbatch", "--no-requeue")
    wait_until(lambda: waiting(box))
    slurm.run("scancel", "--signal=USR2", "--batch", f"{job}_0")
    slurm.wait_for(job, "FAILED")
    assert slurm.show(job)["ExitCode"] == "75:0"
    assert f"job {job}_0 was not requeued: " in said(box, job)
    assert "Requested operation is presently disabled" in said(box, job)


# Where gpuspool must not be started.


@two_nodes
def test_a_script_of_two_nodes_is_refused_and_srun_uses_both(box: Box, slurm: Cluster) -> None:
    script = box.write(
        "two.sh",
        "#!/bin/bash\n"
        f"{GPUSPOOL} run {DOUBLE} --lines {box.lines(20)} --spool S; echo code $?\n"
        f"srun --ntasks-per-node=1 {GPUSPOOL} run {DOUBLE} --lines lines --spool S; echo code $?\n",
    )
    job = slurm.submit("--nodes=2", f"--output={box / 'out'}", script)
    slurm.wait_for(job, "COMPLETED", "FAILED")
    told = (box / "out").read_text()
    assert "2 nodes n1, n2" in told.splitlines()[0]
    assert re.findall(r"code \d+", told) == ["code 2", "code 0"]
    assert_sound(box, "S", 20)


@one_node
def test_the_shell_of_salloc_is_refused_on_the_login_node_and_srun_is_not(
    box: Box, slurm: Cluster
) -> None:
    run = f"{GPUSPOOL} run {DOUBLE} --lines {box.lines(2)} --spool S"
    done = slurm.run("salloc", "--gpus=1", "sh", "-c", run, code=2)
    assert "`srun gpuspool …`" in done.err
    assert not (box / "S").exists()
    slurm.run("salloc", "--gpus=1", "sh", "-c", f"srun {run}")
    assert_sound(box, "S", 2)


# What is missing is submitted again.


@pytest.mark.parametrize("slurm", [{"nodes": 1, "MaxArraySize": "5"}], indirect=True)
def test_more_elements_than_an_array_may_have_become_several(
    box: Box, slurm: Cluster, shared: None
) -> None:
    options = ["--elements", "12", "--sbatch", "--hold", "--max-at-once", "6"]
    submit(box, *options)
    wanted = f"gpuspool-{record(box / 'S' / 'run.json')['id']}"
    look = ("squeue", "--me", "--noheader", "--array", "--name", wanted, "--format=%F %K")
    rows = [line.split() for line in slurm.run(*look).out.splitlines()]
    arrays = sorted({int(array) for array, _ in rows})
    indices = [sorted(int(index) for array, index in rows if int(array) == one) for one in arrays]
    assert indices == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1]]
    assert "12 elements" in box.run("resume", "S", "--slurm").err
    slurm.run("scancel", f"{arrays[0]}_[0-3]", str(arrays[2]))
    done = box.run("resume", "S", "--slurm", "--json").record()
    assert (done["elements"], len(done["jobs"])) == (6, 2)
    assert len(slurm.run(*look).out.splitlines()) == 12
    assert "12 elements" in submit_again(box, *options)
    alive = {line.split()[0] for line in slurm.run(*look).out.splitlines()}
    slurm.run("scontrol", "release", *alive)
    for array in alive:
        slurm.wait_for(array, "COMPLETED", "CANCELLED", "FAILED")
    assert_sound(box, "S", 12)
    ends = [record(path) for path in (box / "S" / "parents").glob("*.end.json")]
    assert [end["exit_code"] for end in ends] == [0] * 12


def submit_again(box: Box, *options: str) -> str:
    """What the same command says where nothing is missing."""
    command = ["submit", DOUBLE, "--lines", "lines", "--spool", "S", "--elements", "1"]
    return box.run(*command, *options).err


@one_node
def test_an_array_that_sbatch_failed_to_tell_of_is_found_and_not_submitted_twice(
    box: Box, slurm: Cluster
) -> None:
    """The controller took it, and its answer was lost on the way."""
    stubs = Stubs(box)
    stubs.add("sbatch", f'{shutil.which("sbatch")} "$@"; echo Socket timed out >&2; exit 1')
    box.environment["PATH"] = stubs.path
    job = submit(box, "--sbatch", "--hold")
    assert slurm.states(job) == {f"{job}_0": "PENDING"}
    assert "1 element " in submit_again(box, "--sbatch", "--hold")
    assert len(stubs.called("sbatch")) == 1
    slurm.run("scontrol", "release", job)
    slurm.wait_for(job, "COMPLETED", "FAILED")
    assert_sound(box, "S", 12)


@one_node
def test_what_slurm_does_not_take_is_told_in_its_words(box: Box, slurm: Cluster) -> None:
    for options, words in (
        (["--partition", "nope"], "invalid partition specified: nope"),
        (["--gres", "gpu:99"], "Requested node configuration is not available"),
        (["--partition", "cpu"], "Requested node configuration is not available"),
        (["--time", "soon"], "Invalid --time specification"),
        (["--sbatch", "--bogus"], "unrecognized option '--bogus'"),
    ):
        assert words in submit(box, *options, code=2)
    box.environment["SBATCH_PARTITION"] = "nope"
    assert "invalid partition specified: nope" in submit(box, code=2), "as a profile says"
    job = submit(box, "--partition", "main")
    slurm.wait_for(job, "COMPLETED")
    assert_sound(box, "S", 12)


@one_node
def test_while_the_controller_is_down_nothing_is_known_and_nothing_lost(
    box: Box, slurm: Cluster
) -> None:
    job = submit_gated(box, "--requeue", "3", tasks=3)
    wait_until(lambda: waiting(box))
    slurm.stop_controller()
    done = box.run("resume", "S", "--slurm", code=2)
    assert "Unable to contact slurm controller" in done.err
    assert "sbatch" in done.err
    # Another run cannot be submitted, and its spool waits for the next try.
    other = ["submit", DOUBLE, "--lines", box.lines(2), "--spool", "T", "--elements", "1"]
    assert "Unable to contact slurm controller" in box.run(*other, code=2).err
    slurm.start_controller()
    (box / "gate").touch()
    wait_until(lambda: slurm.states(job).values() and slurm.state(job) == "COMPLETED", poll=POLL_S)
    assert_sound(box, "S", 3)
    box.run(*other)
    wait_until(lambda: box.status("T")["state"] == "complete", poll=POLL_S)
