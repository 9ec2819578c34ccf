"""What the environment says of the Slurm job that this process runs in.

Slurm describes a job in variables of its processes. A gpuspool works on one node and takes that
node's devices, so two ways to start it inside a job are mistakes that cost most of the job, without
a word, and are refused:

- A job of several nodes whose script calls gpuspool: that is one process, on the first node. With
  `srun` there is one on each node, each in a job step.
- The shell of `salloc`, which on most clusters runs where it was typed: on the login node.

The functions that take a mapping are pure. Called when a run is started, and for what a parent
tells of itself.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import Scheduler

# salloc can run its shell in a step of its own on the first node. The ids of such steps, and of
# those that Slurm itself makes, begin here: 0xfffffff0.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0

# A comma separates node names, but not within brackets.
_ITEM = re.compile(r"(?:[^,\[]|\[[^\]]*\]|\[)+")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)

# No cluster has more nodes than this, and a list that names more is none.
_MOST_NODES = 100_000

# What the other starts of an array are called whose number is not told.
_ANY_ELEMENT = "each of the elements of its array"

# How many nodes a message names.
_SHOWN_NODES = 4


def scheduler_now() -> Scheduler | None:
    """The Slurm job, and the step, that this process runs in; None outside of any job."""
    return scheduler_in(os.environ)


def scheduler_in(environment: Mapping[str, str]) -> Scheduler | None:
    """The job that these variables describe; None where they describe none.

    What sbatch was started from inside of another job may be told wrongly: it hands the variables
    of that job down, and Slurm replaces only those that describe any job. So its array and its
    count of restarts may be those of the other. That is good enough for people to read.
    """
    job = job_id_in(environment)
    if job is None:
        return None
    array, element = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    if array and element:
        job = f"{array}_{element}"
    return Scheduler(
        kind="slurm",
        job=job,
        restart=restarts_in(environment),
        nodes=nodes_in(environment),
        step=environment.get("SLURM_STEP_ID", ""),
    )


def job_id_in(environment: Mapping[str, str]) -> str | None:
    """The id of the job, which each element of an array has for itself; None outside of any job."""
    return environment.get("SLURM_JOB_ID") or None


def restarts_in(environment: Mapping[str, str]) -> int:
    """How often Slurm has started this job again. At its first start the variable is not set."""
    count = environment.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isascii() and count.isdigit() else 0


def nodes_in(environment: Mapping[str, str]) -> list[str]:
    """The names of the job's nodes; none where they are not told."""
    text = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST") or ""
    return expand_nodes(text)


def expand_nodes(text: str) -> list[str]:
    """The names that a node list of Slurm's stands for: n[1-3,07],gpu-a.

    Leading zeros are kept; several pairs of brackets in a name stand for all combinations. A list
    that is not well formed is returned as it is, as one name.
    """
    try:
        names = itertools.chain.from_iterable(map(_expand, _ITEM.findall(text)))
        return list(itertools.islice(names, _MOST_NODES))
    except ValueError:
        return [text]


def _expand(item: str) -> Iterator[str]:
    """The names of one item. Raises ValueError where its brackets hold no numbers."""
    # Every second piece is what stood in brackets.
    pieces = _BRACKETS.split(item)
    choices: list[Iterable[str]] = []
    for place, piece in enumerate(pieces):
        if place % 2:
            choices.append(_numbers(piece))
        elif "[" in piece or "]" in piece:
            raise ValueError(item)
        else:
            choices.append([piece])
    for chosen in itertools.product(*choices):
        yield "".join(chosen)


def _numbers(ranges: str) -> list[str]:
    """What "1-3,07" stands for: 1, 2, 3 and 07. Raises ValueError."""
    found: list[str] = []
    for one in ranges.split(","):
        match = _RANGE.fullmatch(one)
        if match is None:
            raise ValueError(ranges)
        first, last = match[1], match[2] or match[1]
        if int(last) - int(first) > _MOST_NODES:
            raise ValueError(ranges)
        found += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return found


def refuse_to_begin_again(spool: Path, environment: Mapping[str, str]) -> None:
    """Raise UsageError where --fresh would move a run aside that this job has begun itself.

    spool: the spool that is there. After the failure of a node, say, Slurm starts the same script
    again, and with it the same words.
    """
    restarts = restarts_in(environment)
    if job_id_in(environment) is None or not restarts:
        return
    times = count_of(restarts, "time")
    raise UsageError(
        f"Slurm has started this job again ({times}, SLURM_RESTART_COUNT), and --fresh would begin "
        f"the run anew although {spool} may hold what the job did before. Leave --fresh out of the "
        "job's script to go on with that. To begin anew, submit a new job; from inside of a job "
        "that was started again, `unset SLURM_RESTART_COUNT` before."
    )


