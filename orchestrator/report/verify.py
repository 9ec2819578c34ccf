"""`gpuspool verify`: whatever in a spool is not as the format says, named with file and offset.

A problem is damage or a contradiction. A note is what a crash leaves behind and the protocol has
dealt with, or will.

Guarantees: every file of the protocol is read, and nothing is written. A live run is no problem:
what it adds while we look is either seen whole or not at all.

Called by the command line and the Python API. It needs a view that reads claims.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gpuspool.orchestrator.report.keys import TaskKey
from gpuspool.orchestrator.report.results import Published, Results
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.claims import NOBODY
from gpuspool.spool.code import damaged_records
from gpuspool.spool.layout import (
    DISPENSABLE,
    OLDER_FORMATS,
    OUT_MARK,
    SINCE_FORMAT_2,
    STATES,
    SUBDIRS,
    parse_hidden_output,
    refuse_output,
)
from gpuspool.spool.ledger import Ledger
from gpuspool.spool.open_folder import out_of, out_trouble
from gpuspool.spool.publish import listdir, read_bytes, read_record, read_sealed
from gpuspool.spool.records import Closing, Run
from gpuspool.spool.sweep import stranded_tasks
from gpuspool.spool.view import UNREADABLE, View


@dataclass
class Findings:
    """What `verify` found, a line of text for each."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # How many tasks there are in "total", and how many are "complete" and "failed".
    counts: dict[str, int] = field(default_factory=dict)


def verify(view: View) -> Findings:
    """Compare all that stands in a spool with the format. Refreshes the view; raises OSError.

    Names are listed before the view is refreshed and compared with it afterwards. In the other
    order a claim that a live run makes in between would be in the listing and not in the view.
    """
    claims = {name: _listed_claims(view, name) for name in view.manifests}
    view.refresh()
    found = Findings()
    _check_names(view, found)
    _check_job(view, found)
    _check_code(view, found)
    _check_run_copy(view, found)
    _check_tasks(view, found)
    _check_stranded(view, found)
    _check_claims(view, claims, found)
    _check_status_records(view, found)
    _check_outputs(view, found)
    _check_hidden_outputs(view, found)
    # Last, since what came before reads files too and tells the view of their damage.
    _add_damage(view, found)
    _count_tasks(view.ledger, found)
    return found


def _listed_claims(view: View, manifest: str) -> set[str]:
    """The names of a manifest's claims, whether or not its chain leads to them."""
    names = listdir(view.layout.claims(manifest))
    return {name for name in names if name.isdigit()}


def _count_tasks(ledger: Ledger, found: Findings) -> None:
    """What the journals tell of the tasks, in numbers."""
    if ledger.duplicates:
        tasks = count_of(ledger.duplicates, "task ran twice and is", "tasks ran twice and are")
        found.notes.append(f"{tasks} counted once")
    found.counts["total"] = ledger.tasks
    found.counts["complete"] = ledger.n_complete
    found.counts["failed"] = ledger.n_failed


def _check_names(view: View, found: Findings) -> None:
    """The planned manifests and the folders of a spool."""
    for name in view.missing_manifests():
        found.problems.append(f"{name}: this planned manifest is missing")
    is_older = read_bytes(view.layout.format) in [text.encode() for text in OLDER_FORMATS]
    for name in SUBDIRS:
        if name in DISPENSABLE or (is_older and name in SINCE_FORMAT_2):
            continue
        path = view.layout.subdir(name)
        if not path.is_dir():
            found.problems.append(f"{path}: this folder is missing")


def _check_job(view: View, found: Findings) -> None:
    """Every copy of the job that an attempt was told to run."""
    intents = [intent for intent in view.intents.values() if intent is not None]
    jobs = [view.run.job, *(intent.job for intent in intents)]
    # By the name of the copy, since most attempts were told to run the same one.
    hashes = {job.copy: job.sha256 for job in jobs if job.copy}
    for copy, sha256 in hashes.items():
        path = view.layout.job_copy(copy)
        data = read_bytes(path) or b""
        found_sha256 = hashlib.sha256(data).hexdigest()
        if found_sha256 != sha256:
            found.problems.append(
                f"{path}: not the job that the run began with; resume restores it if it can"
            )


def _check_code(view: View, found: Findings) -> None:
    """Every record of what else the code of the run consists of."""
    for path in damaged_records(view.layout):
        found.problems.append(
            f"{path}: not what its name says, so nobody knows which files its attempts ran; a "
            "start moves it to corrupt/, and makes it again where the files are the same"
        )


def _check_run_copy(view: View, found: Findings) -> None:
    """The second copy of run.json. The first was read to make the view."""
    path = view.layout.run_copy
    if read_sealed(path, Run) is None:
        found.problems.append(f"{path}: not a run record; resume restores it")


def _check_tasks(view: View, found: Findings) -> None:
    """That the manifests describe each task of the run and no other."""
    n_tasks = view.ledger.tasks
    described = bytearray(n_tasks)
    for manifest in view.manifests.values():
        for line in manifest.records(TaskKey):
            if 0 <= line.task < n_tasks:
                described[line.task] = 1
            else:
                found.problems.append(
                    f"{manifest.path}: task {line.task} is none of this run's {n_tasks}"
                )
    n_absent = described.count(0)
    if n_absent:
        first = described.find(0)
        tasks = count_of(n_absent, "task stands", "tasks stand")
        found.problems.append(f"{tasks} in no readable manifest line, the first is {first}")


