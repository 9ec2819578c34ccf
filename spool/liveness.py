"""Whether an attempt, and the parent that started it, are alive or proved dead.

There are two proofs of a death:

1. **The process table**, for processes of this host (`identity`). It proves at once, in either
   direction. A process counts only where it belongs to this very folder: in a copy of a spool all
   records speak of the processes of the original, which write there and not here.
2. **A lease**, for processes elsewhere. Its owner is dead once its beat has not moved for the whole
   lease, on the clock of the process that judges. Nothing proves at once that it lives, so the
   verdict until then is ELSEWHERE.

An attempt elsewhere is dead only if three things hold, since its own silence says little: a worker
may be inside a long C call that holds the interpreter's lock, and then its beat cannot move.

- Its own beat has stood still for a lease.
- Its parent is dead too. A parent that beats vouches for its children.
- No other parent on its host may be alive. Such a parent sees the process table there: it adopts
  the orphans that live, and closes the others.

A parent that has written its end is gone, whatever its process does: it has seen off all that it
started. If others wrote that end (LOST), a beat that moves afterwards is believed more than they.

A parent that lives on this host and has not beaten for a lease is stopped, or hangs. It is not
dead, and what lives of its attempts is its own. But what dies of them others close.
"""

from __future__ import annotations

import math
import time

from gpuspool.spool.beats import read_beats
from gpuspool.spool.identity import is_here, is_same_host, liveness
from gpuspool.spool.layout import Layout, epoch_name, parse_attempt
from gpuspool.spool.open_folder import folder_id
from gpuspool.spool.parents import Parents, is_of_another_folder
from gpuspool.spool.records import Identity
from gpuspool.spool.states import Life
from gpuspool.spool.view import View

# A parent beats so often in a lease, so that several beats in a row may be late or lost.
PARENT_BEATS = 12
# An attempt beats less often: its parent vouches for it as long as that lives.
ATTEMPT_BEATS = 4
# The shortest lease that anybody may judge by is so many beats of the one who is judged.
BEATS = 3
# Between two looks at most this part of a lease counts as silence: this process may have been
# suspended itself, and who did not look knows nothing.
MAX_GAP_COUNTED = 0.3
# Whoever waits for leases lists the beats so often in one, and twice as often while somebody has
# been silent for half of one, so that a death is noticed soon.
LOOKS_A_LEASE = 8
# Where the beats tell of no parent that came or went, parents/ is listed so often in a lease all
# the same. Whoever was wrongly taken for dead finds that there alone.
PARENT_LOOKS_A_LEASE = 2


class _Seen:
    """A beat as last seen, and for how many seconds it has stood still."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.still_s = 0.0


class BeatWatch:
    """For how long, on this process's own clock, each beat of a spool has not moved."""

    def __init__(self, layout: Layout, lease_s: float) -> None:
        self.lease_s = lease_s
        self._layout = layout
        self._seen: dict[str, _Seen] = {}
        self._looked_at: float | None = None
        # Whether a beat has stood still for half a lease, and not for a whole one yet.
        self._is_anybody_silent = False
        # Whose beats were in the last listing, and which of these had moved since the one before.
        self.listed: frozenset[str] = frozenset()
        self.moved: frozenset[str] = frozenset()

    def is_due(self, now: float) -> bool:
        """Whether it is time for a look. `now`: on the monotonic clock."""
        looks = 2 * LOOKS_A_LEASE if self._is_anybody_silent else LOOKS_A_LEASE
        return self._looked_at is None or now - self._looked_at >= self.lease_s / looks

    def take(self, beats: dict[str, int], now: float) -> None:
        """Take a listing of the beats. One that is not listed has not moved."""
        passed_s = 0.0
        if self._looked_at is not None:
            passed_s = min(now - self._looked_at, MAX_GAP_COUNTED * self.lease_s)
        self._looked_at = now
        self.listed = frozenset(beats)
        moved: set[str] = set()
        for name in {*beats, *self._seen}:
            number = beats.get(name, -1)
            seen = self._seen.get(name)
            if seen is None or number > seen.number:
                self._seen[name] = _Seen(number)
                if seen is not None:
                    moved.add(name)
            else:
                seen.still_s += passed_s
        self.moved = frozenset(moved)
        still = (seen.still_s for seen in self._seen.values())
        self._is_anybody_silent = any(0.5 < still_s / self.lease_s <= 1 for still_s in still)

    def restart_lease(self, name: str) -> None:
        """Count silence from now on: the owner has just given another sign of life."""
        self._seen.setdefault(name, _Seen(-1)).still_s = 0.0

    def still_s(self, name: str) -> float:
        """For how many seconds a beat is known to have stood still.

        One that was never listed counts from the first time that it is asked for.
        """
        return self._seen.setdefault(name, _Seen(-1)).still_s


