"""Copies of one program that were started on several hosts find each other through a folder.

They know how many they are, and a word that they have in common. Nothing else is needed: no port,
no address, no clock that is compared with another host's. The calling sequence of each copy:

1. `meet` makes the meeting's folder in the folder that is looked at, unless another copy was first.
   In its `table` each copy puts down who it is, and a beat: an empty file that it renames to the
   next number at each look.
2. A copy that has seen the beats of as many copies move as there shall be, its own among them,
   links the roster: the list of those that take part. The link(2) is the commit instant: of all who
   try, one wins, and its list counts for everybody. Who is not on it looks for another meeting. A
   copy that was killed earlier has left files, but its beat never moves, so it is on no roster.
3. From then on they talk by `say`: a word is an empty file in the table. `wait_for` waits until all
   have said one.
4. `leave` at the end. The last one who leaves removes everything.

How fast they hear each other decides how exactly anything can be measured. A network file system
may show a listing as it was a minute ago, but hardly one of a folder that the same host has just
changed: that change shows the client that the folder is another one. So each look at the table
renames the own beat first, and everything that is to be heard is a name in the table. What is to be
measured lies in other folders, where the looker changes nothing.

Every wait ends: when a copy's beat has not moved for the time that was agreed on, `Silent` is
raised. If this process is killed, its files stay until the others leave, and if all are killed,
until a later doctor finds them (`remove_leftovers` in `doctor`).

All names below a meeting's folder are made and parsed in this package.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gpuspool.spool.layout import meeting_name
from gpuspool.spool.publish import (
    FOLDER_MODE,
    publish,
    read_bytes,
    remove_quietly,
    remove_tree_quietly,
    rename,
)

# Between two looks at the table. It is the error of everything that is measured: what is seen in
# between counts as seen at the next look. With more than so many copies each looks more seldom,
# since every look of every copy changes the one folder.
LOOK_S = 0.02
COPIES_AT_FULL_PACE = 8

# A copy whose beat was seen and is not there at so many looks in a row has taken it away. One look
# may miss a file that is being renamed.
LOOKS_UNTIL_GONE = 50

# How often the one who removes everything tries to.
REMOVALS = 3

# How long it waits for those who have not left yet.
LEAVE_S = 30.0

_BEAT = re.compile(r"beat\.([0-9a-f]{16})\.(\d+)")
_TABLE = "table"
_ROSTER = "roster"
# The last words of a member: that it leaves in order, and that it gives up.
_GOODBYE = "goodbye"
_LEFT = "left"


class Member(msgspec.Struct, frozen=True):
    """A copy that takes part: where it runs, and as what it sees the folder.

    device: the number of the mounted file system there. Two mounts on one host have two, and keep
    what they saw apart. kind: the type of file system.
    """

    host: str
    boot_id: str
    pid: int
    device: int
    kind: str

    @property
    def client(self) -> tuple[str, str, int]:
        """What sees the folder on its own: members of one client see the same, at the same time."""
        return self.host, self.boot_id, self.device


class NotAllCame(Exception):
    """Fewer copies came to the meeting than there should be, in the time that was agreed on."""


class Silent(Exception):
    """A copy that takes part has not been heard of for the time that was agreed on, or has left."""


class _Gone(Exception):
    """The meeting's folder was removed: it was over, or its makers gave up."""


class Table:
    """The folder of a meeting in which all write, as one copy sees it."""

    def __init__(self, folder: Path, me: str) -> None:
        """Nothing is there before `sit_down`."""
        self.folder = folder
        self.names: set[str] = set()
        self._me = me
        self._number = 0
        # Of each beat its number, and when on this process's own clock that was first seen.
        self._beats: dict[str, tuple[int, float]] = {}
        self._moved: set[str] = {me}
        # At how many looks in a row a beat that was seen before was not there.
        self._absences: dict[str, int] = {}

    def sit_down(self, me: Member) -> None:
        """Put down who this copy is, and its first beat. Raises OSError."""
        for path in (self.folder.parent, self.folder):
            with contextlib.suppress(FileExistsError):
                path.mkdir(FOLDER_MODE)
        publish(_card(self.folder, self._me), msgspec.json.encode(me), durable=False)
        self._beat(0).touch(exist_ok=False)

    def _beat(self, number: int) -> Path:
        return self.folder / f"beat.{self._me}.{number}"

    def look(self) -> None:
        """Beat, by rename(2), then list the table. Raises _Gone where the table is gone."""
        try:
            rename(self._beat(self._number), self._beat(self._number + 1))
            self._number += 1
            self.names = set(os.listdir(self.folder))
        except FileNotFoundError:
            raise _Gone from None
        there: set[str] = set()
        for match in map(_BEAT.fullmatch, self.names):
            if match is not None:
                there.add(match[1])
                self._note(match[1], int(match[2]))
        for who in self._beats:
            self._absences[who] = 0 if who in there else self._absences.get(who, 0) + 1

    def _note(self, who: str, number: int) -> None:
        known = self._beats.get(who)
        if known is not None and number > known[0]:
            self._moved.add(who)
        if known is None or number > known[0]:
            self._beats[who] = (number, time.monotonic())

    def living(self) -> list[str]:
        """Whose beats were seen to move and are there still; sorted."""
        return sorted(who for who in self._moved if not self._absences.get(who))

    def has_gone(self, who: str) -> bool:
        """Whether a copy has taken its beat away."""
        return self._absences.get(who, 0) >= LOOKS_UNTIL_GONE

    def silence_s(self, who: str) -> float:
        """For how long the beat of a copy has not moved; 0 where none was ever seen."""
        beat = self._beats.get(who)
        return time.monotonic() - beat[1] if beat else 0.0

    def remove_own(self) -> None:
        """Take away what this copy has put down."""
        # A signal may have come between a beat and the counting of it.
        for number in (self._number, self._number + 1):
            remove_quietly(self._beat(number))
        remove_quietly(_card(self.folder, self._me))


