"""Submitting the arrays of a run to Slurm, and asking what it has of them.

Elements of an array are equal, and one too many only adds ranks to the run. So what is asked is
only how many are pending or running, and how many are submitted are those that are missing. Still
nothing is submitted while nobody knows: a site's queue is not to be filled by somebody who presses
the arrow key and Enter.

`sbatch` may fail, or take for ever, after the controller took the job. So what it said is believed
only once squeue was asked for jobs of this run that were not there before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from gpuspool.orchestrator.slurm.commands import ask
from gpuspool.orchestrator.slurm.script import Array, array_range
from gpuspool.spool.errors import GpuspoolError, UsageError

# How long sbatch may take. Sites let it look at many things before a job is accepted.
SBATCH_S = 60.0

# Slurm's own default of how many elements an array may have.
USUAL_ARRAY = 1001

_MAX_ARRAY = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)

# What squeue calls a job that does nothing more. All else may run yet.
_OVER = frozenset(
    (
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "DEADLINE", "FAILED", "NODE_FAIL",
        "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
    )
)  # fmt: skip

# gpu, gpu:2, gpu:a100 or gpu:a100:2, but not gpu_mem.
_GPUS = re.compile(r"\bgpu(?!\w)(?::(?!\d+\b)[^:,()]+)?(?::(\d+))?", re.ASCII)


class NodeShape(msgspec.Struct, frozen=True):
    """What some nodes of a partition have."""

    cpus: int
    gpus: int


def alive_arrays(name: str) -> list[str] | str:
    """Of each element that is pending or running, the id of its array; or why that is not known.

    name: of the jobs.
    """
    answer = ask(["squeue", "--me", "-h", "-r", "-n", name, "-o", "%F|%T"])
    if answer.trouble:
        return answer.trouble
    return alive_in(answer.out)


def alive_in(out: str) -> list[str]:
    """The id of the array of each element that squeue shows and that is not over."""
    rows = [line.strip().split("|") for line in out.splitlines()]
    return [row[0] for row in rows if len(row) == 2 and row[1] not in _OVER]


def largest_array() -> int:
    """How many elements an array may have, the first of which has the index 0."""
    match = _MAX_ARRAY.search(ask(["scontrol", "show", "config"]).out)
    # Where arrays are switched off this is 0, and sbatch will say so.
    return max(1, int(match[1])) if match else USUAL_ARRAY


def split_arrays(elements: int, at_once: int | None, largest: int) -> list[Array]:
    """So many elements as arrays of at most `largest`, which share how many may run at once.

    Each array may run one element, so with more arrays than `at_once` there may be more at once.
    """
    sizes = [min(largest, elements - begun) for begun in range(0, elements, largest)]
    if at_once is None:
        return [Array(size, None) for size in sizes]
    share, rest = divmod(at_once, len(sizes))
    return [Array(size, max(1, share + (i < rest))) for i, size in enumerate(sizes)]


def submit_arrays(
    script: Path, name: str, arrays: Sequence[Array], known: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Submit a script once for each array; returns the ids of the arrays, and what Slurm said.

    name: of its jobs. known: the ids of the arrays that were there before. Raises UsageError with
    Slurm's words where it refuses, and GpuspoolError where nobody knows whether it did.
    """
    submitted: list[str] = []
    said: list[str] = []
    before = set(known)
    for array in arrays:
        option = f"--array={array_range(array.elements, array.at_once)}"
        answer = ask(["sbatch", "--parsable", option, str(script)], SBATCH_S)
        if answer.err:
            said.append(answer.err)
        if answer.trouble:
            submitted.append(_found_after_all(name, before, answer.trouble, submitted, script))
        else:
            # Behind the id, and a semicolon, stands the cluster where there are several.
            submitted.append(answer.out.strip().partition(";")[0])
        before.add(submitted[-1])
    return submitted, said


def _found_after_all(
    name: str, before: set[str], trouble: str, submitted: list[str], script: Path
) -> str:
    """The id of an array that sbatch failed to tell. Raises UsageError where there is none."""
    done = ""
    if submitted:
        done = f"\nSubmitted before that: {', '.join(submitted)}."
    resume = f"`gpuspool resume {script.parent.parent} --slurm`"
    alive = alive_arrays(name)
    if isinstance(alive, str):
        raise GpuspoolError(
            f"nobody knows whether the jobs were submitted. sbatch: {trouble}\nsqueue: {alive}\n"
            f"Once Slurm answers, {resume} submits what is missing.{done}"
        )
    new = sorted(set(alive) - before)
    if not new:
        # The same script is refused again unless the trouble was Slurm's own.
        raise UsageError(
            f"Slurm did not take {script}: {trouble}{done}\nIf an option is wrong, submit again "
            f"with the right one. If the trouble was Slurm's, {resume} submits the same script "
            "again later."
        )
    return new[-1]


def node_shapes(partition: str) -> list[NodeShape]:
    """What the nodes of these partitions have, "" for the default one; none where nobody tells."""
    words = ["sinfo", "-h", "-o", "%P|%c|%G"]
    if partition:
        words += ["-p", partition]
    return node_shapes_in(ask(words).out, is_default=not partition)


def node_shapes_in(out: str, *, is_default: bool) -> list[NodeShape]:
    """The shapes in sinfo's rows. is_default: only of the partition that has a star."""
    found: list[NodeShape] = []
    for line in out.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 3 or (is_default and not fields[0].endswith("*")):
            continue
        # A plus sign says that some nodes have more.
        cpus = fields[1].rstrip("+")
        if cpus.isdigit():
            found.append(NodeShape(int(cpus), gpus_in(fields[2])))
    return found


def gpus_in(gres: str) -> int:
    """How many GPUs a list of generic resources has: gpu:4, gpu:a100:2(S:0-1),nvme:1 or (null).

    Without a count it is one.
    """
    return sum(int(count or 1) for count in _GPUS.findall(gres))


def fair_cpus(shapes: Sequence[NodeShape], gpus: int) -> int | None:
    """So many cores go with so many GPUs if each GPU of a node is to have as many.

    None where no shape has GPUs.
    """
    shares = [shape.cpus * gpus // shape.gpus for shape in shapes if shape.gpus >= gpus]
    return max(1, min(shares)) if shares else None
