"""One process's reading of a whole spool, kept up to date incrementally.

`refresh` reads in this order: manifests (and so which attempts are closed), intents, claims,
journals. Each of these only grows, so what is read later is never older than what was read before;
the sweep relies on it: a task that looks finished by nobody and held by nobody in this order really
is. A damaged or foreign file costs what it held and no more; every damage is kept in `damage`,
once.
"""

from __future__ import annotations

import re
import stat as stat_
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from gpuspool.spool.claims import Chain
from gpuspool.spool.errors import SpoolError, UsageError
from gpuspool.spool.identity import DEAD, liveness
from gpuspool.spool.journal import JournalReader
from gpuspool.spool.layout import (
    FORMAT_TEXT,
    SUBDIRS,
    Layout,
    is_manifest,
    numbered_name,
    orphans_name,
    parse_attempt,
    parse_control,
    parse_numbered,
    parse_orphans,
    rank_name,
)
from gpuspool.spool.manifest import Damage, Manifest, Report, load_manifest, planned_checksums
from gpuspool.spool.publish import is_regular, listdir, read_bytes, read_record, read_sealed
from gpuspool.spool.records import (
    Closing,
    Heartbeat,
    Identity,
    Intent,
    Job,
    JournalBrief,
    Options,
    Run,
    TaskLine,
)
from gpuspool.spool.state import Ledger

_ANOTHER_FORMAT = re.compile(rb"gpuspool \d+\n")


def load_run(layout: Layout, report: Report | None = None) -> Run:
    """run.json of a spool of our format, else its second copy; what is damaged is reported.

    Raises UsageError where there is no spool, SpoolError where it is of another format or neither
    copy is readable.
    """
    text = read_bytes(layout.format)
    run = read_sealed(layout.run, Run)
    found = run or read_sealed(layout.run_copy, Run)
    if found is None and text is None:
        what = "is not a spool: it has no FORMAT file" if layout.root.is_dir() else "does not exist"
        raise UsageError(
            f"{layout.root} {what}. Name a spool that `gpuspool run` made, or start one with it."
        )
    if text != FORMAT_TEXT.encode():
        if found is None or (text is not None and _ANOTHER_FORMAT.fullmatch(text)):
            raise SpoolError(
                f"{layout.root}: its FORMAT says {(text or b'')[:40]!r}, this version reads {FORMAT_TEXT!r}. "
                "Use the gpuspool version that wrote it."
            )
        _report(report, layout.format, "not the name of a format")
    if found is None:
        raise SpoolError(
            f"{layout.run} is missing or cannot be read, and so is its copy {layout.run_copy}. "
            "Restore one, or rename the folder and start again."
        )
    if run is None:
        _report(
            report, layout.run, f"not a run record; its copy {layout.run_copy} says what it should"
        )
    return found


def _report(report: Report | None, path: Path, reason: str) -> None:
    if report is not None:
        report(Damage(str(path), 0, reason))


def refuse_unsafe(layout: Layout) -> None:
    """Raises UsageError for a spool in which somebody else may make its owner run code, or write
    somewhere else.

    That is one that everybody may write, and one whose own folders are links.
    """
    job = layout.subdir("job")
    for path in (layout.root, layout.run, job, *map(job.joinpath, listdir(job))):
        if path.exists() and path.stat().st_mode & stat_.S_IWOTH:
            raise UsageError(
                f"{path} may be written by everybody, so its job cannot be trusted. "
                f"`chmod -R o-w {layout.root}` and look at it before you go on."
            )
    for folder in map(layout.subdir, SUBDIRS):
        if folder.is_symlink():
            raise UsageError(
                f"{folder} is a symbolic link; inside a spool none is followed. Move what it names into its place."
            )


def drain_epoch(layout: Layout) -> int:
    """The newest epoch that was told to drain, -1 if none was."""
    return _control_epoch(layout, "drain")


def finished_epoch(layout: Layout) -> int:
    """The newest epoch whose orchestrator found a verdict on every task, -1 if none did."""
    return _control_epoch(layout, "finished")


def _control_epoch(layout: Layout, word: str) -> int:
    found = filter(None, map(parse_control, listdir(layout.control)))
    return max((epoch for kind, epoch in found if kind == word), default=-1)


class Started(msgspec.Struct, frozen=True):
    """The call that an attempt is in by its last `started` line: its tasks, and how many have no
    line since.
    """

    tasks: tuple[int, ...]
    round: int
    left: int