def _check_stranded(view: View, found: Findings) -> None:
    """That no task is stranded. A crash leaves such tasks, so they are only noted."""
    n_stranded = len(stranded_tasks(view))
    if n_stranded:
        tasks = count_of(n_stranded, "task is", "tasks are")
        them = "it" if n_stranded == 1 else "them"
        found.notes.append(f"{tasks} claimed by nobody who lives; resume sweeps {them}")


def _check_claims(view: View, listed: dict[str, set[str]], found: Findings) -> None:
    """That each claim belongs to an attempt that began, and that each name is part of a chain.

    Claims are not synced. Where a power cut took one, those behind it lie outside the chain, and
    stay there when it grows anew: they hold nothing.
    """
    for name, chain in view.chains.items():
        chained = set()
        for claim in chain.claims:
            path = view.layout.claim(name, claim.start)
            chained.add(path.name)
            # One that cannot be read belongs to NOBODY, and is told as damage.
            if claim.attempt != NOBODY and claim.attempt not in view.journals:
                found.problems.append(
                    f"{path}: no attempt {claim.attempt!r} began; resume sweeps its tasks"
                )
        folder = view.layout.claims(name)
        outside = listed.get(name, set()) - chained
        for start in sorted(outside):
            found.notes.append(f"{folder}/{start}: outside the chain, so it holds nothing")


def _check_status_records(view: View, found: Findings) -> None:
    """That each status record says what the closing says of which it is a copy."""
    for state in STATES:
        folder = view.layout.subdir(state)
        for filename in listdir(folder):
            path = folder / filename
            problem = _status_problem(view, state, path)
            if problem:
                found.problems.append(f"{path}: {problem}")


def _status_problem(view: View, state: str, path: Path) -> str:
    """What is wrong with one status record in the folder of a state; "" if nothing is."""
    if read_record(path, Closing) is None:
        return "not a status record; its orphans manifest says what it should"
    attempt = path.name.removesuffix(".json")
    closing = view.closed.get(attempt)
    if closing is None:
        # An attempt that was closed since the view was refreshed has a manifest by now.
        if view.layout.orphans(path.stem).exists():
            return ""
        return "no orphans manifest closes this attempt"
    # A closing that cannot be read any more was given a state, which says nothing of its copy.
    if closing.by == UNREADABLE or closing.state == state:
        return ""
    return f"its orphans manifest says {closing.state}"


def _check_outputs(view: View, found: Findings) -> None:
    """That each output is there as it was published, belongs to one task, and that none lies inside
    of another.
    """
    folder = out_of(view.layout, view.run)
    owner: dict[str, int] = {}
    trouble = out_trouble(view.layout, view.run)
    if trouble:
        found.problems.append(trouble)
    for published in Results(view).outputs():
        _check_outputs_of(published, folder, owner, found)
    _check_nesting(owner, found)


def _check_outputs_of(
    published: Published, folder: Path, owner: dict[str, int], found: Findings
) -> None:
    """Check the outputs of one task, and note that they are its own if nobody had them first."""
    task = f"{published.index} ({published.key})"
    for name, size in published.outputs:
        reason = refuse_output(name)
        if reason is not None:
            found.problems.append(f"task {task}: the name of its output {name!r:.120} {reason}")
            continue
        first = owner.setdefault(name, published.index)
        if first != published.index:
            # Its size is that of whichever task was first.
            found.problems.append(
                f"tasks {first} and {task} have one output {name}; the first stayed"
            )
        path = folder / name
        try:
            problem = output_problem(path, size)
        except OSError as error:
            problem = f"cannot be looked at: {error.strerror}"
        if problem:
            found.problems.append(f"task {task}: its output {path} {problem}")


def output_problem(path: Path, size: int) -> str:
    """What is wrong with an output that was published with so many bytes; "" if nothing is.

    Raises OSError where that cannot be found out.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            found = _bytes_below(path)
        elif stat.S_ISREG(mode):
            found = path.lstat().st_size
        else:
            return "is no file or folder any more"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    if found != size:
        return f"has {found} bytes, and had {size} when it was published"
    return ""


def _bytes_below(folder: Path) -> int:
    """The bytes of all files in a folder, as the worker counted them. Raises OSError."""
    size = 0
    for parent, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            size += Path(parent, name).lstat().st_size
    return size


def _raise(error: OSError) -> None:
    raise error


def _check_hidden_outputs(view: View, found: Findings) -> None:
    """Note what attempts that are closed have written to OUT and never published.

    A crash leaves such files, until the end of the run. So does a job that goes on writing after
    its call has returned.
    """
    folder = out_of(view.layout, view.run)
    writers = {view.writer(attempt) for attempt in view.closed}
    hidden: list[str] = []
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if parse_hidden_output(name) in writers:
                hidden.append(os.path.join(parent, name))
        folders[:] = [name for name in folders if not name.startswith(OUT_MARK)]
    if hidden:
        found.notes.append(
            f"{count_of(len(hidden), 'hidden file or folder', 'hidden files or folders')} in "
            f"{folder} written and never published, the first is {min(hidden)}"
        )


def _check_nesting(owner: dict[str, int], found: Findings) -> None:
    """That no output lies inside of one that another task made as a folder."""
    for name, index in owner.items():
        for parent in PurePosixPath(name).parents:
            other = owner.get(str(parent), index)
            if other != index:
                found.problems.append(
                    f"task {index}: its output {name} lies in {parent}, an output of task {other}"
                )


def _add_damage(view: View, found: Findings) -> None:
    """Damage is a problem, except for what a crash or a power cut leaves of data not synced."""
    for damage in view.damage:
        if damage.is_torn:
            found.notes.append(str(damage))
        else:
            found.problems.append(str(damage))
