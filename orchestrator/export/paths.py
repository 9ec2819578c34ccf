"""Where the input file of each task is.

The payload of a task tells it, in a line of a manifest. Most paths are the root of the run and the
task's key, so they are not kept: of each task one byte says whether its path is that, and only the
others stand in a dict.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gpuspool.spool.layout import is_added, is_planned
from gpuspool.spool.manifest import Manifest
from gpuspool.spool.records import Record
from gpuspool.spool.view import View

# What stands in every payload that names a file. Where a manifest does not hold these bytes, its
# payloads are not looked at.
_MARK = b'"path"'


class _Input(Record, frozen=True, kw_only=True):
    """What a manifest line says of a task and its input."""

    task: int
    key: str
    payload: msgspec.Raw = msgspec.Raw(b"null")


class _File(msgspec.Struct, gc=False):
    """A payload that may name a file."""

    path: Any = None


_decode = msgspec.json.Decoder(_File).decode


class Paths:
    """The paths of the inputs of a view's tasks."""

    def __init__(self, view: View) -> None:
        """Reads the payloads where any of them may name a file."""
        n_tasks = view.ledger.tasks
        self._was = view.run.fingerprint.root
        self._now = view.run.root or self._was
        self._below = f"{self._was.rstrip('/')}/"
        # Whether the path of a task is the root and its key.
        self._is_usual = bytearray(n_tasks)
        self._others: dict[int, str] = {}
        for name in sorted(view.manifests):
            # Other manifests give out again what these gave out first, with the same payloads.
            if (is_planned(name) or is_added(name)) and view.manifests[name].holds(_MARK):
                self._take(view.manifests[name], n_tasks)
        self._has_any = bool(self._others) or any(self._is_usual)

    def _take(self, manifest: Manifest, n_tasks: int) -> None:
        for line in manifest.records(_Input):
            path = _path_in(line.payload)
            if path is None or not 0 <= line.task < n_tasks:
                continue
            if self._was and path == self._below + line.key:
                self._is_usual[line.task] = 1
            else:
                self._others[line.task] = path

    def of(self, tasks: Sequence[int], keys: Sequence[str | None]) -> list[str | None]:
        """The paths of some tasks, which have these keys; None for those without a file."""
        if not self._has_any:
            return [None] * len(tasks)
        return list(self._each(tasks, keys))

    def _each(self, tasks: Sequence[int], keys: Sequence[str | None]) -> Iterator[str | None]:
        root = f"{self._now.rstrip('/')}/"
        for task, key in zip(tasks, keys, strict=True):
            if self._is_usual[task] and key is not None:
                yield root + key
            else:
                yield self._moved(self._others.get(task))

    def _moved(self, path: str | None) -> str | None:
        """A path as the job finds it: below the root as that is now."""
        is_below = path is not None and self._was != self._now and path.startswith(self._below)
        if not is_below or path is None:
            return path
        return os.path.join(self._now, os.path.relpath(path, self._was))


def _path_in(payload: msgspec.Raw) -> str | None:
    """The path that a payload names; None where it names none."""
    try:
        path = _decode(payload).path
    except msgspec.DecodeError:
        return None
    return path if isinstance(path, str) else None
