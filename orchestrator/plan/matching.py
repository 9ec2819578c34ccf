"""Which of the tasks that a request names a run has already.

A task is the same task by its key and its payload, and not by its place in a list or by an absolute
path. So the same inputs in another order, through a link or another mount point, or after the whole
project was moved, are the same run; and inputs that came later are new tasks of it.

- A task that was given a key (a file by its path below a root, a line of --tasks that names one, a
  row or an object whose --key-field holds one) is known by that. If its payload differs it has
  changed; so has a file of another size.
- Where the key only counts (`t0`, `t1`, …), the payload says which task it is. Of several with one
  payload each stands for one. A key that the user gave may look like that: then it says which task
  is meant wherever it is not the task's place in the list, and wherever the payload is the same.

Called when a run is opened and when tasks are added to it.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gpuspool.orchestrator.plan.inputs import ChooseRoot, TaskList, common_parent
from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import TaskLine
from gpuspool.spool.view import View


class Matching(msgspec.Struct, frozen=True):
    """What a request has and a run has not, and the other way round.

    new: the request's tasks that the run does not have, by their indices there. gone: the run's
    that the request does not name. changed: the run's that the request names with another payload,
    or that are files of another size now.
    """

    new: list[int]
    gone: list[int]
    changed: list[int]


def match(view: View, tasks: TaskList) -> Matching:
    """Compare the tasks of a request with those of a run, each once."""
    has_files = bool(tasks.root and view.run.root)
    known = _Known(view, has_files=has_files, is_named=tasks.is_named)
    new: list[int] = []
    changed: list[int] = []
    for task in tasks:
        index, is_changed = known.take(task)
        if index is None:
            new.append(task.task)
        elif is_changed:
            changed.append(index)
    return Matching(new, known.left(), changed)


class _Known:
    """The tasks of a run that no task of the request was found to be so far."""

    def __init__(self, view: View, has_files: bool, is_named: bool) -> None:
        """has_files: files of the run were asked for, whose payload is where they lie now.

        is_named: its keys say which task it is, even where one looks as if it counted.
        """
        self._has_files = has_files
        self._is_named = is_named
        # key -> (index, payload in one form, cost), of tasks that are known by their keys
        self._by_key: dict[str, tuple[int, bytes, float]] = {}
        # index -> payload in one form, of those whose key only counts, and may be meant by it too
        self._counted: dict[int, bytes] = {}
        # payload in one form -> the indices of those, in order; some may be taken by now
        self._by_payload: dict[bytes, deque[int]] = {}
        # A file that was mended before a retry has the size that it had then.
        self._retried = {task.task: task.cost for task in view.retried_tasks()}
        for task in view.planned_tasks():
            if self._is_counted(task):
                payload = _plain(task.payload)
                self._counted[task.task] = payload
                self._by_payload.setdefault(payload, deque()).append(task.task)
            else:
                payload = b"" if has_files else _plain(task.payload)
                self._by_key[task.key] = task.task, payload, task.cost

    def take(self, task: TaskLine) -> tuple[int | None, bool]:
        """(index in the run, whether it has changed) of a task of the request; None: it is new."""
        if self._has_files:
            found = self._by_key.pop(task.key, None)
            if found is None:
                return None, False
            of_run, _, cost = found
            return of_run, self._retried.get(of_run, cost) != task.cost
        payload = _plain(task.payload)
        index, has_same_payload = self._called(task.key, payload)
        if index is not None and (has_same_payload or not self._is_counted(task)):
            self._by_key.pop(task.key, None)
            self._counted.pop(index, None)
            return index, not has_same_payload
        if self._is_counted(task):
            return self._with_payload(payload), False
        return None, False

    def _called(self, key: str, payload: bytes) -> tuple[int | None, bool]:
        """(index, whether it has this payload) of the task with this key; None: there is none."""
        found = self._by_key.get(key)
        if found is not None:
            return found[0], found[1] == payload
        number = key[1:]
        is_number = number.isdecimal() and number.isascii() and len(number) <= 9
        index = int(number) if is_number else -1
        if key == f"t{index}" and index in self._counted:
            return index, self._counted[index] == payload
        return None, False

    def _with_payload(self, payload: bytes) -> int | None:
        """The index of the first task that is known by this payload; it is taken."""
        indices = self._by_payload.get(payload, ())
        while indices:
            index = indices.popleft()
            if self._counted.pop(index, None) is not None:
                return index
        return None

    def left(self) -> list[int]:
        """The indices of those that are left, in order."""
        return sorted([*(index for index, _, _ in self._by_key.values()), *self._counted])

    def _is_counted(self, task: TaskLine) -> bool:
        """Whether a task's key only says its place in the list."""
        return not self._is_named and task.key == f"t{task.task}"


def _plain(payload: msgspec.Raw) -> bytes:
    """A payload in one form, however it was written."""
    return msgspec.json.encode(msgspec.json.decode(payload), order="sorted")


