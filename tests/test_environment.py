"""What a worker inherits of a scheduler's or launcher's environment, and what it must not."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import JOBS, Box, has_gpu, record, story
from torture import cgroups

from gpuspool.orchestrator.plan.environment import group_variables
from gpuspool.spool.cores import quota_cores, usable_cores

DESCRIBE = f"{JOBS}/plain.py:describe"
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "PMI_RANK": "1"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"}
HARMLESS = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "4"}
SHOW = """
import os


def show(task, ctx):
    return dict(os.environ)
"""
INIT = """
import torch.distributed as dist


class Group:
    # As accelerate and Lightning do: join the group that the environment tells of, if it does.
    def __init__(self, ctx):
        import os
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("gloo")

    def __call__(self, task, ctx):
        return 1
"""


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN, MPIRUN], ids=["torchrun", "srun", "mpirun"])
def test_a_worker_is_no_member_of_its_parents_process_group(
    box: Box, launcher: dict[str, str]
) -> None:
    box.write("job.py", SHOW)
    env = {**launcher, **HARMLESS}
    box.run("run", "job.py:show", "--lines", box.lines(1), "--spool", "S", env=env)
    seen = box.results("S")[0]["result"]
    assert not launcher.keys() & seen.keys()
    assert {name: seen.get(name) for name in HARMLESS} == HARMLESS
    intent = record(box / "S" / "attempts" / "rank-0000.a00.json")
    assert intent["withheld"] == launcher
    assert box.problems("S") == []


def test_a_job_that_joins_the_group_it_is_told_of_does_not_hang(box: Box) -> None:
    box.write("job.py", INIT)
    command = ["run", "job.py:Group", "--lines", box.lines(2), "--spool", "S"]
    box.run(*command, env={**TORCHRUN, "MASTER_PORT": "1"})
    assert box.status("S")["tasks"]["complete"] == 2


def test_what_only_looks_like_such_a_variable_stays() -> None:
    kept = {"RANKING": "1", "WORLD_SIZE_MAX": "9", "OMPI_MCA_btl": "tcp", "SLURM_JOB_ID": "1"}
    assert group_variables(kept) == {}


@pytest.mark.parametrize("visible", ["", "0,1"])
def test_every_rank_gets_its_share_of_the_cores(box: Box, visible: str) -> None:
    def threads(spool: str, env: Any) -> set[str]:
        command = ["run", DESCRIBE, "--lines", box.lines(4), "--spool", spool, "--ranks", "2"]
        box.run(*command, env={"CUDA_VISIBLE_DEVICES": visible, **env})
        return {result["result"]["threads"] for result in box.results(spool)}

    assert threads("S", {}) == {str(max(1, usable_cores() // 2))}
    assert threads("T", {"OMP_NUM_THREADS": "7"}) == {"7"}


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, so a promise of one is kept")
@pytest.mark.parametrize(
    "promise",
    [
        "SLURM_JOB_GPUS=0",
        "SLURM_STEP_GPUS=0",
        "SLURM_JOB_GPUS=0,1",
        "SLURM_GPUS_ON_NODE=1",
        "SLURM_GPUS_PER_NODE=a100:2",
        "NVIDIA_VISIBLE_DEVICES=0",
        "_CONDOR_AssignedGPUs=CUDA0",
        "SGE_HGR_gpu=0",
        "ZE_AFFINITY_MASK=0",
        "PBS_NGPUS=2",
        "PBS_GPUFILE=gpus",
    ],
)
def test_whoever_promises_a_gpu_that_is_not_there_is_named(box: Box, promise: str) -> None:
    box.write("gpus", "node7-gpu0\n")
    name, _, value = promise.partition("=")
    env = {"CUDA_VISIBLE_DEVICES": None, name: value}
    done = box.run("run", DESCRIBE, "--lines", box.lines(2), "--spool", "S", code=2, env=env)
    assert f"{promise} promises GPUs" in done.err
    # A user who hides devices gets the CPU, and is told of the promise.
    env["CUDA_VISIBLE_DEVICES"] = ""
    done = box.run("run", DESCRIBE, "--lines", "lines", "--spool", "S", env=env)
    assert f'cpu: CUDA_VISIBLE_DEVICES="" hides all devices, although {promise}' in done.err


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    "nothing",
    [
        "SLURM_GPUS_ON_NODE=0",
        "SLURM_JOB_GPUS=",
        "SLURM_GPUS_PER_NODE=gpu:0",
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_VISIBLE_DEVICES=void",
        "_CONDOR_AssignedGPUs=10000",
        "PBS_GPUFILE=empty",
    ],
)
def test_what_promises_nothing_is_a_run_on_the_cpu_that_says_why(box: Box, nothing: str) -> None:
    box.write("empty", "")
    name, _, value = nothing.partition("=")
    env = {"CUDA_VISIBLE_DEVICES": None, name: value}
    done = box.run("run", DESCRIBE, "--lines", box.lines(2), "--spool", "S", env=env)
    assert "on 1 rank (cpu: no GPU found)" in done.err
    told = story(box / "S")
    assert '"event":"devices"' in told


def test_entries_of_amds_own_variable_are_counted_from_0(box: Box) -> None:
    box.write("job.py", SHOW)
    env = {"CUDA_VISIBLE_DEVICES": None, "ROCR_VISIBLE_DEVICES": "4,GPU-55"}
    command = ["run", "job.py:show", "--lines", box.lines(2), "--spool"]
    box.run(*command, "S", "--ranks", "1", env=env)
    seen = box.results("S")[0]["result"]
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["ROCR_VISIBLE_DEVICES"]) == ("0", "4,GPU-55")
    box.run(*command, "T", "--devices", "cpu", env=env)
    assert box.results("T")[0]["result"]["ROCR_VISIBLE_DEVICES"] == ""


@pytest.fixture
def quota() -> Iterator[tuple[str, ...]]:
    """A program that runs a command in a cgroup with one core's worth of time, below another."""
    made: list[cgroups.Group] = []
    try:
        for group in cgroups.cpu_groups(cores=1):
            made.append(group)
    except OSError as error:
        pytest.skip(f"no cgroup with a quota can be made: {error}")
    yield made[-1].program
    for group in reversed(made):
        group.remove()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core a quota shows nothing")
