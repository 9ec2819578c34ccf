"""`gpuspool verify`: everything in a spool that is not as the format says, named with file and
offset.

A problem is damage or a contradiction; a note is what a crash leaves and the protocol has dealt
with.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gpuspool.orchestrator.report.results import Results
from gpuspool.spool.layout import STATES, SUBDIRS
from gpuspool.spool.publish import listdir, read_bytes, read_record, read_sealed
from gpuspool.spool.records import Closing, Run
from gpuspool.spool.sweep import stranded_tasks
from gpuspool.spool.view import View


@dataclass
class Findings:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(view: View) -> Findings:
    """Read everything once. Writes nothing."""
    found = Findings()
    found.problems += [
        f"{name}: this planned manifest is missing" for name in view.missing_manifests()
    ]
    found.problems += [
        f"{path}: this folder is missing"
        for path in map(view.layout.subdir, SUBDIRS)
        if not path.is_dir()
    ]
    _check_job(view, found)
    _check_tasks(view, found)
    _check_claims(view, found)
    _check_status(view, found)
    _check_outputs(view, found)
    for damage in view.damage:
        torn = damage.reason.startswith("torn line")
        (found.notes if torn else found.problems).append(str(damage))
    if view.ledger.duplicates:
        found.notes.append(f"{view.ledger.duplicates} tasks ran twice and are counted once")
    return found


def _check_job(view: View, found: Findings) -> None:
    """Every copy of the job that an attempt was told to run, and the second copy of run.json."""
    jobs = [view.run.job, *(intent.job for intent in view.intents.values() if intent is not None)]
    hashes = {job.copy: job.sha256 for job in jobs if job.copy}
    for copy, sha in hashes.items():
        path = view.layout.job_copy(copy)
        if hashlib.sha256(read_bytes(path) or b"").hexdigest() != sha:
            found.problems.append(
                f"{path}: not the job that the run began with; resume restores it if it can"
            )
    if read_sealed(view.layout.run_copy, Run) is None:
        found.problems.append(f"{view.layout.run_copy}: not a run record; resume restores it")


def _check_tasks(view: View, found: Findings) -> None:
    described = bytearray(view.run.tasks)
    for manifest in view.manifests.values():
        for task in manifest.tasks():
            if 0 <= task.task < view.run.tasks:
                described[task.task] = 1
            else:
                found.problems.append(
                    f"{manifest.path}: task {task.task} is none of this run's {view.run.tasks}"
                )
    absent = described.count(0)
    if absent:
        found.problems.append(
            f"{absent} tasks stand in no readable manifest line, the first is {described.find(0)}"
        )
    lost = stranded_tasks(view)
    if lost:
        found.notes.append(f"{len(lost)} tasks are claimed by nobody who lives; resume sweeps them")


def _check_claims(view: View, found: Findings) -> None:
    for name, chain in view.chains.items():
        for claim in chain.claims:
            if claim.attempt not in view.journals:
                path = view.layout.claim(name, claim.start)
                found.problems.append(
                    f"{path}: no attempt {claim.attempt!r} began; resume sweeps its tasks"
                )
        listed = {start for start in listdir(view.layout.claims(name)) if start.isdigit()}
        chain.advance()  # to what a live run has claimed since
        chained = {view.layout.claim(name, claim.start).name for claim in chain.claims}
        found.problems += [
            f"{view.layout.claims(name)}/{start}: outside the chain"
            for start in sorted(listed - chained)
        ]


def _check_status(view: View, found: Findings) -> None:
    for state in STATES:
        for filename in listdir(view.layout.subdir(state)):
            closing = view.closed.get(filename.removesuffix(".json"))
            path = view.layout.subdir(state) / filename
            if read_record(path, Closing) is None:
                found.problems.append(
                    f"{path}: not a status record; its orphans manifest says what it should"
                )
            elif (
                closing is None and not view.layout.orphans(path.stem).exists()
            ):  # else closed just now
                found.problems.append(f"{path}: no orphans manifest closes this attempt")
            elif closing is not None and closing.state != state and closing.by != "unreadable":
                found.problems.append(f"{path}: its orphans manifest says {closing.state}")


def _check_outputs(view: View, found: Findings) -> None:
    out = Path(view.run.out or view.layout.outputs)
    owner: dict[str, int] = {}
    for result in Results(view):
        for name in result.outputs:
            if owner.setdefault(name, result.index) != result.index:
                found.problems.append(
                    f"tasks {owner[name]} and {result.index} ({result.key}) have one output {name}; the first stayed"
                )
        missing = [name for name in result.outputs if not (out / name).exists()]
        if missing:
            found.problems.append(
                f"task {result.index} ({result.key}): its output {out / missing[0]} is missing"
            )
    for name, index in owner.items():
        for parent in map(str, PurePosixPath(name).parents):
            if parent in owner and owner[parent] != index:
                found.problems.append(
                    f"task {index}: its output {name} lies in {parent}, an output of task {owner[parent]}"
                )
