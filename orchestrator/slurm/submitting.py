"""Submitting the arrays of a run to Slurm, and asking what it has of them.

Elements of an array are equal, and one too many only adds ranks to the run. So what is asked is
only how many are pending or running, and how many are submitted are those that are missing. Still
nothing is submitted while nobody knows: a site's queue is not to be filled by somebody who presses
the arrow key and Enter.

`sbatch` may fail, or take for ever, after the controller took the job. So what it said is believed
only once squeue was asked for jobs of this run that were not there before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from gpuspool.orchestrator.slurm.commands import ask, configured_number
from gpuspool.orchestrator.slurm.elements import elements_of
from gpuspool.orchestrator.slurm.script import Array, array_range, variables_for
from gpuspool.orchestrator.text.words import to_type
from gpuspool.spool.errors import GpuspoolError
from gpuspool.spool.publish import read_bytes

# How long sbatch may take. Sites let it look at many things before a job is accepted.
SBATCH_S = 60.0

# Slurm's own default of how many elements an array may have.
USUAL_ARRAY = 1001

_JOB_ID = re.compile(r"^(\d+)(?:;\S*)?\s*$", re.MULTILINE | re.ASCII)

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
    elements = elements_of(name)
    if isinstance(elements, str):
        return elements
    return [element.array for element in elements if element.is_alive]


def largest_array() -> int:
    """How many elements an array may have, the first of which has the index 0."""
    configured = configured_number("MaxArraySize")
    # Where arrays are switched off this is 0, and sbatch will say so.
    return USUAL_ARRAY if configured is None else max(1, configured)


def split_arrays(elements: int, at_once: int | None, largest: int) -> list[Array]:
    """So many elements as arrays of at most `largest`, which share how many may run at once.

    Each array may run one element, so with more arrays than `at_once` there may be more at once.
    """
    sizes = [min(largest, elements - begun) for begun in range(0, elements, largest)]
    if at_once is None:
        return [Array(size, None) for size in sizes]
    share, rest = divmod(at_once, len(sizes))
    return [Array(size, max(1, share + (i < rest))) for i, size in enumerate(sizes)]


class Submitted(msgspec.Struct):
    """What came of submitting arrays.

    jobs: the ids of the arrays that Slurm has. said: what sbatch had to say of them. refusal: in
    Slurm's words why it did not take the next one, "" where it took all.
    """

    jobs: list[str]
    said: list[str]
    refusal: str = ""


def submit_arrays(
    script: Path, name: str, arrays: Sequence[Array], known: Iterable[str]
) -> Submitted:
    """Submit a script once for each array, until one is refused.

    name: of its jobs. known: the ids of the arrays that were there before. Raises GpuspoolError
    where nobody knows whether Slurm took one.
    """
    done = Submitted([], [])
    before = set(known)
    variables = variables_for(read_bytes(script) or b"", os.environ)
    for array in arrays:
        option = f"--array={array_range(array.elements, array.at_once)}"
        words = ["sbatch", "--parsable", option, str(script)]
        answer = ask(words, SBATCH_S, variables)
        if answer.err:
            done.said.append(answer.err)
        job, trouble = id_in(answer.out), answer.trouble
        if not trouble and job is None:
            trouble = f"sbatch told no job's id, but {answer.out.strip()!r}"
        if trouble or job is None:
            job = _found_after_all(name, before, trouble, done.jobs, script)
        if job is None:
            done.refusal = trouble
            return done
        done.jobs.append(job)
        before.add(job)
    return done


def id_in(out: str) -> str | None:
    """The job's id that sbatch told; None where it told none.

    Behind the id, and a semicolon, stands the cluster where there are several. Some sites have a
    wrapper around sbatch which greets before that.
    """
    ids = _JOB_ID.findall(out)
    return ids[-1] if ids else None


def _found_after_all(
    name: str, before: set[str], trouble: str, submitted: list[str], script: Path
) -> str | None:
    """The id of an array that sbatch failed to tell; None where there is none."""
    alive = alive_arrays(name)
    if isinstance(alive, str):
        raise GpuspoolError(
            f"nobody knows whether the jobs were submitted. sbatch: {trouble}\nsqueue: {alive}\n"
            f"Once Slurm answers, {to_type('resume', script.parent.parent, '--slurm')} submits "
            f"what is missing.{before_that(submitted)}"
        )
    new = sorted(set(alive) - before)
    return new[-1] if new else None


def before_that(submitted: Sequence[str]) -> str:
    """Which arrays were submitted before something went wrong, as a sentence; "" where none was."""
    return f" Submitted before that: {', '.join(submitted)}." if submitted else ""


def node_shapes(partition: str) -> list[NodeShape]:
    """What the nodes of these partitions have; none where nobody tells.

    partition: "" for those of SBATCH_PARTITION, or else for the default one.
    """
    partition = partition or os.environ.get("SBATCH_PARTITION", "")
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