def root_chooser(
    view: View | None, key_root: str | os.PathLike[str] | None, *, adds: bool = False
) -> ChooseRoot:
    """What the keys of input files shall be relative to.

    key_root: what the user said. Else what the run remembers (`view`), as long as all files lie
    below it; else, if it was moved as a whole, where it is now; else the lowest folder that holds
    all of the files. adds: the files may become tasks of the run; then UsageError is raised where
    that folder is not the run's.
    """
    root_of_run = "" if view is None else view.run.root

    def choose(paths: list[str]) -> str:
        if key_root is not None:
            root = _holding_all(os.path.abspath(at_home(key_root)), paths)
        elif view is None or not root_of_run:
            return common_parent(paths)
        elif all(_is_below(path, root_of_run) for path in paths):
            return root_of_run
        else:
            # Which keys there are, and where the last start had the spool, the run record does not
            # tell. Files elsewhere are rare, and for all others nothing of this is read.
            view.refresh()
            found = _where_it_is_now(view, paths)
            if adds and found is None:
                raise _elsewhere(root_of_run, paths)
            if found is not None and not adds:
                _refuse_other_files(view, found, paths)
            root = found or common_parent(paths)
        if adds and root_of_run and not _may_be_root_now(root_of_run, root):
            raise _elsewhere(root_of_run, paths)
        return root

    return choose


# The payload of a file that is added names it below the root that the run has, and a start that
# takes another folder for the root looks for all files of the run there. So a folder beside the
# root must not pass for it, even where both hold files of one name.
def _may_be_root_now(before: str, now: str) -> bool:
    """Whether a folder may be the root of a run: the same one by another path, or moved."""
    if not os.path.isdir(before):
        return True
    return os.path.isdir(now) and os.path.samefile(before, now)


# Runs over one folder a day have files of the same names each, often of the same size too. They
# must not pass for finished tasks.
def _refuse_other_files(view: View, now: str, paths: list[str]) -> None:
    """Raise UsageError where what lies below `now` is not what the run has, whose files are there.

    A project that was copied along with its spool has its own files beside that.
    """
    before = view.run.root
    if now == beside_spool(view):
        return
    for path in paths:
        of_run = os.path.join(before, os.path.relpath(path, now))
        if Path(of_run).exists() and not os.path.samefile(of_run, path):
            another = shlex.quote(f"{view.layout.root.name}-{os.path.basename(now)}")
            raise UsageError(
                f"{view.layout.root} is the run of the files in {before}, and {path} is another "
                f"file than {of_run}. Name another spool for this one, e.g. --spool {another}. If "
                "they are copies of the run's files, which it shall read from now on, say "
                f"--key-root {shlex.quote(now)}. Nothing was run."
            )


def beside_spool(view: View) -> str:
    """The folder that lies to the spool as that of the input files did at the last start.

    That is where they are if the whole project was moved or copied. "" where no start tells.
    """
    intents = [intent for intent in view.intents.values() if intent is not None]
    if not view.run.root or not intents:
        return ""
    last = max(intents, key=lambda intent: intent.epoch)
    spool = last.argv[last.argv.index("--spool") + 1]
    below = os.path.relpath(view.run.root, spool)
    return os.path.normpath(view.layout.root.absolute() / below)


def _elsewhere(root: str, paths: list[str]) -> UsageError:
    """What is said where files cannot be added to a run whose keys are relative to this root."""
    outside = next((path for path in paths if not _is_below(path, root)), None)
    if outside is None:
        return UsageError(
            f"the keys of this run's files are relative to {root}. Leave --key-root out, or make "
            "another run with another --spool. Nothing was added."
        )
    hint = ""
    if not os.path.isdir(root):
        hint = " If that folder was moved, say with --key-root where it is now."
    above = common_parent([os.path.join(root, "x"), *paths])
    return UsageError(
        f"the input {outside} does not lie below {root}, which the keys of this run's files are "
        f"relative to. Make another run for it, with another --spool.{hint} A run that takes files "
        f"of all these folders is made with --key-root {shlex.quote(above)}. Nothing was added."
    )


def _where_it_is_now(view: View, paths: list[str]) -> str | None:
    """The folder below which these files have keys that the run knows; None where there is none."""
    keys = {task.key for task in view.planned_tasks()}
    for path in paths:
        # The longest key first: of two folders that may be meant, the upper one holds more.
        for root in map(str, reversed(Path(path).parents)):
            if os.path.relpath(path, root) in keys:
                return root if all(_is_below(each, root) for each in paths) else None
    return None


def _holding_all(root: str, paths: Iterable[str]) -> str:
    """The folder, if all these files lie below it. Raises UsageError."""
    for path in paths:
        if not _is_below(path, root):
            raise UsageError(
                f"--key-root {root}: the input {path} does not lie below it. Name a folder that "
                "holds all inputs."
            )
    return root


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")