def _is_gone(journal: JournalReader) -> bool:
    """Whether its writer is proved dead, so that it adds no line. Who was closed by somebody else
    may live.
    """
    return journal.head is not None and liveness(journal.head) == DEAD


class View:
    """`written`: the planned manifests of a spool that this process made just now; they are not
    read again.
    """

    def __init__(
        self, layout: Layout, run: Run, written: Mapping[str, bytes] | None = None
    ) -> None:
        self.layout = layout
        self.run = run
        self.ledger = Ledger(run.tasks)
        self.manifests: dict[str, Manifest] = {}
        self.chains: dict[str, Chain] = {}
        self.closed: dict[str, Closing] = {}
        self.intents: dict[str, Intent | None] = {}
        self.journals: dict[str, JournalReader] = {}
        self.started: dict[str, Started] = {}
        self.finished_by: dict[str, int] = {}
        self.failed_by: dict[str, int] = {}
        self.damage: list[Damage] = []
        self._reported: set[Damage] = set()
        self._settled: set[str] = set()
        self._planned = planned_checksums(run)
        for name, data in (written or {}).items():
            self._add_manifest(
                Manifest(
                    name, str(layout.manifest(name)), data, self.report, self._planned.get(name)
                )
            )

    def report(self, damage: Damage) -> None:
        if damage not in self._reported:
            self._reported.add(damage)
            self.damage.append(damage)

    def refresh(self) -> View:
        """Read what is new, in the order that the sweep relies on."""
        self._read_manifests()
        self._read_intents()
        for chain in self.chains.values():
            chain.advance(self.report)
        self._read_journals()
        return self

    def _read_manifests(self) -> None:
        for filename in listdir(self.layout.manifests):
            name = filename.removesuffix(".jsonl")
            if name in self.manifests or name == filename or not is_manifest(name):
                continue
            manifest = load_manifest(self.layout, name, self.report, self._planned.get(name))
            if manifest is not None:
                self._add_manifest(manifest)

    def _add_manifest(self, manifest: Manifest) -> None:
        self.manifests[manifest.name] = manifest
        self.chains[manifest.name] = Chain(self.layout, manifest.name, len(manifest))
        attempt = parse_orphans(manifest.name)
        if attempt is not None:
            self._add_closing(attempt, manifest.closing)
        self._check_manifest(manifest)
        numbered = parse_numbered(manifest.name)
        if numbered is not None and numbered[0] == "retry":
            for task in manifest.tasks():
                self.ledger.raise_round(task.task, task.round)

    def _check_manifest(self, manifest: Manifest) -> None:
        """Whether its bytes are those that were planned; else, and where nobody planned them, each
        line is checked.
        """
        if manifest.is_as_planned:
            return
        known = len(self.damage)
        for _ in manifest.tasks():
            pass
        if manifest.name in self._planned and len(self.damage) == known:
            self.report(
                Damage(
                    manifest.path, 0, "not the manifest that was planned, though each line is whole"
                )
            )

    def _add_closing(self, attempt: str, closing: Closing | None) -> None:
        if closing is None:
            closing = Closing(attempt=attempt, state="failed", reason="lost", by="unreadable")
        self.closed[attempt] = closing
        for lost in closing.lost:
            try:
                self.ledger.feed(lost.task, lost.round, "failed")
            except IndexError:
                self._refuse(self.manifests[orphans_name(attempt)].path, 0, lost.task)

    def _read_intents(self) -> None:
        for filename in listdir(self.layout.attempts):
            attempt = filename.removesuffix(".json")
            if attempt in self.intents or parse_attempt(attempt) is None:
                continue
            path = self.layout.intent(attempt)
            intent = read_sealed(path, Intent)
            if intent is None and read_bytes(path) is None:
                continue  # listed, but not to be had yet (NFS)
            self.intents[attempt] = intent
            if intent is None:
                self.report(Damage(str(path), 0, "not the intent of an attempt"))

    def _read_journals(self) -> None:
        for filename in listdir(self.layout.journals):
            attempt = filename.removesuffix(".jsonl")
            if attempt not in self.journals and attempt != filename and parse_attempt(attempt):
                self.journals[attempt] = JournalReader(self.layout, attempt, self.report)
                if not is_regular(self.layout.journal(attempt)):
                    self.report(Damage(self.journals[attempt].path, 0, "not a file"))
        for attempt, journal in self.journals.items():
            if attempt in self._settled:
                continue
            closing = self.closed.get(attempt)
            is_over = closing is not None and (closing.by == attempt or _is_gone(journal))
            self._follow(journal)
            if closing is not None:
                journal.report_torn_tail()
            if is_over:
                self._settled.add(attempt)

    def _follow(self, journal: JournalReader) -> None:
        """The loop that each finished task passes once in whoever looks at a run."""
        attempt, started, feed = journal.attempt, self.started, self.ledger.feed
        finished, failed = self.finished_by.get(attempt, 0), self.failed_by.get(attempt, 0)
        try:
            for at, line in journal.read(JournalBrief):
                state = line.state
                if state == "started":
                    tasks = (line.task, *line.batch)
                    started[attempt] = Started(tasks, line.round, len(tasks))
                    continue
                if attempt in started:
                    self._settle_started(attempt, line.task)
                if state == "deferred":
                    continue
                finished += 1
                if state == "failed":
                    failed += 1
                try:
                    feed(line.task, line.round, state)
                except IndexError:
                    self._refuse(journal.path, at, line.task)
        finally:
            self.finished_by.update({attempt: finished} if finished else {})
            self.failed_by.update({attempt: failed} if failed else {})

    def _settle_started(self, attempt: str, task: int) -> None:
        call = self.started.get(attempt)
        if call is not None and task in call.tasks:
            left = msgspec.structs.replace(call, left=call.left - 1)
            if left.left:
                self.started[attempt] = left
            else:
                del self.started[attempt]

    def _refuse(self, path: str, at: int, task: int) -> None:
        self.report(Damage(path, at, f"task {task} is none of this run's {self.run.tasks}"))

    @property
    def attempts(self) -> list[str]:
        """Every attempt that left a trace, in order of rank and number."""
        names = self.intents.keys() | self.journals.keys() | self.closed.keys()
        return sorted(names, key=lambda name: parse_attempt(name) or (0, 0))

    @property
    def open_attempts(self) -> list[str]:
        return [name for name in self.attempts if name not in self.closed]

    @property
    def unclaimed(self) -> int:
        """How many manifest places nobody has claimed."""
        return sum(chain.left for chain in self.chains.values())

    def claimed_by(self, attempt: str) -> Iterator[TaskLine]:
        """The readable task lines that an attempt claimed, finished or not."""
        for name, chain in self.chains.items():
            for claim in chain.claims:
                if claim.attempt == attempt:
                    yield from self.manifests[name].tasks(claim.start, claim.stop)

    def identity(self, attempt: str) -> Identity | None:
        """The process that an attempt is, by its journal, else its heartbeat; None if it never
        began.
        """
        journal = self.journals.get(attempt)
        if journal is not None and journal.head is not None:
            return journal.head
        return self.heartbeat(attempt)

    def heartbeat(self, attempt: str) -> Heartbeat | None:
        """An attempt's last heartbeat; None where it has none that can be read."""
        return read_record(self.layout.heartbeat(attempt), Heartbeat)

    def options_of(self, attempt: str) -> Options:
        """What an attempt was told, which may differ from what the run was."""
        intent = self.intents.get(attempt)
        return self.run.options if intent is None else intent.options

    def next_epoch(self) -> int:
        """One more than any epoch that an attempt, a drain or the word that all is finished names."""
        epochs = [intent.epoch for intent in self.intents.values() if intent is not None]
        return max([*epochs, drain_epoch(self.layout), finished_epoch(self.layout)]) + 1

    def next_number(self, rank: int) -> int:
        """The number of a rank's next attempt."""
        numbers = [
            number for r, number in filter(None, map(parse_attempt, self.attempts)) if r == rank
        ]
        return max(numbers, default=-1) + 1

    def next_numbered(self, kind: str) -> str:
        """The name of the next retry or sweep manifest."""
        numbers = [
            number for k, number in filter(None, map(parse_numbered, self.manifests)) if k == kind
        ]
        return numbered_name(kind, max(numbers, default=0) + 1)

    def missing_manifests(self) -> list[str]:
        """The planned manifests that are gone."""
        return [
            name for name in map(rank_name, range(self.run.manifests)) if name not in self.manifests
        ]

    def latest_job(self) -> Job:
        """The job of the newest epoch: --keep-done may have changed it since run.json was written."""
        intents = [intent for intent in self.intents.values() if intent is not None]
        return max(intents, key=lambda intent: intent.epoch).job if intents else self.run.job


def open_view(spool: str | Path, written: Mapping[str, bytes] | None = None) -> View:
    """A refreshed view of a spool, whose manifests may be `written` just now. Raises UsageError or
    SpoolError.
    """
    layout = Layout(spool)
    damage: list[Damage] = []
    view = View(layout, load_run(layout, damage.append), written)
    view.damage += damage
    return view.refresh()
