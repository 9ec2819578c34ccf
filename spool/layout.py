"""Every name in a spool directory is made and parsed here, and nowhere else.

Guarantees: two different things never get the same name; a name that starts with a dot is
unfinished or private and is ignored by every reader; a name that does not parse belongs to somebody
else and is ignored too. Called by everybody who touches a spool.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import zlib
from pathlib import Path
from urllib.parse import quote

from gpuspool.spool.states import AttemptState

FORMAT_TEXT = "gpuspool 1\n"
STATES = tuple(AttemptState)
SUBDIRS = (
    "job", "manifests", "claims", "attempts", "heartbeat", "journal", *STATES, "failed-tasks", "control", "logs",
    "corrupt",
)  # fmt: skip
OUT_MARK = ".gpuspool"
PROBE_NAME = "gpuspool-doctor"  # of the hidden folder in which a file system is tried
TRACEBACK_BYTES = 16 * 1024  # of one traceback kept in a record: long enough for any real one

_ATTEMPT = re.compile(r"rank-(\d{4,})\.a(\d{2,})", re.ASCII)
_PLANNED = re.compile(r"rank-(\d{4,})", re.ASCII)
_ORPHANS = re.compile(r"(rank-\d{4,}\.a\d{2,})\.orphans", re.ASCII)
_NUMBERED = re.compile(r"(retry|sweep)-(\d{2,})", re.ASCII)
_CONTROL = re.compile(r"(drain|finished)\.(\d{4,})", re.ASCII)
_GENERATION = re.compile(r"spool-([0-9]{4,})", re.ASCII)
_HIDDEN_OUTPUT = re.compile(r"\.gpuspool-(rank-\d{4,}\.a\d{2,})-\d+", re.ASCII)
_HIDDEN = re.compile(r"\.(.+)\.(\d+)\.\d+\.[0-9a-f]{8}", re.ASCII | re.DOTALL)
_counter = itertools.count()


def rank_name(rank: int) -> str:
    """The base name of what was planned for a rank: `rank-0003`."""
    return f"rank-{rank:04d}"


def attempt_name(rank: int, number: int) -> str:
    """`rank-0003.a00`."""
    return f"{rank_name(rank)}.a{number:02d}"


def parse_attempt(name: str) -> tuple[int, int] | None:
    """(rank, attempt number) of `rank-0003.a00`, or None where the name is not one of ours."""
    match = _ATTEMPT.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def rank_of(attempt: str) -> int:
    """The rank of an attempt's name; -1 where it is no such name."""
    return (parse_attempt(attempt) or (-1, 0))[0]


def orphans_name(attempt: str) -> str:
    return f"{attempt}.orphans"


def parse_orphans(manifest: str) -> str | None:
    """The attempt whose orphans manifest this is, or None."""
    match = _ORPHANS.fullmatch(manifest)
    return match[1] if match else None


def numbered_name(kind: str, number: int) -> str:
    """`retry-01`, `sweep-01`."""
    return f"{kind}-{number:02d}"


def parse_numbered(manifest: str) -> tuple[str, int] | None:
    match = _NUMBERED.fullmatch(manifest)
    return (match[1], int(match[2])) if match else None


def is_manifest(name: str) -> bool:
    return any(p.fullmatch(name) for p in (_PLANNED, _ORPHANS, _NUMBERED))


def parse_control(name: str) -> tuple[str, int] | None:
    """("drain" or "finished", the epoch up to which it holds) of `control/drain.0002`, or None."""
    match = _CONTROL.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def generation_name(number: int) -> str:
    """The spool of one `spawn_workers` of the seed API: `spool-0003`."""
    return f"spool-{number:04d}"


def parse_generation(name: str) -> int | None:
    match = _GENERATION.fullmatch(name)
    return int(match[1]) if match else None


def encode_key(key: str) -> str:
    """A task's key as one file name: percent-encoded, at most 200 bytes, injective (long ones by
    their digest).
    """
    name = quote(key, safe=" +,=@~()[]", errors="surrogateescape")
    name = "%2E" + name[1:] if name.startswith(".") else name
    if len(name) <= 200:
        return name
    return (
        f"{name[:150]}%%{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
    )


def hidden_output(attempt: str, task: int, suffix: str) -> str:
    """The name of an output, beside its final one, until it is published."""
    return f"{OUT_MARK}-{attempt}-{task}-{suffix}"


