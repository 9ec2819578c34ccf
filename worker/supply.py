"""Where the next tasks come from: the rank's own manifest first, then somebody else's.

A worker claims from its own manifest as long as that has plenty left. Near its end it looks, before
each claim, at its own and at two others chosen at random, and claims from the fullest: so all
manifests come to their ends together, and a long task at the end of one of them begins in time.
Before it gives up it looks at every manifest that there is.

Claims are sized by `claim_size`: small enough that the end of a run is shared, large enough that
claims are rare.

**Doubtful tasks**, which failed somewhere and have no verdict, are claimed one at a time. They wait
in the manifests of rulings, and behind the others in those of closed attempts. A process takes one
only right after it completed a task, so that it is known to be in order: then a failure tells of
the task, and the next task that completes confirms it. Only where nothing else is left is a
doubtful task taken without that. Never is one taken by the attempt in which it failed (unless a
file system was to blame), and by another attempt on the same device only if nobody else took it for
a while: at first if another device has failed it since, and at last in any case. One that has taken
two processes along without a verdict, or one process on the CPU, is tried as the first task of a
process or not at all: only a fresh process tells more of it, since another may have been about to
break, and each try costs a process anyway.

**Few manifests are in memory.** A manifest stays a file until it is looked at. Beside the rank's
own only so many are kept as have MOST_LOADED tasks together, and one without unclaimed positions is
forgotten for good, since claims only ever become more. A rank that loaded all manifests at its
first steal would hold a whole run: 52 MB at 400,000 tasks on 64 ranks, where it now loads three of
them, 1 MB. tests/test_supply.py counts what is loaded.
"""

from __future__ import annotations

import bisect
import random
import time
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from gpuspool.spool.claims import ChainEnd, claim_size
from gpuspool.spool.layout import Layout, is_manifest, may_offer_doubtful, rank_name
from gpuspool.spool.manifest import Manifest, OnDamage, is_doubtful, load_manifest
from gpuspool.spool.publish import listdir
from gpuspool.spool.records import TaskLine, is_cpu

# A rank whose own manifest has no more than so many batches left helps others that have more. Four:
# later a long task at the end of another manifest would begin too late, earlier costs listings.
TAIL_BATCHES = 4
# So many other manifests are compared with the own one. Two random ones are nearly as good as all
# ("the power of two choices"), and cost as much on a thousand ranks as on three.
SAMPLE = 2
# Nothing is claimed early (for inputs that are loaded ahead) from a manifest with no more than so
# many batches left for each that claims from it: a rank without work would miss it.
AHEAD_BATCHES = 2
# Manifests of others with so many tasks together are kept in memory; those looked at least recently
# go first. A line has some 130 bytes, so this is 32 MB, about what an interpreter needs. Where one
# has to be loaded again that takes a millisecond, and a claim is made for half a second or more.
MOST_LOADED = 250_000
# A worker that has plenty of its own looks for doubtful tasks that wait for a second opinion. They
# should not wait for the end of the run. The pauses between its looks double from the first to the
# last of these, in seconds: where many processes die one after the other, as in a block of inputs
# that crash, the others wait for what a young one finds out; and a listing every two seconds costs
# little in a run of thousands of ranks.
FIRST_LOOK_S = 0.1
LOOK_EVERY_S = 2.0

# So many processes a task has taken along before only a fresh one may try it: on the CPU, and where
# another device should try it first.
FRESH_FROM_ON_CPU = 1
FRESH_FROM = 2

# Doubtful tasks that failed on this device, or in this very attempt, are left to others for so many
# seconds, and for up to so many times that. Another device's opinion is worth more, but nobody may
# be there to give it.
LEFT_TO_OTHERS_S = 2.0
MOST_TIMES_LEFT = 3


def weight(task: TaskLine) -> float:
    """What a task counts for in rates: its cost, or 1 where that is 0, as of an empty file."""
    return task.cost or 1.0