def test_a_quota_of_a_cgroup_above_is_a_number_of_cores(box: Box, quota: tuple[str, ...]) -> None:
    program = (*quota, "gpuspool")
    box.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["run", DESCRIBE, "--lines", box.lines(2), "--spool", "S"]
    box.run(*command, program=program)
    assert {result["result"]["threads"] for result in box.results("S")} == {"1"}


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    mounts = tmp_path / "mounts"
    groups.write_bytes(b"0::/a/b\xff\n")
    inner = mounts / os.fsdecode(b"a/b\xff")
    write_group(inner, cpu_max="max 100000\n")
    assert quota_cores(groups, mounts) == float("inf")
    write_group(inner, cpu_max="400000 100000\n")
    write_group(mounts / "a", cpu_max="250000 100000\n")
    assert quota_cores(groups, mounts) == 2.5
    # In a container the group may bear the host's name, and its own folder is the mount's top.
    groups.write_text("0::/docker/17\n")
    write_group(mounts, cpu_max="150000 100000\n")
    assert quota_cores(groups, mounts) == 1.5
    groups.write_text("3:cpu,cpuacct:/a/b\n2:memory:/c\n")
    assert quota_cores(groups, mounts) == float("inf")
    write_group(mounts / "cpu" / "a", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    write_group(
        mounts / "cpu" / "a" / "b", cpu_cfs_quota_us="50000\n", cpu_cfs_period_us="100000\n"
    )
    assert quota_cores(groups, mounts) == 0.5
    assert quota_cores(tmp_path / "missing", mounts) == float("inf")
