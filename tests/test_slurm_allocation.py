"""What the environment says of a Slurm job, and where gpuspool must not be started in one."""

import tempfile

import pytest
from helpers import JOBS, Box, tree

from gpuspool.orchestrator.slurm.allocation import (
    expand_nodes,
    misplacement,
    others_in,
    scheduler_in,
    warning_of_idle_nodes,
)
from gpuspool.spool.codec import pretty
from gpuspool.spool.records import Scheduler

# A batch script of one node, an element of an array, a task of srun's, and the shell of salloc, as
# Slurm 22.05 sets their variables.
SCRIPT = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURMD_NODENAME": "n1",
}
ELEMENT = {**SCRIPT, "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}
TWO_NODES = {**SCRIPT, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
TASK = {**TWO_NODES, "SLURM_STEP_ID": "0"}
SALLOC = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}
# The step in which salloc runs its shell on the first node, where a site wants that.
INTERACTIVE = {**TWO_NODES, "SLURM_STEP_ID": "4294967290"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n1,n2", ["n1", "n2"]),
        ("n[1-3,07],gpu-a", ["n1", "n2", "n3", "n07", "gpu-a"]),
        ("n[008-011]", ["n008", "n009", "n010", "n011"]),
        ("r[0-1]n[1,3].site", ["r0n1.site", "r0n3.site", "r1n1.site", "r1n3.site"]),
        ("a[1],b", ["a1", "b"]),
        # None of Slurm's lists: it is one name, whatever it means.
        ("n[1-", ["n[1-"]),
        ("n[a-c]", ["n[a-c]"]),
        ("n[3-1]", []),
        ("n[1-999999999]", ["n[1-999999999]"]),
    ],
)
def test_a_node_list_is_expanded(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


def test_outside_of_a_job_there_is_no_scheduler() -> None:
    assert scheduler_in({}) is None
    assert scheduler_in({"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": ""}) is None


def test_a_script_is_named_by_its_job_and_an_element_by_array_and_index() -> None:
    assert scheduler_in(SCRIPT) == Scheduler(kind="slurm", job="12", nodes=["n1"])
    element = scheduler_in({**ELEMENT, "SLURM_RESTART_COUNT": "2"})
    assert element == Scheduler(kind="slurm", job="9_3", restart=2, nodes=["n1"])


def test_a_step_has_its_id_also_the_one_of_salloc() -> None:
    task = scheduler_in(TASK)
    assert task == Scheduler(kind="slurm", job="12", nodes=["n1", "n2"], step="0")
    shell = scheduler_in(INTERACTIVE)
    assert shell is not None
    assert shell.step == "4294967290"


@pytest.mark.parametrize("count", ["", "x", "-1", "½"])
def test_a_count_of_restarts_that_is_none_is_zero(count: str) -> None:
    scheduler = scheduler_in({**SCRIPT, "SLURM_RESTART_COUNT": count})
    assert scheduler is not None
    assert scheduler.restart == 0


def test_what_is_not_told_is_left_out_of_the_record() -> None:
    assert b"restart" not in pretty(Scheduler(kind="slurm", job="12"))


@pytest.mark.parametrize(
    ("environment", "host"),
    [
        ({}, "login"),
        (SCRIPT, "n1"),
        (ELEMENT, "n1"),
        (TASK, "n1"),
        (TASK, "n2.cluster.site"),
        (INTERACTIVE, "n1"),
        # srun of a shell of salloc's, on a host that Slurm knows by another name.
        ({**SALLOC, "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n1"}, "ip-10-0-0-7"),
        ({**SALLOC, "SLURM_JOB_NODELIST": "n1.cluster.site"}, "N1"),
        # A job of which nothing else is known, as in a container that was passed one variable.
        ({"SLURM_JOB_ID": "12"}, "login"),
    ],
)
def test_gpuspool_may_be_started_on_a_node_of_the_job(
    environment: dict[str, str], host: str
) -> None:
    assert misplacement(environment, host) is None


def test_a_script_of_several_nodes_is_refused_with_how_to() -> None:
    why = misplacement(TWO_NODES, "n1")
    assert why is not None
    assert "2 nodes n1, n2" in why
    assert "`srun --ntasks-per-node=1 gpuspool …`" in why


def test_many_nodes_are_counted_and_not_listed() -> None:
    many = {**TWO_NODES, "SLURM_JOB_NODELIST": "n[1-64]", "SLURM_JOB_NUM_NODES": "64"}
    assert "64 nodes n1, n2, n3, n4, …" in (misplacement(many, "n1") or "")


@pytest.mark.parametrize(
    ("environment", "srun"),
    [
        (SALLOC, "`srun gpuspool …`"),
        (
            {**SALLOC, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"},
            "`srun --ntasks-per-node=1 gpuspool …`",
        ),
    ],
)
def test_the_shell_of_salloc_on_the_login_node_is_refused_with_how_to(
    environment: dict[str, str], srun: str
) -> None:
    why = misplacement(environment, "login.cluster.site")
    assert why is not None
    assert srun in why
    assert "login.cluster.site" in why


def test_a_shell_of_salloc_on_the_first_of_several_nodes_is_warned() -> None:
    assert "srun --ntasks-per-node=1" in (warning_of_idle_nodes(INTERACTIVE) or "")
    for environment in ({}, SCRIPT, TASK, {**INTERACTIVE, "SLURM_JOB_NUM_NODES": "1"}):
        assert warning_of_idle_nodes(environment) is None


@pytest.mark.parametrize(
    "verb",
    [
        ["run", f"{JOBS}/plain.py:double", "--lines", "lines", "--spool", "T"],
        ["run", f"{JOBS}/plain.py:double", "--lines", "lines", "--spool", "T", "--dry-run"],
        ["resume", "S"],
        ["retry", "S"],
        ["redo", "S", "*"],
        ["join", "S"],
    ],
)
def test_no_verb_that_runs_is_started_elsewhere_than_on_the_node(box: Box, verb: list[str]) -> None:
    box.lines(2)
    box.run("run", f"{JOBS}/plain.py:double", "--lines", "lines", "--spool", "S")
    before = tree(box.home)
    done = box.run(*verb, env=SALLOC, code=2)
    assert "srun gpuspool" in done.err
    assert tree(box.home) == before
    assert "complete" in box.run("status", "S", env=SALLOC).out


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["a start", "a dry run"])
def test_a_job_that_was_started_again_does_not_begin_its_run_anew(
    box: Box, dry_run: list[str]
) -> None:
    """As after the failure of a node: the script says --fresh, and so it does once more."""
    command = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(2), "--spool", "S", "--fresh"]
    again = {**SCRIPT, "SLURMD_NODENAME": "", "SLURM_JOB_NODELIST": "", "SLURM_RESTART_COUNT": "1"}
    box.run(*command, "--time-limit", "1h", env=again)
    before = tree(box.home)
    done = box.run(*command, *dry_run, env=again, code=2)
    assert "Slurm has started this job again (1 time" in done.err
    assert "Leave --fresh out" in done.err
    assert tree(box.home) == before
    box.run(*command, "--dry-run", env={**again, "SLURM_RESTART_COUNT": "0"})


