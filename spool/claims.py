"""Claims: who took which places of a manifest, as a chain of files.

The claim at place 0 says where it stops; the claim of that name says where the next stops; the
first name that does not exist is where the next claim starts. One link(2) makes a claim, so of two
processes that want the same start one wins and the other reads on. Claims are not fsynced: one that
a power cut empties reaches to the next listed start, is held by nobody, and the sweep finds its
tasks.
"""

from __future__ import annotations

import itertools
import time

from gpuspool.spool.codec import Damaged, decode, encode
from gpuspool.spool.layout import Layout, parse_attempt
from gpuspool.spool.manifest import Damage, Report
from gpuspool.spool.publish import listdir, publish, read_bytes
from gpuspool.spool.records import Claim

LEFT_FRACTION = (
    4  # one claim takes at most a quarter of a share of what is left: thieves always find something
)
TARGET_S = (
    0.5,
    10.0,
)  # and so much estimated work, the second in long runs: a thief or a restart waits no longer
# a run is long where this part of what a manifest has left is more than the first of the two
LONG_FRACTION = 64
RECENT = 16  # claims that are looked at to count who draws from a manifest
NEAR = 4  # claims that are read one after the other before all are listed
NOBODY = ""  # the attempt of a claim that cannot be read


def parse_start(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() else None


def read_claim(layout: Layout, manifest: str, start: int, end: int) -> Claim | None:
    """The claim at `start` of a manifest with `end` places, None where there is none.

    An unreadable one is given to NOBODY and reaches to the next listed start, else to the end.
    """
    data = read_bytes(layout.claim(manifest, start))
    if data is None:
        return None
    try:
        claim = decode(data, Claim)
        if claim.start == start < claim.stop <= end and parse_attempt(claim.attempt) is not None:
            return claim
    except Damaged:
        pass
    starts = (parse_start(name) for name in listdir(layout.claims(manifest)))
    later = [s for s in starts if s is not None and start < s < end]
    return Claim(attempt=NOBODY, start=start, stop=min(later, default=end), at=0.0)


class Chain:
    """The claims of one manifest as far as this process has read them; it only ever grows.

    With `advance` alone it holds all of them, with `skip` only those that tell where the next claim
    starts, and a few.
    """

    def __init__(self, layout: Layout, manifest: str, end: int) -> None:
        self.layout = layout
        self.manifest = manifest
        self.end = end
        self.claims: list[Claim] = []

    @property
    def next(self) -> int:
        """Where the next claim starts, as far as was read."""
        return self.claims[-1].stop if self.claims else 0

    @property
    def left(self) -> int:
        """How many places are unclaimed, as far as was read."""
        return self.end - self.next

    def drawers(self, attempt: str) -> int:
        """How many draw from this manifest now: `attempt`, and who claimed since it did so last, as
        far as was read.
        """
        recent = itertools.islice(reversed(self.claims), RECENT)
        return len(
            {
                attempt,
                *(c.attempt for c in itertools.takewhile(lambda c: c.attempt != attempt, recent)),
            }
        )

    def advance(self, report: Report | None = None) -> Chain:
        """Read on to the end of the chain, and report what cannot be read.

        How far an unreadable last claim reaches is looked at anew.
        """
        if self.claims and self.claims[-1].attempt == NOBODY:
            again = read_claim(self.layout, self.manifest, self.claims.pop().start, self.end)
            self.claims += [again] if again is not None else []
        while self.next < self.end:
            claim = read_claim(self.layout, self.manifest, self.next, self.end)
            if claim is None:
                break
            self.claims.append(claim)
            if claim.attempt == NOBODY and report is not None:
                report(
                    Damage(
                        str(self.layout.claim(self.manifest, claim.start)),
                        0,
                        "not a claim of this place",
                    )
                )
        return self

    def skip(self) -> Chain:
        """Read on to the end, but over most of what others claimed meanwhile: a thousand ranks
        cannot all read all.

        Where a claim in the middle is lost it is passed over too; the sweep, or `advance` in
        another chain, finds it.
        """
        for _ in range(NEAR):
            claim = (
                read_claim(self.layout, self.manifest, self.next, self.end)
                if self.next < self.end
                else None
            )
            if claim is None:
                return self
            self.claims.append(claim)
        for claim in self._beyond(RECENT):
            if claim.start >= self.next:  # else it lies in one that covers what was lost
                self.claims.append(claim)
        return self.advance()

    def last_stray(self) -> int:
        """The last place that is held by a claim which the chain does not reach, -1 where there is
        none.
        """
        return max((claim.stop for claim in self._beyond(self.end)), default=0) - 1

    def _beyond(self, most: int) -> list[Claim]:
        """The last claims, at most so many, that start at `next` or behind it, by a listing, in
        order.
        """
        names = map(parse_start, listdir(self.layout.claims(self.manifest)))
        starts = sorted(
            start for start in names if start is not None and self.next <= start < self.end
        )
        claims = (
            read_claim(self.layout, self.manifest, start, self.end) for start in starts[-most:]
        )
        return [claim for claim in claims if claim is not None]

    def take(self, attempt: str, stop: int) -> Claim | None:
        """Claim the places from `next` to `stop` by link(2). None: somebody was faster; advance and
        look again.
        """
        assert self.next < stop <= self.end, (self.manifest, self.next, stop, self.end)
        claim = Claim(attempt=attempt, start=self.next, stop=stop, at=time.time())
        path = self.layout.claim(self.manifest, claim.start)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
        if not publish(path, encode(claim), durable=False):
            self.advance()
            return None
        self.claims.append(claim)
        return claim


def claim_size(left: int, batch: int, seconds: tuple[float, float] | None, drawers: int = 1) -> int:
    """How many tasks the next claim takes: guided, in whole batches, at least one batch.

    A fixed fraction of what is left for each of those who draw from the manifest, and a target of
    time; one batch while the rate is unknown. `seconds` are those of the first and the last task
    that is left: the longest and the shortest, since every manifest is longest first.
    """
    if seconds is None:
        return min(batch, left)
    target = min(max(TARGET_S[0], left * seconds[1] / (LONG_FRACTION * drawers)), TARGET_S[1])
    size = int(min(left / (LEFT_FRACTION * drawers), target / max(seconds[0], 1e-9)))
    return min(max(size // batch, 1) * batch, left)
