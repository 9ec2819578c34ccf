"""Manifests: ordered lists of tasks, written once.

A line keeps its bytes until somebody asks for its task, so a manifest of a million tasks costs a split. Line
numbers are the coordinates of claims. An orphans manifest begins with its attempt's Closing, which has no number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from spool.layout import Layout, orphans_name, parse_orphans
from spool.publish import publish, read_bytes
from spool.records import Closing, Damaged, TaskLine, seal, unseal


@dataclasses.dataclass(frozen=True)
class Damage:
    """Bytes of the spool that could not be read as what they should be."""

    path: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, byte {self.offset}: {self.reason}"


Report = Callable[[Damage], None]


class Manifest:
    """One manifest in memory: `lines` are the sealed lines of its tasks, in order."""

    def __init__(self, name: str, path: str, data: bytes, report: Report) -> None:
        self.name = name
        self.path = path
        self._report = report
        self.lines = data.split(b"\n")
        if self.lines[-1] == b"":
            self.lines.pop()
        else:
            report(Damage(path, len(data), "the last line has no end"))
        self._base = 0
        self.closing: Closing | None = None
        if parse_orphans(name) is not None:
            self._take_head()

    def _take_head(self) -> None:
        head = self.lines.pop(0) if self.lines else b""
        self._base = len(head) + 1
        try:
            self.closing = unseal(head, Closing)
        except Damaged as error:
            self._report(Damage(self.path, 0, str(error)))

    def __len__(self) -> int:
        return len(self.lines)

    def task(self, place: int) -> TaskLine | None:
        """The task at a place, or None where its line is damaged (which is reported)."""
        try:
            return unseal(self.lines[place], TaskLine)
        except Damaged as error:
            offset = self._base + sum(len(line) + 1 for line in self.lines[:place])
            self._report(Damage(self.path, offset, str(error)))
            return None

    def tasks(self, start: int = 0, stop: int | None = None) -> Iterator[TaskLine]:
        """The readable tasks of the places start..stop."""
        for place in range(start, min(len(self.lines) if stop is None else stop, len(self.lines))):
            task = self.task(place)
            if task is not None:
                yield task


def load_manifest(layout: Layout, name: str, report: Report) -> Manifest | None:
    """None where there is no such manifest (any more)."""
    path = layout.manifest(name)
    data = read_bytes(path)
    return None if data is None else Manifest(name, str(path), data, report)


def publish_manifest(layout: Layout, name: str, tasks: Iterable[TaskLine]) -> bool:
    """Publish a rank's, retry or sweep manifest by link(2). False where the name is taken."""
    return publish(layout.manifest(name), b"".join(seal(task) for task in tasks))


def publish_orphans(layout: Layout, closing: Closing, orphans: Iterable[TaskLine]) -> bool:
    """Close an attempt: the commit instant is the link(2) of its orphans manifest. False: it was closed before."""
    data = seal(closing) + b"".join(seal(task) for task in orphans)
    return publish(layout.manifest(orphans_name(closing.attempt)), data)
