"""Claims: who took which positions of a manifest, as a chain of files.

The claim at position 0 says where it stops; the claim with that name says where the next one stops;
the first name that does not exist is where the next claim starts. One link(2) makes a claim, so of
two processes that want the same start one wins and the other reads on.

Claims are not fsynced. A claim that a power cut emptied reaches to the next start that is listed
and belongs to nobody, so the sweep finds its tasks.

Two readers follow a chain. `ClaimChain` reads every claim: a view needs to know who holds what.
`ChainEnd` looks only for the end: a worker needs to know where it may claim next, and a thousand
workers that each read every claim would read a million files.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from gpuspool.spool.codec import decode, encode
from gpuspool.spool.errors import Damaged
from gpuspool.spool.layout import Layout, parse_attempt
from gpuspool.spool.manifest import Damage, OnDamage
from gpuspool.spool.publish import is_folder, listdir, make_subfolder, publish, read_bytes
from gpuspool.spool.records import Claim

# One claim takes at most this fraction of a claimer's share of what is left, so that other ranks
# still find work to steal.
LEFT_FRACTION = 4
# Of the last so many tasks of a share a claim takes at most this smaller fraction. What is claimed
# waits for what was claimed before it: if one task takes unexpectedly long, the others must not
# wait behind it while other ranks have nothing to do. This costs about 40 more claims.
FEW = 256
FEW_FRACTION = 16
# One claim holds at most so many seconds of estimated work: the first in short runs, the second in
# long ones. Neither a rank that wants to steal nor a restart waits longer.
TARGET_S = (0.5, 10.0)
# A run counts as long for a claim where this part of what its manifest has left takes longer than
# the first of TARGET_S.
LONG_FRACTION = 64
# So many of the last claims are looked at to count who draws from a manifest.
RECENT = 16
# So many claims are read one after the other before the folder is listed instead.
NEAR = 4
# The attempt of a claim that cannot be read. No attempt has this name.
NOBODY = ""


def parse_start(name: str) -> int | None:
    """The position at which the claim of this file name starts; None where the name is not ours."""
    if name.isascii() and name.isdigit():
        return int(name)
    return None


def read_claim(layout: Layout, manifest: str, start: int, end: int) -> Claim | None:
    """The claim at `start` of a manifest with `end` positions, None where there is none.

    A claim that cannot be read is given to NOBODY and reaches to the next start that is listed, or
    to the end of the manifest.
    """
    data = read_bytes(layout.claim(manifest, start))
    if data is None:
        return None
    try:
        claim = decode(data, Claim)
    except Damaged:
        pass
    else:
        is_of_this_position = claim.start == start < claim.stop <= end
        if is_of_this_position and parse_attempt(claim.attempt) is not None:
            return claim
    later = (found for found in _starts(layout, manifest) if start < found < end)
    return Claim(attempt=NOBODY, start=start, stop=min(later, default=end), at=0.0)


def claim_of(layout: Layout, manifest: str, position: int, end: int) -> tuple[Claim | None, int]:
    """(the claim on one position of a manifest with `end` positions, where the last claim at or
    before this position stops); None where nobody has claimed it.

    Claims are named by their first positions, so a listing tells which one to read, and no other is
    opened. A claim outside the chain is taken for one of it.
    """
    start = max((found for found in _starts(layout, manifest) if found <= position), default=None)
    claim = None if start is None else read_claim(layout, manifest, start, end)
    if claim is None:
        return None, 0
    return (claim if position < claim.stop else None), claim.stop


def _is_torn(data: bytes) -> bool:
    """Whether these bytes are what a power cut may leave of a claim, which is not synced.

    That is one line without its end, as far as it was written, or zeroes in its place.
    """
    return not data.endswith(b"\n") or b"\0" in data


def _starts(layout: Layout, manifest: str) -> Iterator[int]:
    """The starts of all claims that are listed, in no order."""
    for name in listdir(layout.claims(manifest)):
        start = parse_start(name)
        if start is not None:
            yield start


def _read_beyond(layout: Layout, manifest: str, start: int, end: int, most: int) -> list[Claim]:
    """The last claims, at most `most`, that start at `start` or behind it, in order."""
    starts = sorted(found for found in _starts(layout, manifest) if start <= found < end)
    claims = (read_claim(layout, manifest, found, end) for found in starts[-most:])
    return [claim for claim in claims if claim is not None]


def _publish_claim(
    layout: Layout, manifest: str, attempt: str, start: int, stop: int, number: int
) -> Claim | None:
    """Claim the positions start..stop by link(2). None: somebody claimed `start` before."""
    claim = Claim(attempt=attempt, start=start, stop=stop, at=time.time(), number=number)
    path = layout.claim(manifest, start)
    if not is_folder(path.parent):
        make_subfolder(path.parent)
    if publish(path, encode(claim), durable=False):
        return claim
    return None


class ClaimChain:
    """Every claim of one manifest, as far as this process has read them.

    It only grows, but for one thing: how far an unreadable last claim reaches is looked at anew at
    each `advance`, since a later claim may have been made behind it.
    """

    def __init__(self, layout: Layout, manifest: str, end: int) -> None:
        self.layout = layout
        self.manifest = manifest
        self.end = end
        self.claims: list[Claim] = []

    @property
    def next(self) -> int:
        """Where the next claim starts, as far as was read."""
        if not self.claims:
            return 0
        return self.claims[-1].stop

    @property
    def unclaimed(self) -> int:
        """How many positions nobody has claimed, as far as was read."""
        return self.end - self.next

    def advance(self, on_damage: OnDamage | None = None) -> ClaimChain:
        """Read on to the end of the chain; tell `on_damage` of each claim that cannot be read."""
        if self.claims and self.claims[-1].attempt == NOBODY:
            last = self.claims.pop()
            again = read_claim(self.layout, self.manifest, last.start, self.end)
            if again is not None:
                self.claims.append(again)
        while self.next < self.end:
            claim = read_claim(self.layout, self.manifest, self.next, self.end)
            if claim is None:
                break
            self.claims.append(claim)
            if claim.attempt == NOBODY and on_damage is not None:
                on_damage(self._damage(claim.start))
        return self

    def _damage(self, start: int) -> Damage:
        """What is wrong with the claim at `start`, which cannot be read."""
        path = self.layout.claim(self.manifest, start)
        data = read_bytes(path) or b""
        return Damage(str(path), 0, "not a claim of this position", is_torn=_is_torn(data))

    def last_stray(self) -> int:
        """The last position of a claim that the chain does not reach; -1 where there is none."""
        strays = _read_beyond(self.layout, self.manifest, self.next, self.end, self.end)
        return max((claim.stop for claim in strays), default=0) - 1

    def uncovered(self) -> Iterator[int]:
        """The positions beyond the chain that no claim holds. Where a claim was lost, the chain
        ends there, and what was claimed behind it is passed over here.
        """
        at = self.next
        for claim in _read_beyond(self.layout, self.manifest, self.next, self.end, self.end):
            yield from range(at, claim.start)
            at = max(at, claim.stop)
        yield from range(at, self.end)

    def take(self, attempt: str, stop: int, number: int = 0) -> Claim | None:
        """Claim the positions from `next` to `stop`. None: somebody was faster; the chain read on.

        number: how many claims the attempt has tried to make; 0 for a claim that nobody will run.
        """
        assert self.next < stop <= self.end, (self.manifest, self.next, stop, self.end)
        claim = _publish_claim(self.layout, self.manifest, attempt, self.next, stop, number)
        if claim is None:
            self.advance()
        else:
            self.claims.append(claim)
        return claim


class ChainEnd:
    """Where the next claim of one manifest starts, and who claimed last.

    It passes over most of what others claim. Where a claim in the middle is lost it passes over
    that too, and over the positions that the lost claim held: the sweep finds their tasks. A worker
    that was told of unclaimed positions which it does not see starts over with `look_closely`.
    """

    def __init__(self, layout: Layout, manifest: str, end: int) -> None:
        self.layout = layout
        self.manifest = manifest
        self.end = end
        self.next = 0
        self._is_close = False
        self._recent: list[Claim] = []

    @property
    def unclaimed(self) -> int:
        """How many positions nobody has claimed, as far as was read."""
        return self.end - self.next

    def claimers(self, attempt: str) -> int:
        """How many attempts draw from this manifest, as far as was read.

        Those are `attempt` itself and all that have claimed since it last did.
        """
        since = itertools.takewhile(lambda claim: claim.attempt != attempt, reversed(self._recent))
        others = {claim.attempt for claim in itertools.islice(since, RECENT)}
        return len(others | {attempt})

    def look(self) -> ChainEnd:
        """Read on to the end of the chain, over at most NEAR + RECENT + NEAR claims or so.

        The first few are read one after the other, which is all there is where claims are rare. If
        there are more, the folder is listed and the last RECENT of them are read. What was claimed
        since the listing is read one by one again.
        """
        if self._recent and self._recent[-1].attempt == NOBODY:
            self.next = self._recent.pop().start
        if not self._is_close:
            for _ in range(NEAR):
                if not self._step():
                    return self
            for claim in _read_beyond(self.layout, self.manifest, self.next, self.end, RECENT):
                # Else it lies inside a claim that was made to cover a lost one.
                if claim.start >= self.next:
                    self._note(claim)
        while self._step():
            pass
        return self

    def look_closely(self) -> None:
        """Read every claim from now on, from the first: there are positions nobody has claimed."""
        self._is_close = True
        self.next = 0
        self._recent = []

    def take(self, attempt: str, stop: int, number: int = 0) -> Claim | None:
        """Claim the positions from `next` to `stop`. None: somebody was faster; look again.

        number: how many claims the attempt has tried to make, with this one.
        """
        assert self.next < stop <= self.end, (self.manifest, self.next, stop, self.end)
        claim = _publish_claim(self.layout, self.manifest, attempt, self.next, stop, number)
        if claim is None:
            while self._step():
                pass
        else:
            self._note(claim)
        return claim

    def _step(self) -> bool:
        """Read the claim at `next`. False: there is none."""
        if self.next >= self.end:
            return False
        claim = read_claim(self.layout, self.manifest, self.next, self.end)
        if claim is None:
            return False
        self._note(claim)
        return True

    def _note(self, claim: Claim) -> None:
        self.next = claim.stop
        self._recent.append(claim)
        # Twice as many as are needed, so that the list is cut seldom.
        if len(self._recent) > 2 * RECENT:
            del self._recent[:-RECENT]


def claim_size(
    left: int, batch: int, seconds: tuple[float, float] | None, claimers: int = 1
) -> int:
    """How many tasks the next claim takes: whole batches, and at least one of them.

    left: unclaimed positions of the manifest. batch: tasks of one call. seconds: what the longest
    and the shortest of the tasks that are left are estimated to take. None while nothing is known:
    then one batch. claimers: how many attempts draw from this manifest.

    This is guided self-scheduling: a fraction of each claimer's share of what is left, but no more
    than a target of time. So claims are large at first and small at the end of a run.
    """
    if seconds is None:
        return min(batch, left)
    longest, shortest = seconds
    share_s = left * shortest / (LONG_FRACTION * claimers)
    target_s = min(max(TARGET_S[0], share_s), TARGET_S[1])
    fraction = FEW_FRACTION if left <= FEW * claimers else LEFT_FRACTION
    by_share = left / (fraction * claimers)
    by_time = target_s / max(longest, 1e-9)
    size = int(min(by_share, by_time))
    return min(max(size // batch, 1) * batch, left)