class FailureDetector:
    """Judges the attempts and the parents of one spool.

    Keep one for as long as you watch a spool: leases take time to run out, and only looks of the
    same detector count. Raises OSError where beats/ or parents/ cannot be read.
    """

    def __init__(self, view: View, lease_s: float | None = None) -> None:
        """lease_s: what to judge by; None for the lease that the run was made with."""
        self.view = view
        if lease_s is None:
            lease_s = view.run.options.lease_s
        self._watch = BeatWatch(view.layout, lease_s)
        self.parents = Parents(view.layout)
        self._folder = folder_id(view.layout.root)
        # When parents/ was listed last, on the monotonic clock, and which parents had beats then.
        self._parents_listed_at = -math.inf
        self._beating: set[str] = set()
        # How many of `parents.returned` have had their leases restarted.
        self._n_returned = 0
        # The epochs whose parents were seen to beat after others had written that they are lost.
        self._beat_after_lost: set[int] = set()
        # The attempts elsewhere for whose parents' deaths the folders were listed once more.
        self._confirmed: set[str] = set()

    @property
    def lease_of_run_s(self) -> float:
        """The lease that is judged by where nobody says another one."""
        return self._watch.lease_s

    # What is read, and how often.

    def look(self) -> None:
        """List the parents, and the beats if that is due."""
        now = time.monotonic()
        self._list_beats_if_due(now)
        self._list_parents(now)

    def look_anew(self) -> None:
        """List the parents and the beats now, whatever is due."""
        now = time.monotonic()
        self._list_beats(now)
        self._list_parents(now)

    def glance(self) -> bool:
        """List the beats if that is due, and the parents only if there may be news of them.

        A parent that comes or goes shows in the beats as well, so most calls list one folder at
        most, and a loop may call this at each step. Returns whether the beats were listed.
        """
        now = time.monotonic()
        has_listed = self._list_beats_if_due(now)
        age_s = now - self._parents_listed_at
        is_due = age_s >= self._watch.lease_s / PARENT_LOOKS_A_LEASE
        if is_due or (has_listed and self._do_beats_tell_of_parents()):
            self._list_parents(now)
        return has_listed

    def _glance_if_due(self) -> None:
        if self._watch.is_due(time.monotonic()):
            self.glance()

    def _do_beats_tell_of_parents(self) -> bool:
        """Whether, by the beats, a parent came or went, or was wrongly taken for dead."""
        if any(epoch_name(epoch) in self._watch.moved for epoch in self.parents.ends):
            return True
        return self._beating_parents() != self._beating

    def _beating_parents(self) -> set[str]:
        """The parents whose beats are listed, by their `epoch_name`."""
        return {name for name in self._watch.listed if parse_attempt(name) is None}

    def _list_beats_if_due(self, now: float) -> bool:
        is_due = self._watch.is_due(now)
        if is_due:
            self._list_beats(now)
        return is_due

    def _list_beats(self, now: float) -> None:
        self._watch.take(read_beats(self.view.layout), now)
        for epoch in self.parents.ends:
            if self.parents.was_lost(epoch) and epoch_name(epoch) in self._watch.moved:
                self._beat_after_lost.add(epoch)

    def _list_parents(self, now: float) -> None:
        self.parents.refresh()
        # A parent that has taken back its LOST end may have woken after the beats were listed. By
        # that listing its lease is still over, and it would be taken for dead once more, together
        # with what it has just started.
        for epoch in self.parents.returned[self._n_returned :]:
            self._watch.restart_lease(epoch_name(epoch))
        self._n_returned = len(self.parents.returned)
        self._beating = self._beating_parents()
        self._parents_listed_at = now

    # Attempts.

    def life(self, attempt: str) -> Life:
        """ALIVE, DEAD, or ELSEWHERE while there is no proof."""
        if self.is_copied(attempt):
            return Life.DEAD
        found = self._life_by_own_and_parents_signs(attempt)
        if found is Life.DEAD and self._may_neighbour_live(attempt):
            return Life.ELSEWHERE
        return found

    def is_dead_orphan(self, attempt: str) -> bool:
        """Whether an attempt is proved dead, and nobody knows of a parent that will close it."""
        # Both are asked always, so that their leases run side by side.
        life = self.life(attempt)
        is_left = self.is_left_by_parent(attempt)
        return life is Life.DEAD and is_left

    def is_left_by_parent(self, attempt: str) -> bool:
        """Whether the parent of an attempt is proved dead, or has done nothing for a lease.

        One that lives on this host may be stopped (Ctrl-Z), or hang in the kernel. What lives of
        its attempts is its own all the same. But it does not close what dies, and others may wait
        for the tasks of that until somebody presses a key.
        """
        # Both are asked always, so that the beat is counted from the first look on.
        life = self.parent_life(attempt)
        intent = self.view.intents.get(attempt)
        is_silent = intent is not None and self.is_parent_silent(intent.epoch)
        return life is Life.DEAD or (life is Life.ALIVE and is_silent)

    def is_copied(self, attempt: str) -> bool:
        """Whether the attempt ran in another folder, on this host, of which this one is a copy.

        Then its process, and its parent's, are none of ours, and will never write here.
        """
        intent = self.view.intents.get(attempt)
        if intent is None:
            return False
        return is_of_another_folder(intent.parent, intent.folder, self._folder)

    def lease_s(self, attempt: str) -> float:
        """For how long the attempt's beat may stand still.

        Never less than BEATS of its own beats, whatever lease is asked for now.
        """
        own_lease_s = self.view.options_of(attempt).lease_s
        return max(self._watch.lease_s, BEATS * own_lease_s / ATTEMPT_BEATS)

    def _life_by_own_and_parents_signs(self, attempt: str) -> Life:
        """The life of an attempt by its process, or else by its beat and that of its parent."""
        who = self.view.identity(attempt)
        if who is None:
            return self.parent_life(attempt)
        by_process = liveness(who)
        if by_process is not Life.ELSEWHERE:
            return by_process
        self._glance_if_due()
        # Both are asked always, so that their leases run side by side.
        parent_life = self.parent_life(attempt)
        is_silent = self._is_silent(attempt, attempt)
        return Life.DEAD if is_silent and parent_life is Life.DEAD else Life.ELSEWHERE

    def _may_neighbour_live(self, attempt: str) -> bool:
        """Whether a parent that may be alive sees the process table of an attempt elsewhere.

        A parent may be proved dead by one of its own host, which writes that at once. Then nobody
        has vouched for its children for less than a lease, although one of them may have been in a
        call that keeps its beat from moving for longer. So they are left to that other parent.
        """
        who: Identity | None = self.view.identity(attempt)
        intent = self.view.intents.get(attempt)
        if who is None and intent is not None:
            who = intent.parent
        if who is None or is_here(who):
            return False
        for epoch, parent in list(self.parents.known.items()):
            is_neighbour = parent is not None and is_same_host(parent, who)
            if is_neighbour and self.epoch_life(epoch) is not Life.DEAD:
                return True
        return False

    # Parents.

    def parent_life(self, attempt: str) -> Life:
        """The life of the process that started the attempt.

        Without a readable intent nobody vouches for the attempt, so a lease decides.
        """
        self._glance_if_due()
        life = self.known_parent_life(attempt)
        if life is Life.DEAD and self._must_confirm_parent(attempt):
            self._confirmed.add(attempt)
            self.look_anew()
            life = self.known_parent_life(attempt)
        return life

    def known_parent_life(self, attempt: str) -> Life:
        """As `parent_life`, as of the last look: nothing of the spool is read."""
        if self.is_copied(attempt):
            return Life.DEAD
        intent = self.view.intents.get(attempt)
        if intent is None:
            return self._life_by_lease(f"parent of {attempt}", attempt)
        known = self._life_without_lease(intent.epoch)
        if intent.epoch not in self.parents.known and known is not Life.DEAD:
            known = liveness(intent.parent)
        if known is not Life.ELSEWHERE:
            return known
        return self._life_by_lease(epoch_name(intent.epoch), attempt)

    def epoch_life(self, epoch: int) -> Life:
        """The life of the parent of an epoch."""
        self._glance_if_due()
        known = self._life_without_lease(epoch)
        if known is Life.ELSEWHERE and self.parents.known.get(epoch) is None:
            known = self._life_by_intents(epoch)
        if known is not Life.ELSEWHERE:
            return known
        return Life.DEAD if self.is_parent_silent(epoch) else Life.ELSEWHERE

    def is_parent_silent(self, epoch: int) -> bool:
        """Whether the beat of a parent has stood still for a lease, as of the last look.

        Elsewhere that proves it dead. Here it may be stopped (Ctrl-Z), or hang in the kernel.
        """
        return self.parent_still_s(epoch) > self.parent_lease_s(epoch)

    def parent_still_s(self, epoch: int) -> float:
        """For how many seconds the beat of a parent is known to have stood still."""
        return self._watch.still_s(epoch_name(epoch))

    def parent_lease_s(self, epoch: int) -> float:
        """For how long the beat of a parent may stand still.

        It may have been started with a longer lease than is asked for now, and beat accordingly.
        """
        lease_s = self._watch.lease_s
        parent = self.parents.known.get(epoch)
        if parent is None:
            return lease_s
        return max(lease_s, BEATS * parent.lease_s / PARENT_BEATS)

    def _must_confirm_parent(self, attempt: str) -> bool:
        """Whether the folders must be listed anew before a parent elsewhere counts as dead.

        It may have stood still, and woken since the last look, and then have started this attempt.
        An end that it has written itself needs no confirmation.
        """
        intent = self.view.intents.get(attempt)
        if intent is None or attempt in self._confirmed or is_here(intent.parent):
            return False
        epoch = intent.epoch
        return epoch not in self.parents.ends or self.parents.was_lost(epoch)

    def _life_without_lease(self, epoch: int) -> Life:
        """As `Parents.life_without_lease`, but a beat is believed more than a LOST end."""
        if epoch in self._beat_after_lost and self.parents.was_lost(epoch):
            return Life.ELSEWHERE
        return self.parents.life_without_lease(epoch)

    def _life_by_intents(self, epoch: int) -> Life:
        """The life, without a lease, of a parent whose record is damaged: its intents name it."""
        for intent in self.view.intents.values():
            if intent is not None and intent.epoch == epoch:
                return liveness(intent.parent)
        return Life.ELSEWHERE

    def _life_by_lease(self, name: str, attempt: str) -> Life:
        return Life.DEAD if self._is_silent(name, attempt) else Life.ELSEWHERE

    def _is_silent(self, name: str, attempt: str) -> bool:
        """Whether the beat of this name has stood still for the lease of an attempt."""
        return self._watch.still_s(name) > self.lease_s(attempt)
