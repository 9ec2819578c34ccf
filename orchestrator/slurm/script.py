"""The batch script of an array of jobs, each of which joins one run: text, and nothing else.

    #!/bin/bash
    #SBATCH --job-name=gpuspool-<run id>        by which the jobs are found again
    #SBATCH --array=0-15%8                      elements are equal: none has tasks of its own
    #SBATCH --nodes=1                           an element is one process on one node
    #SBATCH --signal=B:USR2@120                 drain two minutes before the end
    …
    . '<spool>/slurm/setup.sh'                  the user's own lines, if there are any
    exec '<python>' -P -m gpuspool join '<spool>' --requeue 20

`B:` sends the signal to the script alone, and `exec` makes gpuspool the script: so it reaches
gpuspool. Without `B:` only job steps would get it, of which there is none. Without `exec` bash
would get it, and die of it while gpuspool runs on.

The script is all that is known of how the jobs were asked for. Slurm reads its options from it, a
person may submit it by hand, and `array_in` reads back how many elements there are.

Called when a run is submitted. The functions are pure.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from gpuspool.orchestrator.slurm.times import seconds_of, slurm_time
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout

# A job that may last longer than so many seconds is sent a signal before its end. In a shorter one
# too much of the time would be lost, and the time limit that `join` learns from squeue drains it.
SIGNAL_FROM_S = 600.0

# How many seconds before the end. Slurm may send it up to a minute early.
SIGNAL_AT_S = 120

# What --sbatch may not say, by all names, and why.
_OURS = {
    "how many there are, --elements says": ("--array", "-a"),
    "the name is how gpuspool finds its jobs": ("--job-name", "-J"),
    "an element is one process on one node": ("--nodes", "-N", "--ntasks", "-n", "--wrap"),
    "gpuspool waits for no job": ("--wait", "-W", "--test-only"),
    "SLURM_CLUSTERS says that for all commands": ("--clusters", "--cluster", "-M"),
}

# These need no quotes in a line of options.
_PLAIN = re.compile(r"[A-Za-z0-9_./%=:,@+-]+")

# By variables such as SBATCH_ACCOUNT a shell's profile gives sbatch options. sbatch lets them win
# over the lines of a script. These would change what gpuspool relies on, whatever the script says:
# which jobs there are and how they are found, where they print, whether they start again, and which
# GPUs they have. The last two are told to jobs by Slurm itself, and are no options.
_NOT_HANDED_ON = re.compile(
    "SBATCH_(ARRAY_INX|CLUSTERS|JOB_NAME|NODES|NTASKS|WAIT|TEST_ONLY|DEPENDENCY"
    "|EXPORT|EXPORT_FILE|GET_USER_ENV|OPEN_MODE|OUTPUT|ERROR|INPUT"
    "|NO_KILL|NO_REQUEUE|REQUEUE|SIGNAL"
    "|GRES|GPUS|GPUS_PER_.*|TRES_PER_TASK"
    "|MEM_BIND.*|CPU_BIND.*)"
)

# Some of these variables are named otherwise than their options. And some options exclude others,
# so that a variable must not say one where the script says another.
_CORES = ("--cpus-per-task", "-c", "--cpus-per-gpu")
_MEMORY = ("--mem", "--mem-per-cpu", "--mem-per-gpu")
_OPTIONS_OF = {
    "SBATCH_ACCOUNT": ("--account", "-A"),
    "SBATCH_CONSTRAINT": ("--constraint", "-C"),
    "SBATCH_CORE_SPEC": ("--core-spec", "-S", "--thread-spec"),
    "SBATCH_CPUS_PER_GPU": _CORES,
    "SBATCH_CPUS_PER_TASK": _CORES,
    "SBATCH_DISTRIBUTION": ("--distribution", "-m"),
    "SBATCH_EXCLUSIVE": ("--exclusive", "--oversubscribe", "-s"),
    "SBATCH_LICENSES": ("--licenses", "-L"),
    "SBATCH_MEM_PER_CPU": _MEMORY,
    "SBATCH_MEM_PER_GPU": _MEMORY,
    "SBATCH_MEM_PER_NODE": _MEMORY,
    "SBATCH_OVERCOMMIT": ("--overcommit", "-O"),
    "SBATCH_PARTITION": ("--partition", "-p"),
    "SBATCH_QOS": ("--qos", "-q"),
    "SBATCH_REQ_SWITCH": ("--switches",),
    "SBATCH_THREAD_SPEC": ("--core-spec", "-S", "--thread-spec"),
    "SBATCH_TIMELIMIT": ("--time", "-t"),
    "SBATCH_WAIT4SWITCH": ("--switches",),
}

_ARRAY = re.compile(rb"^#SBATCH --array=0-(\d{1,9})(?:%(\d{1,9}))?$", re.MULTILINE)

_JOIN = re.compile(rb"^exec .* -P -m gpuspool join (/.+|'/.+)$", re.MULTILINE)


class Wish(msgspec.Struct, frozen=True):
    """What each element of an array asks Slurm for.

    elements: how many there are. at_once: at most so many run at the same time. gres: as --gres of
    sbatch; "" for none. whole_nodes: all of a node, its memory too. cpus: cores for each; None
    leaves that to Slurm. time, partition, account, qos: as sbatch takes them, "" for its defaults.
    more: the words of further options. has_setup: the user's own lines come first. requeue: how
    often an element has itself started again. on_cpu: it leaves all GPUs alone that it sees.
    leave_when_idle_s: after how long without anything to do an element ends; None for never.
    trusted: the users whose spool is accepted.
    """

    elements: int
    at_once: int | None = None
    gres: str = ""
    whole_nodes: bool = False
    cpus: int | None = None
    time: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    more: tuple[str, ...] = ()
    has_setup: bool = False
    requeue: int = 0
    on_cpu: bool = False
    leave_when_idle_s: float | None = None
    trusted: tuple[str, ...] = ()


class Array(msgspec.Struct, frozen=True):
    """How many elements a script asks for, and how many of them may run at once."""

    elements: int
    at_once: int | None


def job_name(run_id: str) -> str:
    """The name that all jobs of a run have in Slurm."""
    return f"gpuspool-{run_id}"


def batch_script(wish: Wish, run_id: str, layout: Layout, python: str) -> bytes:
    """The script. python: the absolute path of the interpreter that has gpuspool.

    Raises UsageError where a path cannot be said in it, and for options that are not for --sbatch.
    """
    refuse_path(layout.root)
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH {option}" for option in _options(wish, run_id, layout)]
    if wish.has_setup:
        lines.append(f". {shlex.quote(str(layout.slurm_setup))}")
    spool = shlex.quote(str(layout.root))
    command = f"exec {shlex.quote(python)} -P -m gpuspool join {spool}"
    if wish.on_cpu:
        command += " --devices cpu"
    if wish.requeue:
        command += f" --requeue {wish.requeue}"
    if wish.leave_when_idle_s is not None:
        seconds = f"{wish.leave_when_idle_s:f}".rstrip("0").rstrip(".")
        command += f" --leave-when-idle {seconds}s"
    for name in wish.trusted:
        command += f" --trust-owner {shlex.quote(name)}"
    lines.append(command)
    return os.fsencode("\n".join(lines) + "\n")


def refuse_path(root: Path) -> None:
    """Raise UsageError for the path of a spool that no batch script can name."""
    for character, name in (("\n", "a newline"), ("\\", "a backslash")):
        if character in str(root):
            raise UsageError(
                f"the path of the spool holds {name}, which Slurm takes for something else: "
                f"{str(root)!r}. Choose another --spool."
            )


def _options(wish: Wish, run_id: str, layout: Layout) -> Iterator[str]:
    """The options of sbatch, one a line. Later ones win, so the user's own come last."""
    yield f"--job-name={job_name(run_id)}"
    yield f"--array={array_range(wish.elements, wish.at_once)}"
    yield "--nodes=1"
    yield "--ntasks=1"
    if wish.whole_nodes:
        yield "--exclusive"
        yield "--mem=0"
    named = {
        "gres": wish.gres,
        "cpus-per-task": "" if wish.cpus is None else str(wish.cpus),
        "time": slurm_time(wish.time),
        "partition": wish.partition,
        "account": wish.account,
        "qos": wish.qos,
    }
    for name, value in named.items():
        if value:
            yield quoted(f"--{name}={value}")
    # Slurm starts a job again, from its script, whose node failed.
    yield "--requeue"
    # What a restarted job prints is added to what it printed before.
    yield "--open-mode=append"
    limit_s = seconds_of(slurm_time(wish.time))
    if limit_s is not None and limit_s > SIGNAL_FROM_S:
        yield f"--signal=B:USR2@{SIGNAL_AT_S}"
    # In the name of this file a percent sign would begin a pattern.
    folder = str(layout.slurm).replace("%", "%%")
    yield quoted(f"--output={folder}/%A_%a.out")
    yield from further_options(wish.more)