def look_s(count: int) -> float:
    """How long so many copies pause between two looks."""
    return LOOK_S * max(1.0, count / COPIES_AT_FULL_PACE)


def _card(table: Path, who: str) -> Path:
    """Where a copy puts down who it is."""
    return table / f"member.{who}"


class Meeting:
    """A meeting to which all have come, as one of its members sees it.

    seat: the place of this member in the roster. folder: below it everything that the meeting needs
    is made.
    """

    def __init__(self, folder: Path, table: Table, roster: list[str], me: str, wait_s: float):
        self.folder = folder
        self.members: list[Member] = []
        self.seat = roster.index(me)
        self.wait_s = wait_s
        self._table = table
        self._roster = roster

    def read_members(self) -> None:
        """Read who the others are. Raises Silent where that never comes to be seen."""
        self.members = [self._member(who) for who in self._roster]

    def _member(self, who: str) -> Member:
        data = self._wait_to_read(_card(self._table.folder, who), who)
        return msgspec.json.decode(data, type=Member)

    @property
    def others(self) -> list[int]:
        """The seats of all other members."""
        return [seat for seat in range(len(self._roster)) if seat != self.seat]

    def pause(self) -> None:
        """Wait until the next look is due."""
        time.sleep(look_s(len(self._roster)))

    # Talking.

    def say(self, word: str) -> None:
        """Put a word down for all others; it may be said once. Raises OSError and Silent."""
        try:
            self._word(self.seat, word).touch(exist_ok=False)
        except FileNotFoundError:
            raise self._over() from None

    def unsay(self, word: str) -> None:
        """Take away an own word that nobody has to hear any more."""
        remove_quietly(self._word(self.seat, word))

    def has_said(self, seat: int, word: str) -> bool:
        """Whether a member's word stood in the table at the last look."""
        return self._word(seat, word).name in self._table.names

    def _word(self, seat: int, word: str) -> Path:
        return self._table.folder / f"word.{seat}.{word}"

    def look(self) -> None:
        """Look at the table. Raises Silent where somebody left, or was not heard of for long."""
        try:
            self._table.look()
        except _Gone:
            raise self._over() from None
        for seat in self.others:
            if self.has_said(seat, _LEFT) or self._table.has_gone(self._roster[seat]):
                raise Silent(f"{self._name(seat)} has given up")
            silence_s = self._table.silence_s(self._roster[seat])
            if silence_s > self.wait_s:
                raise Silent(f"{self._name(seat)} has not been heard of for {silence_s:.0f} s")

    def _over(self) -> Silent:
        return Silent("the others have given up")

    def _name(self, seat: int) -> str:
        if len(self.members) > seat:
            return self.members[seat].host
        return f"copy {seat + 1} of {len(self._roster)}"

    def wait_for(self, word: str, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until every member has said this word.

        meanwhile: called after each look. Raises Silent.
        """
        while True:
            self.look()
            if meanwhile is not None:
                meanwhile()
            if all(self.has_said(seat, word) for seat in range(len(self._roster))):
                return
            self.pause()

    # Records.

    def hand_in(self, kind: str, record: msgspec.Struct) -> None:
        """Publish, by link(2), this member's record of a kind for the others."""
        publish(self._record(self.seat, kind), msgspec.json.encode(record), durable=False)

    def read(self, seat: int, kind: str) -> bytes:
        """A member's record of a kind, once it is seen. Raises Silent."""
        return self._wait_to_read(self._record(seat, kind), self._roster[seat])

    def _record(self, seat: int, kind: str) -> Path:
        return self._table.folder / f"{kind}.{seat}"

    def _wait_to_read(self, path: Path, who: str) -> bytes:
        """The bytes of a file that was published. It may be seen later than the word of it."""
        until = time.monotonic() + self.wait_s
        while True:
            data = read_bytes(path)
            if data:
                return data
            if time.monotonic() > until:
                raise Silent(f"{path.name} of {who} was not seen within {self.wait_s:.0f} s")
            self.look()
            self.pause()

    # Ending.

    def leave(self) -> None:
        """End the meeting in order. The last who leaves removes its folder; raises OSError."""
        self.say(_GOODBYE)
        until = time.monotonic() + LEAVE_S
        while not self._is_alone() and time.monotonic() < until:
            # Of all who leave, at least the last one sees that all others have. Where names are
            # seen so late that nobody does, the first member waits for that, and removes the folder
            # in the end without it.
            if self.seat != 0:
                return
            self.pause()
        self._remove()

    def give_up(self) -> None:
        """End the meeting out of order: whoever is still there hears of it. Raises nothing."""
        with contextlib.suppress(Silent, OSError):
            self.say(_LEFT)
        if self._is_alone():
            self._remove()

    def _remove(self) -> None:
        """Remove the meeting's folder. Who has just left may rename its beat meanwhile, once."""
        for _ in range(REMOVALS):
            remove_tree_quietly(self.folder)
            if not self.folder.exists():
                return
            self.pause()

    def _is_alone(self) -> bool:
        """Whether nobody else needs the folder any more."""
        try:
            self._table.look()
        except (_Gone, OSError):
            return True
        return all(
            self.has_said(seat, _GOODBYE)
            or self.has_said(seat, _LEFT)
            or self._table.has_gone(self._roster[seat])
            or self._table.silence_s(self._roster[seat]) > self.wait_s
            for seat in self.others
        )


def meet(folder: Path, key: str, count: int, me: Member, wait_s: float) -> Meeting:
    """Meet so many copies, this one among them, that were told the same key.

    wait_s: how long to wait for them, and later for any one that is silent. Raises NotAllCame, and
    OSError where the folder takes nothing.
    """
    until = time.monotonic() + wait_s
    number = 0
    came: dict[str, str] = {}
    while True:
        place = folder / meeting_name(key, number)
        who = os.urandom(8).hex()
        try:
            roster, table = _attend(place, count, who, me, until, came)
        except (FileNotFoundError, _Gone):
            # Its makers have just removed it. The folder itself may be gone, too.
            if time.monotonic() > until or not folder.is_dir():
                raise _not_all_came(came, count, me, wait_s) from None
            time.sleep(LOOK_S)
            continue
        except PermissionError:
            # It is somebody else's.
            number += 1
            continue
        if who in roster:
            return Meeting(place, table, roster, who, wait_s)
        if not roster:
            raise _not_all_came(came, count, me, wait_s)
        number += 1


def _attend(
    place: Path, count: int, who: str, me: Member, until: float, came: dict[str, str]
) -> tuple[list[str], Table]:
    """The roster of a meeting, [] where that took too long, and its table.

    Whoever is not on the roster has left the table.
    """
    table = Table(place / _TABLE, who)
    roster: list[str] = []
    # A signal may end this process at any moment, also while it sits down.
    try:
        table.sit_down(me)
        roster = _await_roster(table, count, who, until, came)
    finally:
        if who not in roster:
            _go_away(place, table)
    if not roster and not came:
        # Whatever else lies there, nobody who lives has come to it in all this time.
        remove_tree_quietly(place)
    return roster, table


def _await_roster(
    table: Table, count: int, who: str, until: float, came: dict[str, str]
) -> list[str]:
    """The roster, once it is there; [] where that took too long.

    came: the host of each other copy that was seen to live is noted there.
    """
    path = table.folder / _ROSTER
    while True:
        table.look()
        others = [one for one in table.living() if one != who]
        if _ROSTER not in table.names and len(others) + 1 >= count:
            proposal = sorted([who, *others[: count - 1]])
            publish(path, msgspec.json.encode(proposal), durable=False)
        roster = read_bytes(path) if _ROSTER in table.names else None
        if roster:
            return msgspec.json.decode(roster, type=list[str])
        for one in others:
            came.setdefault(one, _host_of(table, one))
        if time.monotonic() > until:
            return []
        time.sleep(look_s(count))


def _host_of(table: Table, who: str) -> str:
    data = read_bytes(_card(table.folder, who))
    return msgspec.json.decode(data, type=Member).host if data else "a host that is not seen"


def _go_away(place: Path, table: Table) -> None:
    """Leave a table without having met anybody, and remove it where nothing else lies there.

    Others who have come meanwhile, and may have put this copy on their roster, see that its beat is
    gone.
    """
    table.remove_own()
    with contextlib.suppress(OSError):
        (place / _TABLE).rmdir()
        place.rmdir()


def _not_all_came(came: dict[str, str], count: int, me: Member, wait_s: float) -> NotAllCame:
    hosts = ", ".join([me.host, *came.values()])
    return NotAllCame(f"only {len(came) + 1} of {count} came within {wait_s:.0f} s: {hosts}")
