"""Contests between hosts: who wins the link(2) of one name, and whom a lock keeps out.

All that a spool promises rests on the first: a claim, a closing and an epoch are one link(2) each,
which exactly one of all who try must win.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

import msgspec

from gpuspool.orchestrator.supervise.hosts.meeting import Meeting
from gpuspool.spool.publish import FOLDER_MODE, publish, read_bytes, write_file

# So many names are raced for.
ROUNDS = 1000

# The race ends after this, however many rounds are left: a link may take long on a file system that
# is far away.
RACE_S = 60.0

# Between two looks at the table lie so many rounds, so that the others do not take this member for
# dead. With each look another file begins to be linked: file systems limit the names that one file
# may have, GlusterFS to 100.
ROUNDS_PER_LOOK = 50

# Who wins a round pauses for this long, and longer the more it wins in a row. Else whoever begins
# first would win all rounds, always being one ahead, and none would be a race.
PAUSE_S = 0.0005
LONGEST_PAUSE_S = 0.01


class Race(msgspec.Struct):
    """What one member did and saw in the race for names.

    told: for each round what link(2) told it: "" for success, else the name of the error. owners:
    whose link each name is, by seat, as this member sees it; None where it sees none.
    """

    told: list[str]
    owners: list[int | None]


def race(meeting: Meeting) -> Race:
    """Link the same names as all others, at the same time. Raises Silent, and OSError."""
    folder = meeting.folder / "race"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(FOLDER_MODE)
    mine = [
        write_file(folder / f"of-{meeting.seat}-{number}", b"%d" % meeting.seat)
        for number in range(ROUNDS // ROUNDS_PER_LOOK)
    ]
    meeting.say("at the start")
    meeting.wait_for("at the start")
    told = _run(meeting, folder, mine)
    meeting.say("at the end")
    meeting.wait_for("at the end")
    return Race(told, _owners(meeting, folder, len(told)))


def _name(number: int) -> str:
    return f"name-{number}"


def _run(meeting: Meeting, folder: Path, mine: list[Path]) -> list[str]:
    """What link(2) told in each round, until all are over or the time is.

    mine: the files that are linked, one after the other.
    """
    until = time.monotonic() + RACE_S
    told: list[str] = []
    n_in_a_row = 0
    while len(told) < ROUNDS and time.monotonic() < until:
        answer = _link(mine[len(told) // ROUNDS_PER_LOOK], folder / _name(len(told)))
        n_in_a_row = 0 if answer else n_in_a_row + 1
        told.append(answer)
        if len(told) % ROUNDS_PER_LOOK == 0:
            meeting.look()
        time.sleep(min(n_in_a_row * PAUSE_S, LONGEST_PAUSE_S))
    return told


def _link(mine: Path, path: Path) -> str:
    """Link, and return the name of the error, "" without any."""
    try:
        os.link(mine, path)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return ""


def _owners(meeting: Meeting, folder: Path, count: int) -> list[int | None]:
    """Whose link each of the first names is. It is waited for those that are not seen yet."""
    owners: dict[int, int] = {}
    until = time.monotonic() + meeting.wait_s
    while True:
        for number in range(count):
            if number not in owners:
                data = read_bytes(folder / _name(number))
                if data:
                    owners[number] = int(data)
        meeting.look()
        if len(owners) == count or time.monotonic() > until:
            return [owners.get(number) for number in range(count)]
        meeting.pause()


# Locks.

# What becomes of a lock that the first member holds, for itself and for those who try to get it.
# Anything else is the name of the error with which the system refused it.
HELD = "held"
REFUSED = "refused"
GRANTED = "granted"


def contend_for_lock(meeting: Meeting) -> str:
    """What a flock(2) of this member came to, of which the first one holds the lock.

    Raises Silent, and OSError.
    """
    path = meeting.folder / "lock"
    if meeting.seat == 0:
        publish(path, b"lock", durable=False)
    meeting.say("lock is there")
    meeting.wait_for("lock is there")
    with open(path, "r+b") as file:
        outcome = HELD
        if meeting.seat == 0:
            outcome = _lock(file.fileno()) or HELD
        meeting.say("lock is held")
        meeting.wait_for("lock is held")
        if meeting.seat != 0:
            outcome = _lock(file.fileno()) or GRANTED
        meeting.say("lock was tried")
        meeting.wait_for("lock was tried")
        return outcome


def _lock(fd: int) -> str:
    """Try flock(2). Returns "" on success, REFUSED if another holds it, else the error's name."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return REFUSED
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return ""
