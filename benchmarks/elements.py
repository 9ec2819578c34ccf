"""The bench of gpuspool on Slurm: how much sooner more elements of an array are through.

It needs a Slurm, and starts the one that the tests use (`tests/slurm`): three nodes with three GPUs
each, all of them namespaces of this machine. Tasks sleep, so that two cores carry nine elements;
what cannot sleep is the start of nine interpreters, and of the parents and workers beside them.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks import timed, traces
from benchmarks.peers import HERE
from benchmarks.points import Point, Setting

# The tests are a folder of the checkout, and no installed package.
sys.path.append(str(HERE.parent / "tests"))

from helpers import GPUSPOOL, Box, wait_until
from slurm.cluster import Cluster, why_not

PATIENCE_S = 600.0
# A look lists one folder.
LOOK_S = 0.05
JOB = HERE / "adapters" / "jobs.py"


def elements(setting: Setting) -> Iterator[Point]:
    """Arrays in which each element gives the same command, with as much work for each element.

    The bound is one element's share of the work, and the time from sbatch to the first task in an
    array of one element. Both times run from sbatch: to the end of the last task, and until every
    element has said that it ended.
    """
    why = why_not()
    if why:
        yield setting.point("", "not measured", "", None, why)
        return
    sizes = setting.sizes
    with timed.fresh(setting.folder()) as folder:
        box = Box(folder / "home")
        box.home.mkdir()
        with Cluster(box) as slurm:
            begun, executions, _ = _run(box, slurm, 1, [0.0])
            start_s = executions[0].start - begun
            yield setting.point("1 element", "from sbatch to its first task", "s", start_s)
            for count in sizes.elements:
                tasks = [sizes.elements_s] * (count * sizes.tasks_an_element)
                begun, executions, ended = _run(box, slurm, count, tasks)
                twice, lost = traces.twice_and_lost(executions, len(tasks))
                assert (twice, lost) == (0, 0), f"{twice} tasks ran twice, {lost} never"
                work_s = sum(one.end - one.start for one in executions)
                bound_s = work_s / count + start_s
                case = f"{count} element{'s' if count > 1 else ''}"
                last_s = executions[-1].end - begun
                yield setting.point(case, "last task / bound", "", last_s / bound_s)
                yield setting.point(case, "all have ended / bound", "", (ended - begun) / bound_s)


def _run(
    box: Box, slurm: Cluster, count: int, seconds: list[float]
) -> tuple[float, list[traces.Execution], float]:
    """Run tasks of these lengths in an array of so many elements, in a folder of their own.

    Returns when it was submitted, what was run, and when the last element had ended. Times are Unix
    seconds: all processes have the clock of this machine.
    """
    folder = box.home / f"{count}-{len(seconds)}"
    folder.mkdir()
    traces.write_tasks(folder, seconds)
    box.environment[timed.MARK] = str(folder)
    spool = folder / "spool"
    words = [GPUSPOOL, "run", f"{JOB}:sleeping", "--lines", folder / "lines", "--spool", spool]
    text = f"exec {shlex.join(map(str, words))} --quiet"
    output = f"--output={folder / '%a.out'}"
    begun = time.time()
    job = slurm.submit("--gpus=1", f"--array=0-{count - 1}", output, "--wrap", text)
    ends = wait_until(lambda: _ends(spool, count), PATIENCE_S, LOOK_S)
    slurm.wait_for(job, "COMPLETED", "FAILED")
    said = "\n".join(path.read_text() for path in folder.glob("*.out"))
    assert {*slurm.states(job).values()} == {"COMPLETED"}, said
    return begun, traces.read_traces(folder), max(ends)


def _ends(spool: Path, count: int) -> list[float]:
    """When each element ended; [] as long as some have not."""
    ends: list[float] = []
    with suppress(OSError):
        ends = [
            json.loads(path.read_bytes())["at"] for path in (spool / "parents").glob("*.end.json")
        ]
    return ends if len(ends) == count else []
