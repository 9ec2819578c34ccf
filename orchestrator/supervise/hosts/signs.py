"""What one host changes in a folder, step by step, and how another host looks for it.

A `Sign` is made twice: by the member who shows it, and by each who looks for it. Each member shows
its signs in folders of its own, in which nobody else changes anything, since a host that changes a
folder sees the rest of it fresh. Each kind looks in the way in which some part of a spool is looked
at, and says in its docstring in which.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from gpuspool.spool.publish import (
    FOLDER_MODE,
    fsync_file,
    publish,
    read_bytes,
    rename,
    replace,
    write_all,
)

# What stands in a file whose content is to be there once its name is. It takes more than one page.
CONTENT_BYTES = 8192


class Sign(ABC):
    """Something that changes from step 0 to 1, 2, …

    gaps: how often a look met a state that never was, as an atomic change rules out.
    """

    kind: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gaps = 0

    def begin(self) -> None:
        """Make the folder, and step 0 in it. Raises OSError, as all of these."""
        self.folder.mkdir(FOLDER_MODE)

    @abstractmethod
    def show(self, step: int) -> None:
        """Change to this step, the one after the last."""

    @abstractmethod
    def sees(self, step: int) -> bool:
        """Look whether this step is seen by now."""


class Name(Sign):
    """A name that is looked for again and again until it is there, as a claim is.

    The file is published, so its content must be whole for whoever finds the name.
    """

    kind = "look-up"

    def _path(self, step: int) -> Path:
        return self.folder / f"name-{step}"

    def show(self, step: int) -> None:
        publish(self._path(step), bytes([step]) * CONTENT_BYTES)

    def sees(self, step: int) -> bool:
        if not self._path(step).exists():
            return False
        if read_bytes(self._path(step)) != bytes([step]) * CONTENT_BYTES:
            self.gaps += 1
            return False
        return True


class Listed(Sign):
    """A new name in the listing of a folder, as manifests, intents and closings are found."""

    kind = "listing"

    def show(self, step: int) -> None:
        publish(self.folder / f"name-{step}", b"x", durable=False)

    def sees(self, step: int) -> bool:
        return f"name-{step}" in os.listdir(self.folder)


class Grown(Sign):
    """The size of a file that grows, as stat(2) tells it."""

    kind = "size"

    @property
    def _path(self) -> Path:
        return self.folder / "file"

    def begin(self) -> None:
        super().begin()
        self._path.touch(exist_ok=False)

    def show(self, step: int) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            write_all(fd, bytes([step]))
        finally:
            os.close(fd)
        fsync_file(self._path)

    def sees(self, step: int) -> bool:
        return os.stat(self._path).st_size >= step


class Read(Grown):
    """What was appended to a file, for whoever opens it anew, as journals are read."""

    kind = "content"

    def sees(self, step: int) -> bool:
        return len(read_bytes(self._path) or b"") >= step


class Renamed(Sign):
    """The number in a file's name that is renamed to the next, as beats are; listed."""

    kind = "beat"

    def _path(self, step: int) -> Path:
        return self.folder / f"beat.{step}"

    def begin(self) -> None:
        super().begin()
        self._path(0).touch(exist_ok=False)

    def show(self, step: int) -> None:
        rename(self._path(step - 1), self._path(step))

    def sees(self, step: int) -> bool:
        names = os.listdir(self.folder)
        if len(names) != 1:
            self.gaps += 1
        return self._path(step).name in names


class Replaced(Sign):
    """A file that another one takes the place of by rename(2), as heartbeats are; opened."""

    kind = "replace"

    @property
    def _path(self) -> Path:
        return self.folder / "record"

    def begin(self) -> None:
        super().begin()
        self.show(0)

    def show(self, step: int) -> None:
        replace(self._path, bytes([step]) * CONTENT_BYTES)

    def sees(self, step: int) -> bool:
        data = read_bytes(self._path)
        if not data or len(data) != CONTENT_BYTES:
            self.gaps += 1
            return False
        return data[0] >= step


KINDS: tuple[type[Sign], ...] = (Name, Listed, Grown, Read, Renamed, Replaced)