def array_range(elements: int, at_once: int | None) -> str:
    """The value of --array for so many elements, of which so many may run at once."""
    limit = "" if at_once is None else f"%{at_once}"
    return f"0-{elements - 1}{limit}"


def array_in(script: bytes) -> Array | None:
    """The array that a script asks for; None where it was changed so that this cannot be told."""
    match = _ARRAY.search(script)
    if match is None:
        return None
    return Array(int(match[1]) + 1, int(match[2]) if match[2] else None)


def spool_in(script: bytes) -> str | None:
    """The spool that a script's elements join; None where it was changed so that this cannot be
    told.
    """
    match = _JOIN.search(script)
    if match is None:
        return None
    try:
        words = shlex.split(os.fsdecode(match[1]))
    except ValueError:
        return None
    return words[0]


def variables_for(script: bytes, environment: Mapping[str, str]) -> dict[str, str]:
    """Of the variables that give sbatch options those that may count beside a script.

    A site's profile, or a user's, may name the account, the partition and more in this way, and
    without them Slurm may refuse all jobs. What the script says itself it is to say alone.
    """
    said = _options_in(script)
    found: dict[str, str] = {}
    for name, value in environment.items():
        if not name.startswith("SBATCH_") or _NOT_HANDED_ON.fullmatch(name):
            continue
        usual = "--" + name.removeprefix("SBATCH_").lower().replace("_", "-")
        if said.isdisjoint(_OPTIONS_OF.get(name, (usual,))):
            found[name] = value
    return found