class Rate:
    """Seconds for each unit of cost on this rank.

    It forgets by halves, so that claims fit what the rank does now.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._cost = 0.0

    def add(self, seconds: float, cost: float) -> None:
        """Tasks of so much cost took so long."""
        self._seconds += seconds
        self._cost += cost

    def learn(self) -> float | None:
        """The rate for the next claim, None while nothing is known. What it rests on is halved."""
        if self._cost <= 0:
            return None
        rate = self._seconds / self._cost
        self._seconds /= 2
        self._cost /= 2
        return rate


class Source(msgspec.Struct, frozen=True):
    """A manifest that has unclaimed positions, as far as was read."""

    manifest: Manifest
    chain: ChainEnd

    def doubtful(self) -> TaskLine | None:
        """The next task, if it is doubtful; None otherwise."""
        if self.manifest.is_as_planned:
            return None
        task = self.manifest.task(self.chain.next)
        if task is None or not is_doubtful(task):
            return None
        return task

    def n_sound(self, most: int) -> int:
        """How many of the next positions, at most so many, come before the first doubtful task.

        In every manifest the doubtful tasks stand behind the others.
        """
        if self.manifest.is_as_planned:
            return most
        positions = range(self.chain.next, self.chain.next + most)
        return bisect.bisect_left(positions, True, key=self._is_doubtful)

    def _is_doubtful(self, position: int) -> bool:
        task = self.manifest.task(position)
        return task is not None and is_doubtful(task)

    def cost_left(self) -> float:
        """An estimate of the cost of all tasks that are left: as if each were as long as the next.

        Of the next two one is the longest of all, so the estimate is too high rather than too low.
        """
        next_ = self.chain.next
        positions = range(next_, min(next_ + 2, self.chain.end))
        # Others may have taken the last ones since somebody looked.
        nearest = max(map(self._cost, positions), default=0.0)
        return self.chain.unclaimed * nearest

    def seconds(self, seconds_per_cost: float | None) -> tuple[float, float] | None:
        """How long the longest and the shortest task left will take; None without a rate."""
        if seconds_per_cost is None:
            return None
        # Every fourth task of a planned manifest comes from its cheap end, so the longest and the
        # shortest that are left are among the next four.
        next_ = self.chain.next
        costs = [self._cost(position) for position in range(next_, min(next_ + 4, self.chain.end))]
        costs.append(self._cost(self.chain.end - 1))
        return seconds_per_cost * max(costs), seconds_per_cost * min(costs)

    def _cost(self, position: int) -> float:
        task = self.manifest.task(position)
        if task is None:
            # It cannot be read, so nothing is known of it.
            return 1.0
        return weight(task)


class Supply:
    """Claims tasks for one attempt."""

    def __init__(
        self,
        layout: Layout,
        rank: int,
        attempt: str,
        on_damage: OnDamage,
        steals: bool = True,
        device: str = "",
        planned: Mapping[str, int] | None = None,
    ) -> None:
        """steals: whether tasks that were planned for other ranks may be claimed. device: of this
        rank, as `Intent.place` names it. planned: the
        checksums of the manifests that the run began with, by name.
        """
        self.layout = layout
        self.attempt = attempt
        self._on_damage = on_damage
        self._steals = steals
        self._planned = planned or {}
        self._device = device
        self._is_on_cpu = is_cpu(device)
        # How often this attempt has given in, to take tasks that had better be tried elsewhere.
        self._times_given_in = 0
        # Of each manifest the last position passed over with a doubtful task, and since when.
        self._passed_over: dict[str, tuple[int, float]] = {}
        # Whether the last look passed over doubtful tasks that this attempt must not take, or not
        # yet.
        self.leaves_doubtful = False
        # From when on doubtful tasks are looked for again, and how long the pause after that is.
        self._next_look = 0.0
        self._look_pause_s = FIRST_LOOK_S
        # Whether this process had tried no task yet at the last look.
        self._is_fresh = False
        # Whether all that was passed over then needs a process that has tried none. It says nothing
        # where nothing was passed over.
        self.needs_fresh = False
        self._own = rank_name(rank)
        # Whether every claim is read, or only as many as tell where the next one starts.
        self._is_close = False
        # All manifests that were listed so far, in that order. A dict, to be asked for one quickly.
        self._names: dict[str, None] = {}
        # Those in which nothing is unclaimed. They are not looked at again.
        self._exhausted: set[str] = set()
        # The ends of the chains of those that were looked at and have unclaimed positions.
        self._chains: dict[str, ChainEnd] = {}
        # The manifests in memory, those looked at most recently last.
        self._loaded: dict[str, Manifest] = {}
        # How many tasks the held manifests of others have together.
        self._n_loaded = 0
        # How many claims this attempt has tried to make, whatever came of it.
        self.claims_tried = 0

    def take(
        self,
        batch: int,
        seconds_per_cost: float | None,
        is_ahead: bool = False,
        is_proven: bool = False,
        is_fresh: bool = False,
        most: int | None = None,
    ) -> Iterator[TaskLine] | None:
        """Claim by link(2): the tasks of one new claim, or None where nothing is unclaimed.

        There may be no task in a claim, if none of its lines can be read. batch: tasks of one call.
        seconds_per_cost: None while no rate is known. is_ahead: there is still work in hand; then a
        claim is made only where so much is left that nobody will miss it. is_proven: the last task
        completed, or nothing speaks against this place yet, so a doubtful one may come next.
        is_fresh: no task was tried here so far. most: so many tasks are wanted, and no more claimed
        than make whole batches.
        """
        self.leaves_doubtful = False
        self._is_fresh = is_fresh
        self.needs_fresh = not is_fresh
        is_time = self._steals and not is_ahead and time.monotonic() >= self._next_look
        if is_time and is_proven:
            found = self._take_doubtful(self._offering_doubtful(), is_for_fresh=is_fresh)
            if found is not None:
                return found
            self._next_look = time.monotonic() + self._look_pause_s
            self._look_pause_s = min(2 * self._look_pause_s, LOOK_EVERY_S)
        doubtful: list[Source] = []
        for source in self._candidates(batch):
            chain = source.chain
            while chain.unclaimed:
                if source.doubtful() is not None:
                    doubtful.append(source)
                    break
                claimers = chain.claimers(self.attempt)
                if is_ahead and chain.unclaimed <= AHEAD_BATCHES * batch * claimers:
                    return None
                size = claim_size(
                    chain.unclaimed, batch, source.seconds(seconds_per_cost), claimers
                )
                if most is not None:
                    size = min(size, -(-most // batch) * batch)
                start = chain.next
                found = self._claim(source, source.n_sound(size))
                if found is not None:
                    return found
                if chain.next == start:
                    break
        if is_ahead:
            return None
        if not (is_fresh and is_proven):
            # What completes here proves what failed here before, and a task that takes its process
            # along completes in none. Without this order each process would begin with the same.
            doubtful.sort(key=self._begins_with_deadly)
        return self._take_doubtful(doubtful)

    def _begins_with_deadly(self, source: Source) -> bool:
        """Whether the next task of a manifest is one that only a fresh process should try."""
        task = source.doubtful()
        return task is not None and self._wants_fresh(task)

    def _offering_doubtful(self) -> Iterator[Source]:
        """The manifests whose next unclaimed task is doubtful, of those that were published."""
        self._discover()
        for name in list(self._names):
            if name not in self._exhausted and may_offer_doubtful(name):
                source = self._look_at(name)
                if source is not None and source.doubtful() is not None:
                    yield source

    def _take_doubtful(
        self, sources: Iterable[Source], is_for_fresh: bool = False
    ) -> Iterator[TaskLine] | None:
        """Claim one doubtful task that this attempt may try, None where there is none.

        is_for_fresh: only one that needs a fresh process.
        """
        for source in sources:
            chain = source.chain
            while chain.unclaimed:
                task = source.doubtful()
                if task is None or (is_for_fresh and not self._wants_fresh(task)):
                    break
                if not self._may_try(task, self._leave(source)):
                    self.leaves_doubtful = True
                    self.needs_fresh &= self._wants_fresh(task)
                    break
                start = chain.next
                found = self._claim(source, 1)
                if found is not None:
                    return found
                if chain.next == start:
                    break
        return None

    def _claim(self, source: Source, n_positions: int) -> Iterator[TaskLine] | None:
        """Claim so many of the next positions by link(2); returns their tasks.

        None: somebody was faster, and the chain was read on. Where it even so begins where it did,
        that claim cannot be seen yet, as on a network file system that remembers for a while what
        it did not find. Then there may be work in another manifest.
        """
        self.claims_tried += 1
        stop = source.chain.next + n_positions
        claim = source.chain.take(self.attempt, stop, self.claims_tried)
        if claim is None:
            return None
        return source.manifest.tasks(claim.start, claim.stop)

    def give_in(self) -> bool:
        """Nobody took the tasks that had better be tried elsewhere: take more of them from now on.

        False: all that there are, but those that failed in this very attempt, are taken already; or
        all need a fresh process, so that it is of no use to wait on.
        """
        if self.needs_fresh:
            return False
        self._times_given_in += 1
        return self._times_given_in <= MOST_TIMES_LEFT

    def _leave(self, source: Source) -> int:
        """Leave the next task of a manifest to others, for now.

        Returns how many times LEFT_TO_OTHERS_S they have had already, from the first look on that
        met this task.
        """
        name, position = source.manifest.name, source.chain.next
        now = time.monotonic()
        passed, since = self._passed_over.get(name, (-1, now))
        if passed != position:
            since = now
        self._passed_over[name] = position, since
        return max(self._times_given_in, int((now - since) / LEFT_TO_OTHERS_S))

    def _may_try(self, task: TaskLine, times_left: int) -> bool:
        """Whether this attempt may give another opinion of a doubtful task.

        times_left: how many times LEFT_TO_OTHERS_S it was left to others.
        """
        # Where a file system in trouble was to blame, no device is named, and nobody is kept away.
        devices = [device for _, device in task.failed_in if device]
        if any(attempt == self.attempt and device for attempt, device in task.failed_in):
            return False
        if self._wants_fresh(task) and not self._is_fresh:
            return False
        if self._is_on_cpu or self._device not in devices:
            return True
        # The more often this device has tried it, the longer it is left to others. So of several
        # such tasks a device takes the one that it tried least. Devices that take two tasks in turn
        # would else never exchange them. At first any fresh process will do.
        wanted = devices.count(self._device)
        if self._wants_fresh(task) and len(set(devices)) > 1 and wanted < MOST_TIMES_LEFT:
            return True
        if devices[-1] == self._device:
            wanted = max(wanted, 2)
        return times_left >= min(wanted, MOST_TIMES_LEFT)

    def _wants_fresh(self, task: TaskLine) -> bool:
        """Whether only a fresh process tells more of a task, which takes its processes along."""
        least = FRESH_FROM_ON_CPU if self._is_on_cpu else FRESH_FROM
        return task.careful and sum(bool(device) for _, device in task.failed_in) >= least

    def look_closely(self) -> None:
        """From now on read every claim of every manifest, from the first on.

        For a worker that was told of positions which nobody has claimed, and did not see them: they
        lie behind a claim that was lost and that it passed over.
        """
        self._is_close = True
        self._exhausted.clear()
        self._chains.clear()

    def _candidates(self, batch: int) -> Iterator[Source]:
        """Manifests with unclaimed positions, in the order in which they are to be tried.

        Each is looked at only when it is asked for, so that a worker which finds something at once
        reads nothing else.
        """
        own = self._look_at(self._own)
        if own is not None and (not self._steals or own.chain.unclaimed > TAIL_BATCHES * batch):
            yield own
        if not self._steals:
            return
        self._discover()
        others = self._others()
        near = []
        for source in others:
            near.append(source)
            if len(near) == SAMPLE:
                break
        if own is not None:
            near.insert(0, own)
        yield from sorted(near, key=Source.cost_left, reverse=True)
        yield from others

    def _others(self) -> Iterator[Source]:
        """The manifests of others that have unclaimed positions, in random order."""
        names = [name for name in self._names if name != self._own and name not in self._exhausted]
        while names:
            # Drawn one by one rather than shuffled, since mostly two of a thousand are wanted.
            drawn = random.randrange(len(names))
            name = names[drawn]
            names[drawn] = names[-1]
            names.pop()
            source = self._look_at(name)
            if source is not None:
                yield source

    def _look_at(self, name: str) -> Source | None:
        """Read on in the claims of a manifest.

        None where nothing is unclaimed any more, or there is no such manifest.
        """
        if name in self._exhausted:
            return None
        manifest = self._manifest(name)
        if manifest is None:
            return None
        if name not in self._chains:
            self._chains[name] = self._new_chain(name, len(manifest))
        chain = self._chains[name].look()
        if chain.unclaimed:
            return Source(manifest, chain)
        self._exhausted.add(name)
        del self._chains[name]
        self._let_go(name)
        return None

    def _discover(self) -> None:
        """List the manifests. New ones come by closings, rulings, retries and sweeps."""
        for filename in listdir(self.layout.manifests):
            name = filename.removesuffix(".jsonl")
            if name not in self._names and name != filename and is_manifest(name):
                self._names[name] = None

    def _manifest(self, name: str) -> Manifest | None:
        """A manifest, loaded unless it is in memory; None where it is not there."""
        manifest = self._loaded.pop(name, None)
        if manifest is not None:
            self._loaded[name] = manifest
            return manifest
        planned = self._planned.get(name)
        manifest = load_manifest(self.layout, name, self._on_damage, planned)
        if manifest is None:
            return None
        self._loaded[name] = manifest
        if name != self._own:
            self._n_loaded += len(manifest)
            self._forget_oldest(name)
        return manifest

    def _forget_oldest(self, newest: str) -> None:
        """Forget manifests of others until those that are held are few; never the newest."""
        if self._n_loaded <= MOST_LOADED:
            return
        for name in list(self._loaded):
            if self._n_loaded <= MOST_LOADED:
                return
            if name not in (self._own, newest):
                self._let_go(name)

    def _let_go(self, name: str) -> None:
        """Forget a manifest that is held."""
        manifest = self._loaded.pop(name)
        if name != self._own:
            self._n_loaded -= len(manifest)

    def _new_chain(self, name: str, end: int) -> ChainEnd:
        chain = ChainEnd(self.layout, name, end)
        if self._is_close:
            chain.look_closely()
        return chain