def parse_hidden_output(name: str) -> str | None:
    """The attempt that was writing this output, or None."""
    match = _HIDDEN_OUTPUT.match(name)
    return match[1] if match else None


def hidden_name(name: str) -> str:
    """A name that nobody else uses, in the same folder as `name`, for a file that is not published
    yet.
    """
    return f".{os.fsdecode(os.fsencode(name)[:200])}.{os.getpid()}.{next(_counter)}.{os.urandom(4).hex()}"


def parse_hidden(hidden: str) -> tuple[str, int] | None:
    """(name, pid of the process that made it) of a hidden name of ours, or None where it is
    somebody else's.
    """
    match = _HIDDEN.fullmatch(hidden)
    return (match[1], int(match[2])) if match else None


class Layout:
    """The paths of one spool. Making one touches no file."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(root))

    @property
    def format(self) -> Path:
        return self.root / "FORMAT"

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def run_copy(self) -> Path:
        """A second copy of run.json: without it nothing of a spool could be read."""
        return self.root / "job" / "run.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / "orchestrator.lock"

    @property
    def holder(self) -> Path:
        return self.root / "orchestrator.json"

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def journals(self) -> Path:
        return self.root / "journal"

    @property
    def reports(self) -> Path:
        """Only where workers of the seed API run."""
        return self.root / "reports"

    @property
    def warmups(self) -> Path:
        """Only where the job has a warm-up."""
        return self.root / "warmup"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def corrupt(self) -> Path:
        return self.root / "corrupt"

    @property
    def failed_tasks(self) -> Path:
        return self.root / "failed-tasks"

    def subdir(self, name: str) -> Path:
        assert name in SUBDIRS, name
        return self.root / name

    def job_copy(self, filename: str) -> Path:
        return self.root / "job" / filename

    def manifest(self, name: str) -> Path:
        assert is_manifest(name), name
        return self.manifests / f"{name}.jsonl"

    def orphans(self, attempt: str) -> Path:
        return self.manifest(orphans_name(attempt))

    def claims(self, manifest: str) -> Path:
        assert is_manifest(manifest), manifest
        return self.root / "claims" / manifest

    def claim(self, manifest: str, start: int) -> Path:
        return self.claims(manifest) / f"{start:09d}"

    def intent(self, attempt: str) -> Path:
        return self.attempts / f"{attempt}.json"

    def heartbeat(self, attempt: str) -> Path:
        return self.root / "heartbeat" / f"{attempt}.json"

    def parent_heartbeat(self, epoch: int, host: str, pid: int) -> Path:
        """The beat of one parent, which vouches for its children. Never parses as an attempt's."""
        return self.root / "heartbeat" / f"parent-{epoch:04d}.{quote(host, safe='')}.{pid}.json"

    def journal(self, attempt: str) -> Path:
        return self.journals / f"{attempt}.jsonl"

    def report(self, attempt: str) -> Path:
        return self.reports / f"{attempt}.jsonl"

    def log(self, attempt: str) -> Path:
        return self.root / "logs" / f"{attempt}.log"

    def stacks(self, attempt: str) -> Path:
        """Where every thread of an attempt stood when its own timer ended it; else empty or
        missing.
        """
        return self.root / "logs" / f"{attempt}.stacks"

    def status(self, state: str, attempt: str) -> Path:
        assert state in STATES, state
        return self.root / state / f"{attempt}.json"

    def warmup(self, epoch: int, host: str, kernel: str, what: str) -> Path:
        """The first, second, … try of an epoch to warm a host up, or the word that it is done."""
        return (
            self.warmups
            / f"{epoch:04d}.{quote(host, safe='')}.{zlib.crc32(kernel.encode()):08x}.{what}"
        )

    def failed_task(self, key: str) -> Path:
        return self.failed_tasks / f"{encode_key(key)}.json"

    def failed_round(self, round_: int) -> Path:
        """Where the failures of an earlier round are kept once a retry has begun."""
        return self.failed_tasks / f"round-{round_}"

    def drain(self, epoch: int) -> Path:
        return self.control / f"drain.{epoch:04d}"

    def finished(self, epoch: int) -> Path:
        """The orchestrator's word that every task has a verdict, to the attempts of the epochs up
        to its own.
        """
        return self.control / f"finished.{epoch:04d}"
