"""One process's reading of a whole spool, kept up to date incrementally.

`refresh` reads in this order: manifests (and so which attempts are closed), intents, claims,
journals. Each of these only grows, so what is read later is never older than what was read before.
The sweep relies on it: a task that looks finished by nobody and held by nobody in this order really
is.

A view is the one source of derived facts: which attempts there are and which are open, who claimed
what, how much is unclaimed, every verdict. `refresh` computes them and nothing else changes them,
so whatever asks, in whatever order, gets the same answers until the next refresh.

A damaged or foreign file costs what it held and no more. Every damage is kept in `damage`, once.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from gpuspool.spool.claims import NOBODY, ClaimChain
from gpuspool.spool.codec import R
from gpuspool.spool.errors import SpoolError, UsageError
from gpuspool.spool.file_system import file_system_type, is_network
from gpuspool.spool.identity import liveness
from gpuspool.spool.journal import CHUNK_BYTES, JournalReader
from gpuspool.spool.layout import (
    FORMAT_TEXT,
    OLDER_FORMATS,
    Layout,
    is_added,
    is_manifest,
    is_original,
    is_retry,
    numbered_name,
    orphans_name,
    parse_attempt,
    parse_control,
    parse_numbered,
    parse_orphans,
    parse_parent,
    rank_name,
    writer_name,
)
from gpuspool.spool.ledger import Ledger
from gpuspool.spool.manifest import Damage, Manifest, OnDamage, load_manifest, planned_checksums
from gpuspool.spool.open_folder import folder_id
from gpuspool.spool.processes import run_mark
from gpuspool.spool.publish import Owners, is_regular, listdir, read_bytes, read_record, read_sealed
from gpuspool.spool.records import (
    ZERO,
    Closing,
    ErrorBrief,
    Heartbeat,
    Identity,
    Intent,
    Job,
    JournalBrief,
    JournalLine,
    Options,
    Ruling,
    Run,
    TaskFailure,
    TaskLine,
    TimedBrief,
    Usage,
)
from gpuspool.spool.states import AttemptState, ErrorKind, Life, LineState, Reason
from gpuspool.spool.usage import last_usage

# For so long after an attempt was closed its journal is read at each look, where it may grow: a
# worker that stood still and was taken for dead may finish the task in hand before it notices.
LATE_LINES_S = 30.0
# Later than that it is read ever more seldom: after another such part of the time since then. So
# every line is found by everybody, however late, and a thousand such journals cost little.
LATE_LOOK_FRACTION = 8

# For so long a network file system may show a file, or the listing of a folder, as it was before.
# Attribute caches keep for 60 s at most by the defaults of NFS, for less elsewhere. Within this
# time, a journal that is shorter than its closing says is taken to be older than that.
STALE_S = 75.0

# Who closed an attempt whose closing cannot be read.
UNREADABLE = "unreadable"

# Looking up a member of an enum costs some 100 ns, a name of this module 20. `View._follow` needs
# these for every line of every journal.
_COMPLETE = LineState.COMPLETE
_STARTED = LineState.STARTED
_DEFERRED = LineState.DEFERRED
_HELD = LineState.HELD
_IO = ErrorKind.IO
_FAILED = LineState.FAILED
_IDLE = LineState.IDLE

_ANOTHER_FORMAT = re.compile(rb"gpuspool \d+\n")


def load_run(
    layout: Layout, on_damage: OnDamage | None = None, owners: Owners | None = None
) -> Run:
    """run.json of a spool of our format, else its second copy; tells `on_damage` what is damaged.

    owners: told who owns what was read. Raises UsageError where there is no spool, SpoolError where
    it is of another format or neither copy can be read.
    """
    text = read_bytes(layout.format)
    run = read_sealed(layout.run, Run, owners)
    found = run or read_sealed(layout.run_copy, Run, owners)
    formats = [name.encode() for name in (FORMAT_TEXT, *OLDER_FORMATS)]
    if text not in formats:
        _refuse_format(layout, text, found)
        _report(on_damage, layout.format, "not the name of a format")
    if found is None:
        raise SpoolError(
            f"{layout.run} is missing or cannot be read, and so is its copy {layout.run_copy}. "
            "Restore one, or rename the folder and start again."
        )
    if run is None:
        reason = f"not a run record; its copy {layout.run_copy} says what it should"
        _report(on_damage, layout.run, reason)
    return found


def is_of_older_format(layout: Layout) -> bool:
    """Whether a spool is of a format that this version reads, and that a start replaces."""
    return read_bytes(layout.format) in [name.encode() for name in OLDER_FORMATS]


def _refuse_format(layout: Layout, text: bytes | None, run: Run | None) -> None:
    """Raise unless a FORMAT that is not ours is only damaged: a run record of ours still tells.

    text: what stands in FORMAT, None where there is no such file.
    """
    if text is None and run is None:
        what = "does not exist"
        if layout.root.is_dir():
            what = "is not a spool: it has no FORMAT file"
        elif layout.root.exists():
            what = "is not a spool: it is no folder"
        raise UsageError(
            f"{layout.root} {what}. Name a spool that `gpuspool run` made, or start one with it."
        )
    is_another = text is not None and _ANOTHER_FORMAT.fullmatch(text) is not None
    if run is None or is_another:
        readable = " and ".join(repr(name) for name in (*OLDER_FORMATS, FORMAT_TEXT))
        raise SpoolError(
            f"{layout.root}: its FORMAT says {(text or b'')[:40]!r}, and this version reads "
            f"{readable}. Use the gpuspool version that wrote it, or a newer one."
        )


def _report(on_damage: OnDamage | None, path: Path, reason: str) -> None:
    if on_damage is not None:
        on_damage(Damage(str(path), 0, reason))


class Control(msgspec.Struct, frozen=True):
    """What control/ says. drains: the epochs that orders name. drain, finished: the newest epoch
    that this was said for, -1 for none; it holds for all before it too. leave: the epochs whose own
    parents drain them.
    """

    drains: frozenset[int] = frozenset()
    finished: int = -1
    leave: frozenset[int] = frozenset()

    @property
    def drain(self) -> int:
        return max(self.drains, default=-1)

    def stops(self, epoch: int) -> bool:
        """Whether the attempts of an epoch shall drain."""
        return self.drain >= epoch or epoch in self.leave

    @property
    def newest(self) -> int:
        """The newest epoch that is named, -1 for none."""
        return max(self.drain, self.finished, *self.leave, -1)


def read_control(layout: Layout) -> Control:
    """What control/ says now, by one listing. Raises OSError."""
    drains: set[int] = set()
    finished = -1
    leave: set[int] = set()
    for name in listdir(layout.control):
        match parse_control(name):
            case ("drain", epoch):
                drains.add(epoch)
            case ("finished", epoch):
                finished = max(finished, epoch)
            case ("leave", epoch):
                leave.add(epoch)
            case _:
                continue
    return Control(frozenset(drains), finished, frozenset(leave))


def newest_parent(layout: Layout) -> int:
    """The newest epoch that a parent has taken, -1 for none."""
    parsed = map(parse_parent, listdir(layout.parents))
    return max((one[0] for one in parsed if one is not None), default=-1)


class Started(msgspec.Struct, frozen=True):
    """The call that an attempt is in by its last `started` line.

    tasks: all that it holds. left: how many of them have no line since. start: when it began, in
    Unix seconds; 0 where that is not told.
    """

    tasks: tuple[int, ...]
    round: int
    left: int
    start: float = 0.0


class Held(msgspec.Struct, frozen=True):
    """That a task failed in an attempt, which let go of it without a verdict.

    at: where in its journal the line stands that says so; None where the attempt died of it, and
    its closing says so. completed: how many tasks it had completed by then; of one that died ask
    `View.completed_before`, since its journal is read after its closing. is_excused: a file system
    was in trouble, so that this is no opinion, neither of the task nor of the place.
    """

    attempt: str
    completed: int
    at: int | None
    is_excused: bool = False


class FailedLine(msgspec.Struct, frozen=True):
    """Where the line of a journal stands that says that a task has failed, and in which round."""

    attempt: str
    at: int
    round: int


class PutAside(msgspec.Struct, frozen=True):
    """A line of a file that names a task which the run does not have, or not yet.

    since_s: when it was read, on the monotonic clock. take: takes what it says.
    """

    path: str
    at: int
    task: int
    since_s: float
    take: Callable[[], None]


class Listener(Protocol):
    """Who hears of single lines of journals as the view reads them, to tell people of them."""

    def take(self, attempt: str, at: int, task: int, start: float, seconds: float) -> int:
        """A call with this task ended, as the line at an offset of a journal says; `start` and
        `seconds` as in a `JournalLine`. Returns the offset from which another line is wanted.
        """

    def put_off(self, attempt: str, tasks: int, start: float, seconds: float) -> None:
        """A call with so many tasks ended and gave none of them a verdict: it is called again."""

    def rest(self, attempt: str) -> None:
        """The attempt has nothing in hand from here on, until its next line."""

    def failed(self, attempt: str, at: int, error: msgspec.Raw) -> None:
        """A task failed, finally or not, as the line at an offset says."""

    def split(self, attempt: str, at: int) -> None:
        """A batch raised, as the line at an offset says, and its tasks run in parts now."""


class Claimed(msgspec.Struct, frozen=True):
    """The positions start..stop of a manifest, which one attempt claimed by its `number`th try."""

    manifest: str
    start: int
    stop: int
    number: int


def _numbers_of(kind: str, manifests: Iterable[str]) -> list[int]:
    """The numbers of those of these manifests that are of a kind, "retry" say."""
    numbers: list[int] = []
    for parsed in map(parse_numbered, manifests):
        if parsed is not None and parsed[0] == kind:
            numbers.append(parsed[1])
    return numbers


def _number(text: msgspec.Raw) -> float:
    """The number that this JSON is, 0 where it is none."""
    try:
        return msgspec.json.decode(text, type=float)
    except msgspec.DecodeError:
        return 0.0


def _is_excused(error: msgspec.Raw) -> bool:
    """Whether an error, as it stands in a `held` line, is that of a file system in trouble."""
    try:
        return msgspec.json.decode(error, type=ErrorBrief).kind == _IO
    except msgspec.DecodeError:
        return False


def _order(attempt: str) -> tuple[int, int]:
    """Attempts are told in the order of their ranks and numbers."""
    return parse_attempt(attempt) or (0, 0)


def _rank_of_line(line: FailedLine) -> tuple[int, tuple[int, int], int]:
    """Of two lines that say that a task failed, the one for which this is greater counts.

    Journals are read in the order of a listing, so it must not matter which was read first.
    """
    return line.round, _order(line.attempt), line.at


class View:
    """What stands in a spool, as of the last `refresh`. Read its attributes, never change them.

    attempts, open_attempts: names in the order of rank and number. closed: how each closed attempt
    ended. started: the call that an attempt is in. leaving: those that call their job for no task
    any more. unsettled: closed attempts whose journals may be seen longer in a moment. finished_by,
    failed_by: how many tasks an attempt finished, and how many of these failed. failed_lines: of
    tasks of which a journal says that they failed, the line of the newest round, and of several the
    last by attempt and offset. rulings: what was ruled, by manifest.
    held: by (task, round), where a task failed without a verdict. failed_in: by attempt, these
    tasks. owners: who owns the run record, the intents and the manifests that were read.
    """

    def __init__(
        self,
        layout: Layout,
        run: Run,
        *,
        reads_claims: bool = True,
        written: Mapping[str, bytes] | None = None,
    ) -> None:
        """Nothing is read before the first `refresh`.

        reads_claims: whether claims are read; who only wants verdicts saves an open for each of
        them. written: the planned manifests of a spool that this process made just now, which are
        not read again.
        """
        self.layout = layout
        self.run = run
        self.ledger = Ledger(run.tasks)
        self.manifests: dict[str, Manifest] = {}
        self.closed: dict[str, Closing] = {}
        self.intents: dict[str, Intent | None] = {}
        self.journals: dict[str, JournalReader] = {}
        self.attempts: list[str] = []
        self.open_attempts: list[str] = []
        self.started: dict[str, Started] = {}
        self.leaving: set[str] = set()
        # attempt -> the number of its last claim of which nothing is in its hand any more.
        self._released: dict[str, int] = {}
        self.finished_by: dict[str, int] = {}
        self.failed_by: dict[str, int] = {}
        self.failed_lines: dict[int, FailedLine] = {}
        self.rulings: dict[str, Ruling] = {}
        self.held: dict[tuple[int, int], list[Held]] = {}
        self.failed_in: dict[str, list[tuple[int, int]]] = {}
        # (task, round) -> how many of its failures the newest ruling knew, and those that have
        # failures of which no ruling knew.
        self._ruled: dict[tuple[int, int], int] = {}
        self._unruled: dict[tuple[int, int], None] = {}
        self.damage: list[Damage] = []
        self._damaged_paths: set[str] = set()
        self.owners: Owners = {}
        # Hears of what is read from now on.
        self.listener: Listener | None = None
        self._reads_claims = reads_claims
        self._chains: dict[str, ClaimChain] = {}
        self._claims_by: dict[str, list[Claimed]] = {}
        # manifest -> how many of its claims are in `_claims_by`
        self._n_indexed: dict[str, int] = {}
        self._unclaimed = 0
        self._known_attempts: set[str] = set()
        self._next_numbers: dict[int, int] = {}
        self._is_open_stale = False
        # Whether an attempt may have a journal that was not seen yet; at first nobody knows.
        self._may_have_begun = True
        # The closed attempts whose journals are shorter here than their closings say, and may be
        # seen whole in a moment. What they claimed counts as held: nobody knows yet what of it they
        # have finished.
        self.unsettled: frozenset[str] = frozenset()
        # The journals that are still read; of those of closed attempts, since when that is known
        # and when they are read next.
        self._followed: dict[str, JournalReader] = {}
        self._closed_at: dict[str, float] = {}
        self._next_look: dict[str, float] = {}
        # The closed attempts whose journals were not seen yet.
        self._unlisted: set[str] = set()
        self._staleness_s: float | None = None
        self._reported: set[Damage] = set()
        self._planned = planned_checksums(run)
        self._planned_names = [rank_name(rank) for rank in range(run.manifests)]
        # The manifests whose bytes are the planned ones. So long as these are all that were
        # planned, every task has a readable line, and `_described` need not be filled.
        self._trusted: list[Manifest] = []
        # The number of the newest manifest of added tasks.
        self._n_added = 0
        # Since when one of these was looked for.
        self._missed_since: dict[str, float] = {}
        # What was read of tasks that the run does not have, or not yet.
        self._lines_aside: list[PutAside] = []
        # One byte for each task: whether a manifest that was read line by line describes it.
        self._described = bytearray(run.tasks)
        for name, data in (written or {}).items():
            path = str(layout.manifest(name))
            manifest = Manifest(name, path, data, self.report, self._planned.get(name))
            self._add_manifest(manifest)

    def use_run(self, run: Run) -> None:
        """Take another reading of run.json, of the same run: OUT may have been moved since."""
        assert run.id == self.run.id
        self.run = run

    def report(self, damage: Damage) -> None:
        """Keep a damage, once."""
        if damage not in self._reported:
            self._reported.add(damage)
            self._damaged_paths.add(damage.path)
            self.damage.append(damage)

    def reread(self, attempt: str, kind: type[R]) -> Iterator[tuple[int, R]]:
        """(offset, record) of the lines of a journal, with what was appended since it was read.

        This view has checked each of these lines. So where it met no damage in this journal the
        checksums are not looked at again, which saves half of the time. Raises OSError.
        """
        reader = JournalReader(self.layout, attempt, self.report)
        is_whole = reader.path not in self._damaged_paths
        return reader.reread(kind) if is_whole else reader.read(kind)

    def refresh(self) -> View:
        """Read what is new, in the order that the sweep relies on, and derive all facts."""
        self._read_manifests()
        self._read_intents()
        if self._reads_claims:
            self._read_claims()
        self._read_journals()
        self._take_put_aside()
        self._list_open()
        self._find_unreadable()
        return self

    def _list_open(self) -> None:
        if self._is_open_stale:
            self.open_attempts = [name for name in self.attempts if name not in self.closed]
            self._is_open_stale = False

    def refresh_attempts(self) -> None:
        """Read which attempts there are by now, and nothing else."""
        self._read_intents()

    # Who is asked for a single task, or a single rank, need not read what a million lines say of
    # others. It calls these in the order in which `refresh` reads, and then knows no verdicts.

    def refresh_manifests(self) -> View:
        """Read which tasks there are, and which attempts were closed; no intent and no journal."""
        self._read_manifests()
        self._list_open()
        self._find_unreadable()
        return self

    def read_intents(self, attempts: Iterable[str]) -> None:
        """Read the intents of these attempts, as far as they were not read before."""
        for attempt in attempts:
            self._read_intent(attempt)

    def refresh_open(self) -> list[str]:
        """Read the intents of the attempts that are not closed, as of `refresh_manifests`.

        Returns these attempts.
        """
        named = (name.removesuffix(".json") for name in listdir(self.layout.attempts))
        self.read_intents(name for name in named if name not in self.closed)
        self._list_open()
        return self.open_attempts

    def lines_of(self, task: int) -> Iterator[tuple[str, int, JournalLine]]:
        """(attempt, offset, line) of each line of all journals that names a task.

        In the order of attempts, and in each of these as written. A line may name it in its `batch`
        alone. Other lines are not decoded. Raises OSError.
        """
        self._find_journals()
        self._find_unlisted()
        for attempt in [name for name in self.attempts if name in self.journals]:
            reader = self.journals[attempt]
            if reader.offset:
                reader = JournalReader(self.layout, attempt, self.report)
            for at, line in reader.find(task, JournalLine):
                if line.task == task or task in line.batch:
                    yield attempt, at, line

    def follow(self, attempts: Collection[str]) -> None:
        """Read the journals of these attempts, of those that were not read yet, as `refresh` does.

        So it is known what these attempts finished, and which call they are in.
        """
        if not attempts:
            return
        self._find_journals()
        self._find_unlisted()
        for attempt, journal in self.journals.items():
            if attempt in attempts:
                self._follow(journal)
        self._list_open()

    def again(self) -> View:
        """A view of the same spool that has read everything anew.

        It is for a second look before something is done that rests on what is *not* there. It knows
        for how long this view has waited for what its journals lack.
        """
        fresh = View(self.layout, self.run, reads_claims=self._reads_claims)
        fresh._closed_at = dict(self._closed_at)
        return fresh.refresh()

    def read_late_lines(self) -> View:
        """Refresh, and read each journal that may have grown, however long ago it was closed."""
        self._next_look.clear()
        return self.refresh()

    @property
    def staleness_s(self) -> float:
        """For how long what is seen here may be older than what other hosts have written."""
        if self._staleness_s is None:
            is_shared = is_network(file_system_type(self.layout.root))
            self._staleness_s = STALE_S if is_shared else 0.0
        return self._staleness_s

    # Manifests, and with them closings.

    def _read_manifests(self) -> None:
        found = self.unread_manifests()
        # What was added comes first: the other manifests may name its tasks.
        self._read_added(found)
        for name in found:
            if not is_added(name):
                self._load_manifest(name)
        # A planned manifest that is not listed is asked for by its name. The listing of a network
        # file system may be older than the run, and a run must not end for that.
        for name in self.missing_manifests():
            self._load_manifest(name)

    def unread_manifests(self) -> list[str]:
        """The manifests that are there and were not read yet, by one listing. Raises OSError."""
        found: list[str] = []
        for filename in listdir(self.layout.manifests):
            name = filename.removesuffix(".jsonl")
            if name not in self.manifests and name != filename and is_manifest(name):
                found.append(name)
        return found

    def _read_added(self, names: Iterable[str]) -> None:
        """Read those of these manifests that hold added tasks, in the order of their numbers.

        One that is not listed, though a later one is, is asked for by its name. As long as it may
        only be late, later ones wait for it.
        """
        newest = max(_numbers_of("added", names), default=0)
        for number in range(self._n_added + 1, newest + 1):
            name = numbered_name("added", number)
            self._load_manifest(name)
            since_s = self._missed_since.setdefault(name, time.monotonic())
            if name not in self.manifests and time.monotonic() - since_s < self.staleness_s:
                return
            self._n_added = number

    def _load_manifest(self, name: str) -> None:
        checksum = self._planned.get(name)
        manifest = load_manifest(self.layout, name, self.report, checksum, self.owners)
        if manifest is not None:
            self._add_manifest(manifest)

    def _add_manifest(self, manifest: Manifest) -> None:
        self.manifests[manifest.name] = manifest
        self._chains[manifest.name] = ClaimChain(self.layout, manifest.name, len(manifest))
        attempt = parse_orphans(manifest.name)
        if attempt is not None:
            self._add_closing(attempt, manifest.closing)
        if is_added(manifest.name):
            self._grow(manifest)
        self._check_manifest(manifest)
        if manifest.ruling is not None:
            self._add_ruling(manifest, manifest.ruling)
        if is_retry(manifest.name):
            for task in manifest.tasks():
                self._raise_round(manifest.path, task)

    def _grow(self, manifest: Manifest) -> None:
        """Take in the tasks of a manifest that was added.

        Its first line says which they are. If that is damaged there is one for each position, from
        the first index that is free on. If an earlier such manifest is gone, its tasks are in
        between, and no line describes them any more.
        """
        n_tasks = self.ledger.tasks + len(manifest)
        if manifest.added is not None:
            n_tasks = max(self.ledger.tasks, manifest.added.first + manifest.added.tasks)
        self._described.extend(bytes(n_tasks - self.ledger.tasks))
        self.ledger.grow(n_tasks - self.ledger.tasks)

    def _check_manifest(self, manifest: Manifest) -> None:
        """Read each line of a manifest whose bytes are not those that were planned.

        So its damage is told now, and not when somebody happens to ask for a task.
        """
        if manifest.is_as_planned:
            self._trusted.append(manifest)
            return
        n_damage = len(self.damage)
        self._describe(manifest)
        if manifest.name in self._planned and len(self.damage) == n_damage:
            reason = "not the manifest that was planned, though each line is whole"
            self.report(Damage(manifest.path, 0, reason))

    def _describe(self, manifest: Manifest) -> None:
        """Note the tasks that the readable lines of a manifest describe."""
        for task in manifest.tasks():
            if 0 <= task.task < self.ledger.tasks:
                self._described[task.task] = 1

    def _find_unreadable(self) -> None:
        """Tell the ledger which tasks no readable line describes any more.

        That takes a planned manifest that is damaged or gone, so the usual spool costs one
        comparison. In the other kind every manifest is read line by line, once, since any of them
        may still describe a task whose first line is destroyed.
        """
        # Where a refresh saw none of the planned manifests, and this one sees all of them, what
        # that one found is to be taken back.
        are_planned_described = len(self._trusted) == self.run.manifests
        are_added_described = self._described.find(0, self.run.tasks) < 0
        if are_planned_described and are_added_described and not self.ledger.unreadable:
            return
        for manifest in self._trusted:
            self._describe(manifest)
        self._trusted.clear()
        unreadable = set()
        task = self._described.find(0)
        while task >= 0:
            if not self.ledger.complete[task]:
                unreadable.add(task)
            task = self._described.find(0, task + 1)
        self.ledger.unreadable = frozenset(unreadable)

    def _add_closing(self, attempt: str, closing: Closing | None) -> None:
        if closing is None:
            closing = Closing(
                attempt=attempt, state=AttemptState.FAILED, reason=Reason.LOST, by=UNREADABLE
            )
        self.closed[attempt] = closing
        self._unlisted.add(attempt)
        self._add_attempt(attempt)
        self._is_open_stale = True
        path = self.manifests[orphans_name(attempt)].path
        self._add_failures(path, closing.failures)
        for opinion in closing.held:
            self._add_held(path, 0, opinion.task, opinion.round, Held(attempt, 0, None))

    def _add_failures(self, path: str, failures: Sequence[TaskFailure]) -> None:
        """Take the verdicts that stand in the first line of a manifest."""
        for failure in failures:
            self._feed(path, 0, failure.task, failure.round, LineState.FAILED)

    # Rulings, and what they are about.

    def _add_ruling(self, manifest: Manifest, ruling: Ruling) -> None:
        self.rulings[manifest.name] = ruling
        self._add_failures(manifest.path, ruling.failures)
        for task in manifest.tasks():
            key = task.task, task.round
            self._ruled[key] = max(self._ruled.get(key, 0), len(task.failed_in))
            if len(self.held.get(key, ())) <= self._ruled[key]:
                self._unruled.pop(key, None)

    def _add_held(self, path: str, at: int, task: int, round_: int, failure: Held) -> None:
        """Take that a task failed without a verdict, as the line at an offset of a file says."""
        if not 0 <= task < self.ledger.tasks:
            self._put_aside(path, at, task, lambda: self._add_held(path, at, task, round_, failure))
            return
        key = task, round_
        failures = self.held.setdefault(key, [])
        failures.append(failure)
        self.failed_in.setdefault(failure.attempt, []).append(key)
        if len(failures) > self._ruled.get(key, 0):
            self._unruled[key] = None

    # Intents.

    def _read_intents(self) -> None:
        for filename in listdir(self.layout.attempts):
            self._read_intent(filename.removesuffix(".json"))

    def _read_intent(self, attempt: str) -> None:
        """Read the intent of an attempt, unless this is no attempt's name or it was read before."""
        if parse_attempt(attempt) is None:
            return
        if attempt not in self.journals and attempt not in self.closed:
            self._may_have_begun = True
        if attempt in self.intents:
            return
        path = self.layout.intent(attempt)
        intent = read_sealed(path, Intent, self.owners)
        if intent is None and read_bytes(path, 0, 1) is None:
            return  # A network file system lists it, and cannot give it yet.
        # What belongs to another attempt says nothing of this one.
        if intent is not None and intent.attempt != attempt:
            intent = None
        self.intents[attempt] = intent
        if intent is None:
            self.report(Damage(str(path), 0, "not the intent of an attempt"))
            if not is_regular(path):
                # A folder, say. No parent links one, so by this alone nobody was started; but the
                # name is taken.
                self._note_number(attempt)
                return
        self._add_attempt(attempt)

    def _add_attempt(self, attempt: str) -> None:
        """Note an attempt that left a trace."""
        if attempt in self._known_attempts:
            return
        self._known_attempts.add(attempt)
        bisect.insort(self.attempts, attempt, key=_order)
        self._note_number(attempt)
        self._is_open_stale = True

    def _note_number(self, attempt: str) -> None:
        """Note that the number of an attempt is taken."""
        rank, number = _order(attempt)
        self._next_numbers[rank] = max(self._next_numbers.get(rank, 0), number + 1)

    # Claims.

    def _read_claims(self) -> None:
        unclaimed = 0
        for name, chain in self._chains.items():
            chain.advance(self.report)
            unclaimed += chain.unclaimed
            self._index_claims(name, chain)
        self._unclaimed = unclaimed

    def _index_claims(self, name: str, chain: ClaimChain) -> None:
        """Note whose the new claims of a manifest are.

        A last claim that belongs to NOBODY waits: the chain looks at it anew, and it may be
        replaced.
        """
        first = self._n_indexed.get(name, 0)
        for claim in chain.claims[first:]:
            if claim.attempt == NOBODY and claim is chain.claims[-1]:
                break
            first += 1
            claimed = Claimed(name, claim.start, claim.stop, claim.number)
            self._claims_by.setdefault(claim.attempt, []).append(claimed)
        self._n_indexed[name] = first

    # Journals.

    def _read_journals(self) -> None:
        if self._may_have_begun:
            self._find_journals()
        self._find_unlisted()
        now = time.monotonic()
        for attempt, journal in list(self._followed.items()):
            closing = self.closed.get(attempt)
            if closing is None:
                self._follow(journal)
            elif now >= self._next_look.get(attempt, 0.0):
                self._follow_closed(journal, closing, now)
        self._find_unsettled(now)

    # No attempt begins a journal before its intent is there. So where each has a journal that was
    # seen, or is closed, none is new, and journal/ need not be listed.
    def _find_journals(self) -> None:
        self._may_have_begun = False
        for filename in listdir(self.layout.journals):
            attempt = filename.removesuffix(".jsonl")
            if attempt in self.journals or attempt == filename or not parse_attempt(attempt):
                continue
            journal = self._add_journal(attempt)
            if not is_regular(self.layout.journal(attempt)):
                self.report(Damage(journal.path, 0, "not a file"))

    def _add_journal(self, attempt: str) -> JournalReader:
        journal = JournalReader(self.layout, attempt, self.report)
        self.journals[attempt] = journal
        self._followed[attempt] = journal
        self._add_attempt(attempt)
        return journal

    def _find_unlisted(self) -> None:
        """Ask by their names for journals of closed attempts: a listing may be older."""
        self._unlisted -= self.journals.keys()
        for attempt in sorted(self._unlisted):
            if is_regular(self.layout.journal(attempt)):
                self._add_journal(attempt)
                self._unlisted.remove(attempt)

    # A journal of a closed attempt is settled, and not read again, once two things hold. It cannot
    # grow: its attempt closed itself, or its process is proved dead. And it was read as far as the
    # closing says that it reaches. A network file system may show the closing, which is a new file,
    # and yet the journal as it was a minute ago. Whoever took that for the whole would run again
    # what was finished in the last minute.
    def _follow_closed(self, journal: JournalReader, closing: Closing, now: float) -> None:
        """Read the journal of a closed attempt, and settle it or say when to read it again."""
        attempt = journal.attempt
        # Asked before the reading: what was written after it is not read.
        is_over = closing.by == attempt
        if not is_over and journal.head is not None:
            is_over = liveness(journal.head) is Life.DEAD
        self._follow(journal)
        journal.report_torn_tail()
        if is_over and journal.offset >= (closing.journal_bytes or 0):
            del self._followed[attempt]
            self._next_look.pop(attempt, None)
            return
        waited_s = now - self._closed_at.setdefault(attempt, now)
        if waited_s > LATE_LINES_S:
            self._next_look[attempt] = now + waited_s / LATE_LOOK_FRACTION

    def _find_unsettled(self, now: float) -> None:
        """Find the closed attempts whose journals may be seen longer in a moment."""
        short: list[str] = []
        for attempt in [*self._followed, *self._unlisted]:
            closing = self.closed.get(attempt)
            if closing is None or not closing.journal_bytes:
                continue
            journal = self.journals.get(attempt)
            if journal is None or journal.offset < closing.journal_bytes:
                short.append(attempt)
        if not short and not self.unsettled:
            return
        self.unsettled = frozenset(
            attempt
            for attempt in short
            if now - self._closed_at.setdefault(attempt, now) < self.staleness_s
        )

    def _follow(self, journal: JournalReader) -> None:
        """Read the new lines of a journal.

        Whoever looks at a run passes through this loop once for each finished task. Nearly all
        lines say that a task is complete, in round 0, and nobody wants to hear of each. These are
        gathered, and the ledger takes them together.
        """
        attempt = journal.attempt
        started = self.started
        feed = self.ledger.feed
        n_tasks = self.ledger.tasks
        n_finished = self.finished_by.get(attempt, 0)
        n_failed = self.failed_by.get(attempt, 0)
        listener = self.listener
        wanted_from = math.inf if listener is None else 0
        complete: list[int] = []
        # From here on what was gathered is fed, so that of a long journal little is held.
        feed_from = journal.offset + CHUNK_BYTES
        # When the last call began that a line told of. Of all these only the last one is asked for.
        began = ZERO
        try:
            for at, line in self._briefs(journal):
                state = line.state
                is_plain = state is _COMPLETE and not line.round and attempt not in started
                if is_plain and at < wanted_from:
                    task = line.task
                    if 0 <= task < n_tasks:
                        complete.append(task)
                        n_finished += 1
                        if at >= feed_from:
                            self.ledger.feed_complete(complete)
                            complete.clear()
                            feed_from = at + CHUNK_BYTES
                        continue
                if state is _STARTED:
                    tasks = (line.task, *line.batch)
                    started[attempt] = Started(tasks, line.round, len(tasks))
                    began = line.start
                    continue
                if attempt in started:
                    self._settle_started(attempt, line.task)
                if state is _DEFERRED:
                    if line.batch:
                        started.pop(attempt, None)
                    if listener is not None and isinstance(line, TimedBrief):
                        start, seconds = _number(line.start), _number(line.seconds)
                        # Earlier versions did not tell.
                        if start:
                            listener.put_off(attempt, 1 + len(line.batch), start, seconds)
                        if line.batch:
                            listener.split(attempt, at)
                    continue
                if state is _IDLE:
                    if line.is_leaving:
                        self.leaving.add(attempt)
                        started.pop(attempt, None)
                    else:
                        self._released[attempt] = line.claims
                    if listener is not None:
                        listener.rest(attempt)
                    continue
                if at >= wanted_from and isinstance(line, TimedBrief) and listener is not None:
                    start, seconds = _number(line.start), _number(line.seconds)
                    wanted_from = listener.take(attempt, at, line.task, start, seconds)
                if state is _HELD:
                    if listener is not None:
                        listener.failed(attempt, at, line.error)
                    completed = n_finished - n_failed
                    failure = Held(attempt, completed, at, _is_excused(line.error))
                    self._add_held(journal.path, at, line.task, line.round, failure)
                    continue
                n_finished += 1
                if state is _FAILED:
                    n_failed += 1
                    self._add_failed_line(line.task, FailedLine(attempt, at, line.round))
                    if listener is not None:
                        listener.failed(attempt, at, line.error)
                try:
                    feed(line.task, line.round, state)
                except IndexError:
                    self._feed(journal.path, at, line.task, line.round, state)
        finally:
            # Also where reading raised in the middle: the lines before that are read and fed.
            self.ledger.feed_complete(complete)
            if began is not ZERO and attempt in started:
                start = _number(began)
                started[attempt] = msgspec.structs.replace(started[attempt], start=start)
            if n_finished:
                self.finished_by[attempt] = n_finished
            if n_failed:
                self.failed_by[attempt] = n_failed

    def _briefs(self, journal: JournalReader) -> Iterator[tuple[int, JournalBrief]]:
        """The new lines of a journal, with their times where somebody listens."""
        if self.listener is None:
            return journal.read(JournalBrief)
        return journal.read(TimedBrief)

    def _add_failed_line(self, task: int, line: FailedLine) -> None:
        """Note where it stands that a task has failed, if no other line tells that better."""
        known = self.failed_lines.get(task)
        if known is None or _rank_of_line(known) < _rank_of_line(line):
            self.failed_lines[task] = line

    def _settle_started(self, attempt: str, task: int) -> None:
        """A task of the call that an attempt is in has a line now."""
        call = self.started.get(attempt)
        if call is None or task not in call.tasks:
            return
        if call.left == 1:
            del self.started[attempt]
        else:
            self.started[attempt] = msgspec.structs.replace(call, left=call.left - 1)

    @property
    def cost(self) -> float:
        """The sum of the costs of all tasks."""
        added = (manifest.added for manifest in self.manifests.values())
        return self.run.cost + sum(one.cost for one in added if one is not None)

    # Lines that name a task which the run does not have.

    def _feed(self, path: str, at: int, task: int, round_: int, state: LineState) -> None:
        try:
            self.ledger.feed(task, round_, state)
        except IndexError:
            self._put_aside(path, at, task, lambda: self._feed(path, at, task, round_, state))

    def _raise_round(self, path: str, line: TaskLine) -> None:
        try:
            if line.redo:
                self.ledger.redo(line.task, line.round)
            else:
                self.ledger.raise_round(line.task, line.round)
        except IndexError:
            self._put_aside(path, 0, line.task, lambda: self._raise_round(path, line))

    def _put_aside(self, path: str, at: int, task: int, take: Callable[[], None]) -> None:
        """Put aside what a line says of a task that the run does not have, or not yet.

        take: takes it once the run has that task. Tasks may have been added, claimed and finished
        since the manifests were listed; and a network file system may show the line before the
        manifest.
        """
        self._lines_aside.append(PutAside(path, at, task, time.monotonic(), take))

    def _take_put_aside(self) -> None:
        """Take what was put aside of tasks that the run has by now, and report the rest."""
        if not self._lines_aside:
            return
        # Other manifests have to wait for the next refresh. A closing that is read now would be
        # newer than the journals: what its attempt finished last would look stranded.
        self._read_added(self.unread_manifests())
        # Nor are the claims of the added tasks read before that; until then all count as unclaimed.
        self._unclaimed = sum(chain.unclaimed for chain in self._chains.values())
        lines = self._lines_aside
        self._lines_aside = []
        for one in lines:
            if 0 <= one.task < self.ledger.tasks:
                one.take()
                continue
            self._lines_aside.append(one)
            if time.monotonic() - one.since_s >= self.staleness_s:
                self.report(Damage(one.path, one.at, f"task {one.task} is none of this run's"))

    # Questions.

    @property
    def chains(self) -> dict[str, ClaimChain]:
        """The claims of each manifest."""
        assert self._reads_claims, "this view reads no claims"
        return self._chains

    @property
    def claims_by(self) -> dict[str, list[Claimed]]:
        """What each attempt claimed, whether or not it finished any of it."""
        assert self._reads_claims, "this view reads no claims"
        return self._claims_by

    @property
    def unclaimed(self) -> int:
        """How many positions of manifests nobody has claimed."""
        assert self._reads_claims, "this view reads no claims"
        return self._unclaimed

    def claimed_by(self, attempt: str) -> Iterator[TaskLine]:
        """The readable task lines that an attempt claimed, finished or not.

        Left out are claims of which it has nothing in hand any more, by its own word. What it has
        not finished of these is stranded, whether or not the attempt lives.
        """
        for claimed in self.claims_by.get(attempt, []):
            if not self.is_released(attempt, claimed.number):
                yield from self.manifests[claimed.manifest].tasks(claimed.start, claimed.stop)

    def at_hand(self, attempt: str, most: int) -> list[TaskLine]:
        """What an open attempt is probably at: the first unfinished tasks, at most so many, of its
        last claims.
        """
        found: list[TaskLine] = []
        for claimed in reversed(self.claims_by.get(attempt, [])):
            if self.is_released(attempt, claimed.number):
                break
            tasks = self.manifests[claimed.manifest].tasks(claimed.start, claimed.stop)
            left = list(itertools.islice(filter(self._is_unfinished, tasks), most))
            if not left:
                break
            found = left
        return found

    def _is_unfinished(self, line: TaskLine) -> bool:
        return not self.ledger.is_finished_in(line.task, line.round)

    def is_released(self, attempt: str, number: int) -> bool:
        """Whether an attempt said that of its claim of this number it has nothing in hand."""
        return number <= self._released.get(attempt, -1)

    def completed(self, attempt: str) -> int:
        """How many tasks an attempt completed."""
        return self.finished_by.get(attempt, 0) - self.failed_by.get(attempt, 0)

    def completed_before(self, held: Held) -> int:
        """How many tasks an attempt had completed when this one failed in it."""
        if held.at is None:
            return self.completed(held.attempt)
        return held.completed

    def unruled(self) -> list[tuple[int, int]]:
        """The (task, round) of those that failed without a verdict, of which no ruling knows."""
        is_finished = self.ledger.is_finished_in
        return [key for key in self._unruled if not is_finished(*key)]

    def has_let_go(self, attempt: str, line: TaskLine) -> bool:
        """Whether a task failed in an attempt after that had claimed it by this line.

        An attempt may claim a task again that a file system in trouble kept from running there.
        """
        failures = self.held.get((line.task, line.round))
        if failures is None:
            return False
        n_failed = sum(one.attempt == attempt for one in failures)
        return n_failed > sum(name == attempt for name, _ in line.failed_in)

    def identity(self, attempt: str) -> Identity | None:
        """The process of an attempt, by its journal or its heartbeat; None if it never began."""
        journal = self.journals.get(attempt)
        if journal is not None and journal.head is not None:
            return journal.head
        return self.heartbeat(attempt)

    def host_of(self, attempt: str) -> str:
        """Where an attempt ran; "" where nothing tells."""
        identity = self.identity(attempt)
        intent = self.intents.get(attempt)
        if identity is None and intent is not None:
            # A worker is where its parent is.
            identity = intent.parent
        return "" if identity is None else identity.host

    def writer(self, attempt: str) -> str:
        """Who an attempt is in the hidden names of its outputs; earlier versions named it alone."""
        intent = self.intents.get(attempt)
        if intent is None:
            # It is damaged, so where the attempt ran is not known: here, in all likelihood.
            return writer_name(run_mark(self.run.id, folder_id(self.layout.root)), attempt)
        if not intent.folder:
            return attempt
        return writer_name(run_mark(self.run.id, intent.folder), attempt)

    def heartbeat(self, attempt: str) -> Heartbeat | None:
        """An attempt's last heartbeat, as it stands now; None where none can be read."""
        return read_record(self.layout.heartbeat(attempt), Heartbeat)

    def usage(self, attempt: str) -> Usage | None:
        """What an attempt told last of what it uses, as it stands now; None where it told nothing.

        Raises OSError.
        """
        return last_usage(self.layout, attempt)

    def start_of(self, attempt: str, task: int) -> float:
        """When the call of a task began that an attempt has in hand, in Unix seconds.

        By its `started` line, else by its heartbeat; 0 where neither tells. Raises OSError.
        """
        call = self.started.get(attempt)
        if call is not None and task in call.tasks and call.start:
            return call.start
        beat = self.heartbeat(attempt)
        if beat is not None and beat.task == task and beat.attempt == attempt:
            return beat.task_since or 0.0
        return 0.0

    def options_of(self, attempt: str) -> Options:
        """What an attempt was told, which may differ from what the run was."""
        intent = self.intents.get(attempt)
        if intent is None:
            return self.run.options
        return intent.options

    def next_epoch(self) -> int:
        """One more than any epoch that an intent, a parent or a file in control/ names."""
        epochs = [intent.epoch for intent in self.intents.values() if intent is not None]
        named = read_control(self.layout).newest
        return max([*epochs, named, newest_parent(self.layout)]) + 1

    def next_number(self, rank: int) -> int:
        """The number of a rank's next attempt."""
        return self._next_numbers.get(rank, 0)

    def next_numbered(self, kind: str) -> str:
        """The name of the next manifest of a kind: "added", "retry", "sweep" or "ruling"."""
        newest = max(_numbers_of(kind, self.manifests), default=0)
        return numbered_name(kind, newest + 1)

    def missing_manifests(self) -> list[str]:
        """The planned manifests that are gone."""
        return [name for name in self._planned_names if name not in self.manifests]

    def planned_tasks(self) -> Iterator[TaskLine]:
        """The tasks as they were first given out; other manifests only repeat some of them."""
        for name, manifest in self.manifests.items():
            if is_original(name):
                yield from manifest.tasks()

    def retried_tasks(self) -> Iterator[TaskLine]:
        """The tasks as retries gave them out, in the order of these."""
        for number in sorted(_numbers_of("retry", self.manifests)):
            yield from self.manifests[numbered_name("retry", number)].tasks()

    def latest_job(self) -> Job:
        """The job of the newest epoch. --keep-done may have changed it since the run was made."""
        intents = [intent for intent in self.intents.values() if intent is not None]
        if not intents:
            return self.run.job
        return max(intents, key=lambda intent: intent.epoch).job


def load_view(
    spool: str | Path, *, reads_claims: bool = True, written: Mapping[str, bytes] | None = None
) -> View:
    """A view of a spool of which no more than run.json is read; the options are those of `View`.

    Raises UsageError where there is no spool, SpoolError where it cannot be read.
    """
    layout = Layout(spool)
    damage: list[Damage] = []
    owners: Owners = {}
    run = load_run(layout, damage.append, owners)
    view = View(layout, run, reads_claims=reads_claims, written=written)
    view.owners.update(owners)
    for one in damage:
        view.report(one)
    return view


def open_view(
    spool: str | Path,
    *,
    reads_claims: bool = True,
    written: Mapping[str, bytes] | None = None,
    prepare: Callable[[View], object] | None = None,
) -> View:
    """As `load_view`, and refreshed.

    prepare: called with the view before anything is read, to make somebody its listener.
    """
    view = load_view(spool, reads_claims=reads_claims, written=written)
    if prepare is not None:
        prepare(view)
    return view.refresh()
