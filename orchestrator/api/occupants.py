"""Who may still be at work on a run, for those who would pull its folders from under them.

Of this host the table of processes tells at once. Of another one it takes a lease: whoever lives
there is seen to beat meanwhile, and whoever does not is dead by the end of it. So a person whose
node has crashed waits for that once, and need not delete anything by hand.
"""

from __future__ import annotations

import time

import msgspec

from gpuspool.orchestrator.text.progress import say
from gpuspool.spool.beats import read_beats
from gpuspool.spool.layout import Layout, epoch_name
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.parents import Parents
from gpuspool.spool.records import Parent
from gpuspool.spool.states import Life
from gpuspool.spool.view import View

# How often the beats are listed, so that nobody waits much longer for the beat of one who lives
# than that takes to come.
LOOK_S = 1.0


class MaybeAlive(msgspec.Struct, frozen=True):
    """A parent or an attempt that is not proved dead. name: that of its beat."""

    name: str
    words: str
    life: Life


class Occupants:
    """Who may be at work on a run.

    Keep one from the first look to the last, since what a lease has proved is known to it alone.
    Its methods raise OSError.
    """

    def __init__(self, view: View) -> None:
        """Nothing is read before the first look."""
        self._view = view
        self._detector = FailureDetector(view)
        # The beat of each that may be alive, as it was when it was listed first.
        self._first_beats: dict[str, int] = {}

    def look(self) -> list[MaybeAlive]:
        """All who may be at work, as far as is known by now."""
        detector = self._detector
        detector.look()
        parents = detector.parents
        found: list[MaybeAlive] = []
        for epoch in parents.without_end():
            words = describe_parent(parents.known.get(epoch))
            found.append(MaybeAlive(epoch_name(epoch), words, detector.epoch_life(epoch)))
        for attempt in self._view.refresh().open_attempts:
            found.append(MaybeAlive(attempt, attempt, detector.life(attempt)))
        return [one for one in found if one.life is not Life.DEAD]

    def wait(self) -> list[MaybeAlive]:
        """Wait until it is proved that somebody is alive, or, by a lease, that nobody is.

        Returns all who may be at work then: nobody, or those among whom somebody is alive.
        """
        is_told = False
        while (found := self.look()) and not self._is_any_alive(found):
            if not is_told:
                say(
                    f"{in_words(found)} may still be running, which cannot be told from here: "
                    f"waiting for a sign of life, {self._detector.lease_of_run_s:.0f} s at most"
                )
                is_told = True
            time.sleep(LOOK_S)
        return found

    def _is_any_alive(self, found: list[MaybeAlive]) -> bool:
        """Whether a process here proves it, or a beat that has moved since it was listed first."""
        beats = read_beats(self._view.layout)
        for one in found:
            number = beats.get(one.name, -1)
            first = self._first_beats.setdefault(one.name, number)
            if one.life is Life.ALIVE or number > first:
                return True
        return False


def in_words(found: list[MaybeAlive]) -> str:
    """Who these are, each once."""
    return ", ".join(dict.fromkeys(one.words for one in found))


def describe_parent(parent: Parent | None) -> str:
    """A parent as people are told of it. None: its record cannot be read."""
    host = "a host that its record does not tell" if parent is None else f"host {parent.host}"
    return f"a gpuspool on {host}"


def parents_maybe_alive(layout: Layout) -> list[Parent | None]:
    """The parents that are not proved dead at a single look, None for a record that is damaged.

    For where there is no run record, which would tell the lease that `Occupants` judges by, and for
    who only shows what there is. Raises OSError.
    """
    parents = Parents(layout).refresh()
    return [parents.known[epoch] for epoch in parents.maybe_alive()]
