"""How late one host sees what another one does.

The clocks of two hosts are not compared. A member shows a sign and looks at its own clock; another
one that looks for the sign all the time says that it has seen it, by a word on the meeting's table;
once the first one hears that, it looks at its clock again. So what is measured is the way there and
the way back. The way back is the fastest that there is (`meeting`), some hundredths of a second
where a client sees a folder fresh that it has changed itself. So the round trip is hardly more than
the time that the sign took, and it is never less than that.

A cache is seen at its worst: a member that has seen a step looks for the next one at once, in vain,
and what it was told then is what its client believes for as long as it believes anything. Times
that grow while nothing changes (NFS doubles those of files and folders at rest, up to 60 s by
default) are not seen here.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gpuspool.orchestrator.supervise.hosts.meeting import Meeting
from gpuspool.orchestrator.supervise.hosts.signs import KINDS, Sign

# So many steps of each sign are shown: what one look happens to see says little.
STEPS = 4

# Later than this no further step is begun, so that a slow file system is tried for a minute or two,
# not for ten.
MEASURE_S = 45.0

# What a look may end with that is too early, or at a file that was replaced just then.
_NOT_YET = (errno.ENOENT, errno.ESTALE)

# Each member shows its signs to so many others, those that follow it in the roster. So the work of
# one does not grow with their number.
PARTNERS = 4


class Seen(msgspec.Struct):
    """How late the signs of one kind that one member showed were seen by another.

    asker, looker: their seats. seconds: of each step that was seen. is_missed: one was not seen in
    the time that was agreed on.
    """

    kind: str
    asker: int
    looker: int
    seconds: list[float] = []
    is_missed: bool = False


class Lags(msgspec.Struct):
    """What one member measured.

    seen: of the signs that it showed. gaps: of each kind that it looked for, how often it met a
    state that never was.
    """

    seen: list[Seen]
    gaps: dict[str, int]


class _Shown:
    """One sign of this member, and when the others say that they have seen its steps."""

    def __init__(self, sign: Sign, seat: int, lookers: list[int]) -> None:
        self._sign = sign
        self._seat = seat
        self._step = 0
        self._shown_at = 0.0
        self._waits_for: set[int] = set()
        self.seen = {looker: Seen(sign.kind, seat, looker) for looker in lookers}

    def go_on(self, meeting: Meeting, until: float) -> bool:
        """Note what others have said, and show the next step when it is due; True at the end."""
        for looker in list(self._waits_for):
            word = _saw(self._sign.kind, self._seat, self._step)
            if meeting.has_said(looker, word):
                self.seen[looker].seconds.append(time.monotonic() - self._shown_at)
                self._waits_for.remove(looker)
        if self._waits_for:
            return self._has_waited_too_long(meeting.wait_s)
        if self._step == STEPS or time.monotonic() > until:
            return True
        self._step += 1
        self._waits_for = set(self.seen)
        self._shown_at = time.monotonic()
        self._sign.show(self._step)
        return False

    def _has_waited_too_long(self, wait_s: float) -> bool:
        if time.monotonic() - self._shown_at <= wait_s:
            return False
        for looker in self._waits_for:
            self.seen[looker].is_missed = True
        return True


class _LookedFor:
    """One sign of another member, which is looked for."""

    def __init__(self, sign: Sign, asker: int) -> None:
        self.sign = sign
        self._asker = asker
        self._next = 1

    def look(self, meeting: Meeting) -> None:
        """Look for the next step, and say so if it is seen."""
        if self._next <= STEPS and self._sees():
            meeting.say(self._word(self._next))
            # This step was shown since what was said of the one before has been heard. Nobody but
            # the sayer may take a word away: on a network file system a file is made in several
            # steps, and the sayer would be told that its table is gone.
            if self._next > 1:
                meeting.unsay(self._word(self._next - 1))
            self._next += 1

    def _word(self, step: int) -> str:
        return _saw(self.sign.kind, self._asker, step)

    def _sees(self) -> bool:
        try:
            return self.sign.sees(self._next)
        except OSError as error:
            if error.errno not in _NOT_YET:
                raise
            return False


def _saw(kind: str, asker: int, step: int) -> str:
    return f"saw-{kind}-{asker}-{step}"


def measure(meeting: Meeting) -> Lags:
    """Show all signs to others, look for theirs, and tell how late ours were seen.

    Returns once every member is done. Raises Silent, and OSError.
    """
    count = len(meeting.members)
    shown: list[_Shown] = []
    looked_for: list[_LookedFor] = []
    partners = _following(meeting.seat, count)
    for kind in KINDS:
        sign = kind(_place(meeting.folder, kind, meeting.seat))
        sign.begin()
        shown.append(_Shown(sign, meeting.seat, partners))
        for asker in meeting.others:
            if meeting.seat in _following(asker, count):
                looked_for.append(_LookedFor(kind(_place(meeting.folder, kind, asker)), asker))
    # Nobody looks for a folder before it is there, and nobody shows a step before all have looked
    # for it in vain.
    meeting.say("ready")
    meeting.wait_for("ready")

    def look() -> None:
        for one in looked_for:
            one.look(meeting)

    look()
    meeting.say("looking")
    meeting.wait_for("looking", look)
    _show_all(meeting, shown, look)
    meeting.say("measured")
    meeting.wait_for("measured", look)
    gaps: dict[str, int] = {}
    for one in looked_for:
        gaps[one.sign.kind] = gaps.get(one.sign.kind, 0) + one.sign.gaps
    return Lags([seen for one in shown for seen in one.seen.values()], gaps)


def _following(seat: int, count: int) -> list[int]:
    """The seats to which a member shows its signs."""
    return [(seat + step) % count for step in range(1, min(PARTNERS, count - 1) + 1)]


def _place(folder: Path, kind: type[Sign], seat: int) -> Path:
    """Where a member shows its sign of a kind."""
    return folder / f"{kind.kind}-{seat}"


def _show_all(meeting: Meeting, shown: list[_Shown], look: Callable[[], None]) -> None:
    """Show all steps of all signs, each as soon as its last step was seen."""
    until = time.monotonic() + MEASURE_S
    left = shown
    while left:
        meeting.look()
        look()
        left = [one for one in left if not one.go_on(meeting, until)]
        meeting.pause()
