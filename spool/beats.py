"""Beats: by the names in one folder everybody sees who lives.

Whoever lives has one empty file in beats/, `<name>.<number>`, and renames it to the next number
every few seconds. So one listing of the folder shows everybody's beats, and no file is opened: a
look-up of a file that another host has replaced may tell of the old one for a minute, while a
listing is fetched anew. No clock is read; what matters is that a number moves.

The writers are the attempts (`worker/beat.py`) and the parents (`supervise/parent_beat.py`);
`liveness.py` reads.
"""

from __future__ import annotations

import contextlib
import os

from gpuspool.spool.layout import Layout, parse_beat
from gpuspool.spool.publish import listdir, remove_quietly


class Beat:
    """The beat of one attempt, or of one parent. Only its owner makes one."""

    def __init__(self, layout: Layout, name: str) -> None:
        """name: of the attempt, or the `epoch_name` of the parent."""
        self._layout = layout
        self._name = name
        self._number = -1

    def move(self) -> None:
        """Beat once: rename(2) to the next number, or make the file. Raises OSError."""
        new = self._layout.beat(self._name, self._number + 1)
        if self._number >= 0:
            old = self._layout.beat(self._name, self._number)
            try:
                os.rename(old, new)
            except FileNotFoundError:
                # Either the rename took effect and its reply was lost, or somebody removed the
                # file. Numbers never go back, so a new file stands for both.
                _make(new)
        else:
            _make(new)
        self._number += 1

    def end(self) -> None:
        """Remove the file: whoever has said how it ended need not be seen to live."""
        if self._number >= 0:
            remove_quietly(self._layout.beat(self._name, self._number))


def _make(path: str | os.PathLike[str]) -> None:
    """Make an empty file with O_EXCL; it is there already where an earlier reply was lost."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o664))


def read_beats(layout: Layout) -> dict[str, int]:
    """The newest beat of everybody that is listed, by one listing. Raises OSError.

    A listing that is read while a file is renamed may show both names, or neither.
    """
    beats: dict[str, int] = {}
    for filename in listdir(layout.beats):
        parsed = parse_beat(filename)
        if parsed is not None:
            name, number = parsed
            beats[name] = max(number, beats.get(name, -1))
    return beats


def beaten_at(layout: Layout, name: str, number: int) -> float | None:
    """When this beat was made, in Unix seconds by the clock of the file system, for people.

    A rename(2) changes the time at which the inode was changed. None where the beat is gone.
    """
    try:
        return os.lstat(layout.beat(name, number)).st_ctime
    except FileNotFoundError:
        return None


def remove_beats(layout: Layout, names: set[str]) -> None:
    """Remove the beats of those that are known to have ended. Raises OSError."""
    if not names:
        return
    for filename in listdir(layout.beats):
        parsed = parse_beat(filename)
        if parsed is not None and parsed[0] in names:
            remove_quietly(layout.beats / filename)