@pytest.mark.parametrize(
    ("environment", "others"),
    [
        ({}, ""),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "9"}, ""),
        (SCRIPT, ""),
        (TWO_NODES, ""),
        ({**SCRIPT, "SLURM_STEP_ID": "0"}, ""),
        ({**ELEMENT, "SLURM_ARRAY_TASK_COUNT": "1"}, ""),
        ({**ELEMENT, "SLURM_ARRAY_TASK_COUNT": "100"}, "each of the 100 elements of its array"),
        (ELEMENT, "each of the elements of its array"),
        (TASK, "the start on each of its 2 nodes"),
    ],
)
def test_an_array_and_a_job_of_several_nodes_have_other_starts(
    environment: dict[str, str], others: str
) -> None:
    assert others_in(environment) == others


def test_an_element_warns_of_a_spool_that_others_cannot_see(box: Box) -> None:
    """Each of a hundred would make its own, and do all of the work."""
    command = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(2), "--time-limit", "1h"]
    element = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}
    element["SLURM_ARRAY_TASK_COUNT"] = "100"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        spool = ["--spool", f"{memory}/S"]
        told = box.run(*command, *spool, env=element).err
        assert f"warning: the spool {memory}/S lies on tmpfs, which no other node can see" in told
        assert "each of the 100 elements of its array" in told
        assert "folder of outputs" not in told, "it lies in the spool"
        alone = box.run(*command, *spool, env={**element, "SLURM_ARRAY_TASK_COUNT": "1"}).err
        assert "no other node" not in alone
        out = ["--spool", f"{memory}/T", "--out", f"{memory}/out"]
        told = box.run(*command, *out, env=element).err
        assert f"the folder of outputs {memory}/out lies on tmpfs" in told
        assert "with --out." in told