def refuse_misplaced() -> None:
    """Raise UsageError where this process would leave most of its Slurm job idle."""
    trouble = misplacement(os.environ, os.uname().nodename)
    if trouble is not None:
        raise UsageError(trouble)


def misplacement(environment: Mapping[str, str], host: str) -> str | None:
    """Why gpuspool must not be started here in this job, and how instead; None if it may be.

    host: the name of this host, perhaps with its domain.
    """
    job = job_id_in(environment)
    nodes = nodes_in(environment)
    if job is None or not nodes:
        return None
    n_nodes = _node_count(environment, nodes)
    srun = "srun gpuspool …" if n_nodes == 1 else "srun --ntasks-per-node=1 gpuspool …"
    if not _is_on_a_node(environment, nodes, host):
        return (
            f"this shell belongs to Slurm job {job}, but runs on {host} and not on the job's "
            f"{_named(nodes, n_nodes)}. Start gpuspool there: `{srun}`. If it is to have nothing "
            "to do with that job: `unset SLURM_JOB_ID`."
        )
    if n_nodes > 1 and not environment.get("SLURM_STEP_ID"):
        return (
            f"Slurm job {job} has the {_named(nodes, n_nodes)}, and this is its script, which runs "
            f"on the first one alone. Start one gpuspool on each: `{srun}`. Or let `gpuspool "
            "submit` make jobs of one node each, which wait for less."
        )
    return None


def warning_of_idle_nodes(environment: Mapping[str, str]) -> str | None:
    """A warning for the shell that salloc started on the first of several nodes.

    A gpuspool there leaves the other nodes of the job idle. None for any other process.
    """
    nodes = nodes_in(environment)
    n_nodes = _node_count(environment, nodes)
    step = environment.get("SLURM_STEP_ID", "")
    is_special = step.isascii() and step.isdigit() and int(step) >= _FIRST_SPECIAL_STEP
    if job_id_in(environment) is None or n_nodes <= 1 or not is_special:
        return None
    return (
        f"this is one of the {_named(nodes, n_nodes)} of Slurm job {job_id_in(environment)}; "
        "`srun --ntasks-per-node=1 gpuspool …` uses all"
    )


def others_in(environment: Mapping[str, str]) -> str:
    """Which other starts of the same command the Slurm job around this process has, perhaps on
    other nodes: "each of the 100 elements of its array"; "" where there can be none.
    """
    if job_id_in(environment) is None:
        return ""
    elements = environment.get("SLURM_ARRAY_TASK_COUNT", "")
    if environment.get("SLURM_ARRAY_TASK_ID") and elements != "1":
        return f"each of the {elements} elements of its array" if elements else _ANY_ELEMENT
    n_nodes = _node_count(environment, nodes_in(environment))
    if n_nodes > 1 and environment.get("SLURM_STEP_ID"):
        return f"the start on each of its {n_nodes} nodes"
    return ""


def _node_count(environment: Mapping[str, str], nodes: list[str]) -> int:
    count = environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES") or ""
    return int(count) if count.isascii() and count.isdigit() else len(nodes)


def _is_on_a_node(environment: Mapping[str, str], nodes: list[str], host: str) -> bool:
    """Whether a host is a node of the job.

    Slurm may know it by another name than it knows itself. Then slurmd, which starts scripts and
    steps but not the shell of salloc, tells which node this is.
    """
    names = {_short(host), _short(environment.get("SLURMD_NODENAME", ""))}
    return not names.isdisjoint(map(_short, nodes))


def _short(name: str) -> str:
    """A host's name without its domain, which some sites leave out in one place and not in others.

    Host names are the same in any case.
    """
    return name.partition(".")[0].lower()


def _named(nodes: list[str], n_nodes: int) -> str:
    """Nodes in words: "node n1", "2 nodes n1, n2", "6 nodes n1, n2, n3, n4, …"."""
    shown = ", ".join(nodes[:_SHOWN_NODES])
    if n_nodes == 1:
        return f"node {shown}"
    more = ", …" if n_nodes > _SHOWN_NODES else ""
    return f"{n_nodes} nodes {shown}{more}"