def _options_in(script: bytes) -> set[str]:
    """The options that the lines of a script name, without their values."""
    found: set[str] = set()
    for line in os.fsdecode(script).splitlines():
        if line.startswith("#SBATCH"):
            for word in line.split()[1:]:
                word = word.lstrip('"')
                if word.startswith("--"):
                    found.add(word.partition("=")[0].rstrip('"'))
                elif word.startswith("-"):
                    found.add(word[:2])
    return found


def further_options(words: Sequence[str]) -> list[str]:
    """The options of --sbatch, each with its value as one line. Raises UsageError."""
    lines: list[str] = []
    for word in words:
        if "\n" in word:
            raise UsageError("--sbatch: an option cannot hold a newline.")
        if word.startswith("-"):
            _refuse_ours(word)
            lines.append(quoted(word))
        elif lines:
            lines[-1] += f" {quoted(word)}"
        else:
            raise UsageError(f"--sbatch {word}: it must begin with an option of sbatch's.")
    return lines


def _refuse_ours(word: str) -> None:
    """Raise UsageError for an option that gpuspool sets itself, such as --array=3 or -N2."""
    for why, names in _OURS.items():
        for name in names:
            is_long = name.startswith("--")
            if word.partition("=")[0] == name or (not is_long and word.startswith(name)):
                raise UsageError(f"--sbatch {word} is not possible: {why}.")


def quoted(word: str) -> str:
    """A word as it must be written in a line of options of a batch script.

    sbatch reads these lines itself. Within double quotes it takes all but the quote, the backslash
    and, in old versions, `#` as they are, and a backslash in front of any character is dropped. A
    line in which "hetjob" stands anywhere is one that separates jobs, so there is one in there.
    """
    if _PLAIN.fullmatch(word) is None:
        word = re.sub(r'(["\\#])', r"\\\1", word)
    elif re.search("(het|pack)job", word, re.IGNORECASE) is None:
        return word
    return '"' + re.sub("(het|pack)(job)", r"\1\\\2", word, flags=re.IGNORECASE) + '"'
