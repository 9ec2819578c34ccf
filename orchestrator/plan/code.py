"""What code a run consists of at a start: the files of it that are known, as they are now.

Three kinds are known. The modules that workers imported stand in the records that they published
(`spool/code.py`). The files that the words of a command name, and those that the values of `--arg`
name, are found here. If one of them is not what the newest start ran, the run would hold results of
two codes, so whoever starts it is asked first (plan/differences.py).

A file that changed while workers were at work is another matter: a database that the command itself
writes to changes in every run, and a run that is requeued must not stop for that. It is told at the
end of that start, and not asked about at the next. Modules are always asked about, since all
workers of a start import them as they were at its beginning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gpuspool.spool.code import (
    READ_BYTES,
    is_known_from_outside,
    is_same,
    look_at,
    look_from_outside,
    make_code,
    name_of,
    read_code,
)
from gpuspool.spool.file_system import heartbeat_s
from gpuspool.spool.records import Code, CodeFile, Job
from gpuspool.spool.states import BY_PARENT, JobKind
from gpuspool.spool.view import View

# Of a folder that `--arg` names, so many files are looked at: more than the parts of any model.
MOST_FILES = 1000

# An attempt that nobody saw die may have lived on for so many heartbeats after its last one, since
# a busy machine is late.
UNSEEN_BEATS = 2


class Change(msgspec.Struct, frozen=True):
    """One file that is not what it was. now: None where it is gone.

    was_seen_by_run: it changed while workers were at work, and none of them had imported it.
    """

    path: str
    before: CodeFile
    now: CodeFile | None
    was_seen_by_run: bool


class _Ran(msgspec.Struct, frozen=True):
    """What the newest start ran. last_alive_at: when its workers were heard last, Unix seconds."""

    files: dict[str, CodeFile]
    last_alive_at: float


def changes(view: View, job: Job) -> list[Change]:
    """How the files that the newest start ran differ from what is there now. Raises OSError."""
    return list(_changes(view, job, _newest_code(view)))


def changed_since(view: View, job: Job, code: Code) -> list[Change]:
    """Which files of a record have changed since, but for modules."""
    files = {file.name: file for file in code.files if not file.module}
    return list(_changes(view, job, _Ran(files, 0.0)))


def code_now(view: View, job: Job) -> Code:
    """The record of the code as this start will run it: what is known of it, as it is now.

    Raises OSError.
    """
    folder = _folder_of(view, job)
    found: dict[str, CodeFile] = {}
    for file in _newest_code(view).files.values():
        now = _look_again(os.path.join(folder, file.name), file)
        if now is None and is_known_from_outside(file):
            # It may be back at the next start, and must be the same then.
            now = file
        if now is not None:
            found[file.name] = now
    working_folder = _working_folder(view)
    for paths, look in (
        (_in_command(job.command, working_folder), look_at),
        (_in_args(view.run.args, working_folder), look_from_outside),
    ):
        for path in map(os.path.normpath, paths):
            name = name_of(path, folder)
            now = look(path, name)
            if now is not None:
                found.setdefault(name, now)
    return make_code(job.sha256, found.values())


def _changes(view: View, job: Job, ran: _Ran) -> Iterator[Change]:
    folder = _folder_of(view, job)
    for name, before in sorted(ran.files.items()):
        path = os.path.join(folder, name)
        now = _look_again(path, before)
        if now is None and is_known_from_outside(before):
            # Weights on a disk that is away, or that were never read: no result can come from other
            # ones, and a job that needs them says so itself.
            continue
        if not is_same(before, now):
            was_seen = not before.module and now is not None and _mtime(path) <= ran.last_alive_at
            yield Change(path, before, now, was_seen)


def _look_again(path: str, before: CodeFile) -> CodeFile | None:
    """A file as it is now, looked at as it was before."""
    if is_known_from_outside(before):
        return look_from_outside(path, before.name)
    return look_at(path, before.name, before.module)


def _mtime(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return float("inf")


def _newest_code(view: View) -> _Ran:
    """The files that the newest start ran, as it ran them, by name."""
    intents = [intent for intent in view.intents.values() if intent is not None]
    newest = max((intent.epoch for intent in intents), default=0)
    intents = [intent for intent in intents if intent.epoch == newest]
    # Where two attempts knew a file with different content, the first one counts: the other comes
    # from a change that nobody was asked about.
    intents.sort(key=lambda intent: intent.at)
    names: dict[str, None] = {}
    last_alive_at = 0.0
    options = view.run.options
    unseen_s = UNSEEN_BEATS * heartbeat_s(view.layout.root, options.lease_s, options.poll_s)
    for intent in intents:
        names[intent.job.code] = None
        beat = view.heartbeat(intent.attempt)
        alive_at = intent.at
        if beat is not None:
            names[beat.code] = None
            alive_at = beat.at
        closing = view.closed.get(intent.attempt)
        if closing is not None and closing.by in (intent.attempt, BY_PARENT):
            # Closed by itself, or by the one that saw it die.
            alive_at = closing.at
        else:
            alive_at += unseen_s
        last_alive_at = max(last_alive_at, alive_at)
    files: dict[str, CodeFile] = {}
    for name in names:
        record = read_code(view.layout, name)
        if record is not None:
            for file in record.files:
                files.setdefault(file.name, file)
    return _Ran(files, last_alive_at)


def _folder_of(view: View, job: Job) -> str:
    """The folder that names in records are relative to: the job file's, or the command's own."""
    if job.kind is JobKind.COMMAND:
        return _working_folder(view)
    return os.path.dirname(job.file)


def _working_folder(view: View) -> str:
    """Where workers run; the folder of this process where that is gone."""
    if os.path.isdir(view.run.submit_dir):
        return view.run.submit_dir
    return os.getcwd()


def _in_command(command: list[str], folder: str) -> Iterator[str]:
    """Files that words of a command name, also behind `=` as in --model=w.pt, or after -m."""
    previous = ""
    for number, word in enumerate(command):
        candidates = [word, word.partition("=")[2]]
        if number == 0 and "/" not in word:
            # It is looked up in PATH, and a file of that name here is another one.
            candidates = []
        if previous == "-m":
            module = word.replace(".", "/")
            candidates = [f"{module}.py", f"{module}/__main__.py"]
        for candidate in candidates:
            path = os.path.join(folder, candidate)
            if candidate and os.path.isfile(path):
                yield path
        previous = word


def _in_args(value: Any, folder: str) -> Iterator[str]:
    """Files that any text in the args names; of a folder its large files, which are weights.

    Small files in a folder are passed over: the job may keep its own there.
    """
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _in_args(one, folder)
    elif isinstance(value, list):
        for one in value:
            yield from _in_args(one, folder)
    elif isinstance(value, str) and value and "\0" not in value:
        path = os.path.join(folder, value)
        if os.path.isdir(path):
            yield from _large_files(path)
        elif os.path.isfile(path):
            yield path


def _large_files(folder: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))[:MOST_FILES]
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        if _is_large(path):
            yield path


def _is_large(path: str) -> bool:
    """Whether this is a large file; not one that the job removes just now."""
    try:
        return os.path.isfile(path) and os.path.getsize(path) > READ_BYTES
    except OSError:
        return False
