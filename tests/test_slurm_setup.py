"""The Slurm that tests use is a real one: its nodes are hosts, its jobs have GPUs, and faults are
what they are on a site.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import GPUSPOOL, JOBS, TESTS, Box, is_alive, kill, wait_until
from slurm.cluster import Cluster, why_not
from torture.hosts import state_of

from gpuspool.spool.identity import myself

# A batch script that tells what it was given, then stays.
TELL = """#!/bin/sh
echo "$SLURM_ARRAY_TASK_ID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $SLURM_JOB_GPUS"
exec sleep infinity
"""
# One that says each time that it starts, and on which node.
RESTARTED = """#!/bin/sh
echo "${SLURM_RESTART_COUNT:-first} $(hostname)"
exec sleep infinity
"""


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_each_node_is_a_host_of_its_own(box: Box, slurm: Cluster) -> None:
    """So gpuspool must take no process of another node for one that it can see."""
    script = box.write(
        "who.py",
        "from gpuspool.spool.identity import myself\n"
        "me = myself()\n"
        "print(me.host, me.boot_id, me.pid_ns)\n",
    )
    done = slurm.run("srun", "--nodes=3", "--ntasks-per-node=1", sys.executable, script)
    told = [line.split() for line in done.out.splitlines()]
    me = myself()
    hosts, boots, namespaces = ({*each} for each in zip(*told, strict=True))
    assert hosts == {"n1", "n2", "n3"}
    assert len(boots | {me.boot_id}) == len(namespaces | {me.pid_ns}) == 4
    assert me.host not in hosts


def test_each_element_of_an_array_has_a_gpu_of_its_own(box: Box, slurm: Cluster) -> None:
    script = box.write("tell.sh", TELL)
    job = slurm.submit("--array=0-3", "--gpus=1", f"--output={box / 'out.%a'}", script)
    slurm.wait_for(job, "RUNNING")
    assert slurm.states(job).keys() == {f"{job}_{element}" for element in range(4)}
    outs = [box / f"out.{element}" for element in range(4)]
    wait_until(lambda: all(map(lines, outs)))
    told = [lines(out)[0].split() for out in outs]
    assert [element for element, *_ in told] == ["0", "1", "2", "3"]
    assert len({(node, gpu) for _, node, gpu, _ in told}) == 4
    assert {gpu for _, _, gpu, _ in told} <= {"0", "1", "2"}
    assert [gpu for _, _, gpu, _ in told] == [listed for *_, listed in told]


def test_gpuspool_in_a_job_runs_on_the_gpu_that_the_job_was_given(box: Box, slurm: Cluster) -> None:
    first = slurm.submit("--nodelist=n1", "--gpus=1", "--wrap", "exec sleep infinity")
    slurm.wait_for(first, "RUNNING")
    command = f"{GPUSPOOL} run {JOBS}/plain.py:describe --lines {box.lines(2)} --spool S"
    job = slurm.submit("--nodelist=n1", "--gpus=1", "--wrap", f"exec {command}")
    slurm.wait_for(job, "COMPLETED", "FAILED")
    assert slurm.state(job) == "COMPLETED", (box / f"slurm-{job}.out").read_text()
    assert [result["result"]["visible"] for result in box.results("S")] == ["1", "1"]


def test_the_shell_of_salloc_is_not_on_a_node(box: Box, slurm: Cluster) -> None:
    shell = ("sh", "-c", "hostname; echo $SLURM_JOB_NODELIST")
    done = slurm.run("salloc", "--nodes=1", "--gpus=1", *shell)
    host, node = done.out.split()
    assert host == os.uname().nodename
    assert node in slurm.nodes


def test_a_job_of_a_crashed_node_dies_and_starts_again_elsewhere(box: Box, slurm: Cluster) -> None:
    script = box.write("restarted.sh", RESTARTED)
    outs = {name: box / name for name in ("again", "lost", "other")}

    def submit(name: str, *options: str) -> str:
        job = slurm.submit("--open-mode=append", f"--output={outs[name]}", *options, script)
        wait_until(lambda: lines(outs[name]))
        return job

    again = submit("again", "--requeue")
    node = slurm.show(again)["NodeList"]
    lost = submit("lost", "--no-requeue", f"--nodelist={node}")
    other = submit("other", "--requeue", f"--exclude={node}")
    there = slurm.processes(node)
    assert there
    slurm.crash(node)
    assert not any(map(is_alive, there))
    slurm.declare_down(node)
    assert [slurm.state(job) for job in (again, lost, other)] == ["PENDING", "NODE_FAIL", "RUNNING"]
    wait_until(lambda: len(lines(outs["again"])) == 2)
    first, second = lines(outs["again"])
    assert first == f"first {node}"
    assert second.startswith("1 n")
    assert second != f"1 {node}"
    assert len(lines(outs["other"])) == 1


def test_a_node_that_boots_again_is_another_boot_of_the_same_host(slurm: Cluster) -> None:
    look = ("srun", "--nodelist=n1", "cat", "/proc/sys/kernel/random/boot_id", "/proc/mounts")
    boot, _, mounts = slurm.run(*look).out.partition("\n")
    slurm.crash("n1")
    slurm.declare_down("n1")
    slurm.restart("n1")
    assert slurm.run(*look).out.partition("\n")[0] != boot
    assert "boot_id" in mounts


def test_a_suspended_node_stands_still_and_goes_on(box: Box, slurm: Cluster) -> None:
    out = box / "out"
    beat = f"while :; do echo >>{out}; sleep 0.01; done"
    job = slurm.submit("--nodelist=n1", "--wrap", beat)
    wait_until(lambda: lines(out))
    slurm.suspend("n1")
    there = slurm.processes("n1")
    assert there
    assert {state_of(pid) for pid in there} <= {"T", "Z", "D"}
    assert slurm.run("srun", "--nodelist=n2", "hostname").out == "n2\n"
    assert slurm.state(job) == "RUNNING"
    written = len(lines(out))
    slurm.resume("n1")
    wait_until(lambda: len(lines(out)) > written)


def test_what_is_run_on_a_node_sees_its_processes_and_our_files(box: Box, slurm: Cluster) -> None:
    done = slurm.run(*slurm.on("n2"), "sh", "-c", "hostname; pwd; ps -e -o comm=")
    host, folder, *programs = done.out.splitlines()
    assert (host, folder) == ("n2", str(box.home))
    assert programs.count("slurmd") == 1
    assert "slurmctld" not in programs


def test_a_job_is_warned_before_its_time_limit_and_killed_some_time_after_it(
    box: Box, slurm: Cluster
) -> None:
    """Of two jobs one is due for its warning and one for its end. Slurm looks every 30 s."""
    # B: means the batch script, not what it has started.
    child = "trap 'echo child' USR2; while :; do sleep 0.1; done"
    warned_script = box.write(
        "warned.sh",
        f'#!/bin/sh\nsh -c "{child}" &\n'
        "trap 'echo script' USR2\nwhile :; do wait; sleep 0.1; done\n",
    )
    ended_script = box.write(
        "ended.sh",
        "#!/bin/sh\ntrap 'asked=yes; echo asked' TERM\n"
        'while :; do sleep 0.1; [ -z "$asked" ] || echo on; done\n',
    )
    outs = box / "warned", box / "ended"
    options = ("--signal=B:USR2@240", "--time=4", f"--output={outs[0]}")
    warned = slurm.submit(*options, warned_script)
    ended = slurm.submit("--time=5", f"--output={outs[1]}", ended_script)
    slurm.wait_for(ended, "RUNNING")
    slurm.expire(ended)
    slurm.wait_for(ended, "TIMEOUT")
    assert [line for line in lines(outs[1]) if line in ("asked", "on")][:2] == ["asked", "on"]
    assert slurm.show(ended)["ExitCode"] == f"0:{int(signal.SIGKILL)}"
    wait_until(lambda: lines(outs[0]))
    assert lines(outs[0]) == ["script"]
    assert slurm.state(warned) == "RUNNING"


def test_jobs_go_on_without_the_controller(box: Box, slurm: Cluster) -> None:
    out = box / "out"
    job = slurm.submit("--wrap", f"while :; do echo >>{out}; sleep 0.01; done")
    wait_until(lambda: lines(out))
    slurm.stop_controller()
    assert "Unable to contact slurm controller" in slurm.run("squeue", code=1).err
    written = len(lines(out))
    wait_until(lambda: len(lines(out)) > written)
    slurm.start_controller()
    assert slurm.state(job) == "RUNNING"


@pytest.mark.parametrize("slurm", [{"nodes": 1, "gpus": 1, "MaxArraySize": "5"}], indirect=True)
def test_a_cluster_of_another_shape_refuses_what_it_has_not(slurm: Cluster) -> None:
    array = slurm.run("sbatch", "--array=0-5", "--wrap", "true", code=1)
    assert "Invalid job array specification" in array.err
    for options in (["--gpus=2"], ["--partition=cpu", "--gpus=1"]):
        done = slurm.run("sbatch", *options, "--wrap", "true", code=1)
        assert "node configuration is not available" in done.err


def test_two_clusters_at_once_know_nothing_of_each_other(
    slurm: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("b") / "home"
    home.mkdir()
    with Cluster(Box(home), nodes=1) as other:
        slurm.submit("--wrap", "exec sleep infinity")
        assert other.run("squeue", "--noheader").out == ""
        assert other.run("srun", "hostname").out == "n1\n"


def test_nothing_is_left_of_a_cluster_whose_tests_were_killed(box: Box) -> None:
    if why_not():
        pytest.skip(why_not())
    script = box.write(
        "tests.py",
        f"import sys, time\nsys.path.insert(0, {str(TESTS)!r})\n"
        "from pathlib import Path\nfrom helpers import Box\nfrom slurm.cluster import Cluster\n"
        f"with Cluster(Box(Path({str(box.home)!r}))) as cluster:\n"
        "    cluster.wait_for(cluster.submit('--wrap', 'exec sleep infinity'), 'RUNNING')\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n",
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        assert tests.stdout.readline() == b"up\n"
        assert len(of_cluster(box)) > 8
        kill(tests.pid)
    wait_until(lambda: not of_cluster(box))
    assert box.processes() == []


def of_cluster(box: Box) -> list[int]:
    """All processes that know of the cluster of this box."""
    conf = os.fsencode(f"SLURM_CONF={box.home.with_name('slurm')}")
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            known = conf in entry.read_bytes()
        except OSError:
            continue
        if known:
            found.append(int(entry.parent.name))
    return found
