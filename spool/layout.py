"""Every name in a spool directory is made and parsed here, and nowhere else.

Guarantees: two different things never get the same name. A name that starts with a dot is
unfinished or private, and every reader ignores it. A name that does not parse belongs to somebody
else, and is ignored too. Called by every module that touches a spool.
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

# The content of FORMAT, which is read before anything else.
FORMAT_TEXT = "gpuspool 2\n"
# Of spools that this version reads, and makes one of its own format when it goes on with them.
OLDER_FORMATS = ("gpuspool 1\n",)

# The folders of status records, one for each state of a closed attempt.
STATES = tuple(AttemptState)

# The folders that every spool has. Those that only some have are made when they are needed.
SUBDIRS = (
    "job", "manifests", "claims", "attempts", "parents", "beats", "heartbeat", "journal", *STATES,
    "failed-tasks", "control", "events", "usage", "logs", "corrupt",
)  # fmt: skip

# Those of them that spools of format 1 do not have before a start makes them.
SINCE_FORMAT_2 = ("parents", "beats", "events")

# Those of them that nobody needs. Spools of earlier versions lack them, and whoever wants to write
# there makes them.
DISPENSABLE = ("usage",)

# The file that marks a folder of outputs as ours, and the beginning of the names of unfinished
# outputs.
OUT_MARK = ".gpuspool"

# `gpuspool doctor` tries a file system in hidden folders that are named after this.
PROBE_NAME = "gpuspool-doctor"

# At most so many bytes of a traceback are kept in a record. That is longer than any real one, and
# bounds what a runaway recursion can write into a journal.
TRACEBACK_BYTES = 16 * 1024

# A larger result fails its task: the journal is for verdicts and summaries, outputs are for data.
RESULT_BYTES = 1024 * 1024

# A task's key that takes more bytes than this as a file name is cut. A file name may take 255, and
# hidden names and suffixes add to it.
_KEY_BYTES = 200
# Of a key that is cut so many bytes stay readable, in front of its digest.
_KEY_BYTES_LEFT = 150

# What an attempt's name looks like. No number of ours has more than nine digits: a name with more
# was made up, and names that are made from it, or the next number after it, might be too long for a
# file.
ATTEMPT_PATTERN = r"rank-[0-9]{4,9}\.a[0-9]{2,9}"

_ATTEMPT = re.compile(r"rank-(\d{4,9})\.a(\d{2,9})", re.ASCII)
_PLANNED = re.compile(r"rank-(\d{4,9})", re.ASCII)
_ORPHANS = re.compile(rf"({ATTEMPT_PATTERN})\.orphans", re.ASCII)
_NUMBERED = re.compile(r"(added|retry|sweep|ruling)-(\d{2,9})", re.ASCII)
_CONTROL = re.compile(r"(drain|leave|finished)\.(\d{4,9})", re.ASCII)
_PARENT = re.compile(r"(\d{4,9})(\.end)?\.json", re.ASCII)
_BEAT = re.compile(rf"({ATTEMPT_PATTERN}|\d{{4,9}})\.(\d{{1,9}})", re.ASCII)
_CODE = re.compile(r"code-([0-9a-f]{32})\.json", re.ASCII)
_GENERATION = re.compile(r"spool-([0-9]{4,9})", re.ASCII)
_SLURM_SCRIPT = re.compile(r"([0-9]{4,9})\.sh", re.ASCII)
_HIDDEN_OUTPUT = re.compile(
    rf"\.gpuspool-((?:[0-9a-f]+\.\d+\.\d+-)?{ATTEMPT_PATTERN})-\d+", re.ASCII
)
_HIDDEN = re.compile(r"\.(.+)\.(\d+)\.\d+\.[0-9a-f]{8}", re.ASCII | re.DOTALL)

# What the name of a job's copy looks like: one plain name, so that the copy lies in job/ and
# nowhere else. It is not hidden, and not that of the record which lies there too.
COPY_PATTERN = r"(?![.])(?!run[.]json\Z)[^/\x00]{1,255}"

# The longest name that the file systems in use take, in bytes.
NAME_BYTES = 255

# The longest path that the system takes, in bytes.
PATH_BYTES = 4095

# Parts of a path that name no file of their own. With one of them a key could lead out of OUT, or
# two keys could lead to one place.
_NO_NAMES = frozenset({"", ".", ".."})

# The control characters of ASCII and Latin-1: in a name they garble terminals and listings.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# Tells apart the hidden names that this process makes.
_counter = itertools.count()


# Attempts and manifests.


def rank_name(rank: int) -> str:
    """The base name of what was planned for a rank: `rank-0003`."""
    return f"rank-{rank:04d}"


def attempt_name(rank: int, number: int) -> str:
    """The name of an attempt: `rank-0003.a00`."""
    return f"{rank_name(rank)}.a{number:02d}"


def parse_attempt(name: str) -> tuple[int, int] | None:
    """(rank, number) of an attempt's name, None where the name is not one."""
    match = _ATTEMPT.fullmatch(name)
    if match is None:
        return None
    return int(match[1]), int(match[2])


def rank_of(attempt: str) -> int:
    """The rank in an attempt's name, -1 where the name is not one."""
    parsed = parse_attempt(attempt)
    if parsed is None:
        return -1
    return parsed[0]


def orphans_name(attempt: str) -> str:
    """The manifest that closes an attempt: `rank-0003.a00.orphans`."""
    return f"{attempt}.orphans"


def parse_orphans(manifest: str) -> str | None:
    """The attempt that this manifest closes, None where it is no orphans manifest."""
    match = _ORPHANS.fullmatch(manifest)
    if match is None:
        return None
    return match[1]


def numbered_name(kind: str, number: int) -> str:
    """The name of a manifest of kind "added", "retry", "sweep" or "ruling": `retry-01`."""
    return f"{kind}-{number:02d}"


def parse_numbered(manifest: str) -> tuple[str, int] | None:
    """(kind, number) of the name of one that is neither planned nor an attempt's; else None."""
    match = _NUMBERED.fullmatch(manifest)
    if match is None:
        return None
    return match[1], int(match[2])


def is_planned(manifest: str) -> bool:
    """Whether a manifest is one of those that the run began with."""
    return _PLANNED.fullmatch(manifest) is not None


def parse_planned(manifest: str) -> int | None:
    """The rank that a manifest was planned for, None where it is no planned one."""
    match = _PLANNED.fullmatch(manifest)
    if match is None:
        return None
    return int(match[1])


def is_ruling(manifest: str) -> bool:
    """Whether a manifest is one of the orchestrator's rulings."""
    return manifest.startswith("ruling-")


def is_added(manifest: str) -> bool:
    """Whether a manifest holds tasks that were added to the run."""
    return manifest.startswith("added-")


def is_original(manifest: str) -> bool:
    """Whether a manifest gives out its tasks for the first time; the others repeat some of them."""
    return is_planned(manifest) or is_added(manifest)


def is_retry(manifest: str) -> bool:
    """Whether a manifest gives tasks another round."""
    return manifest.startswith("retry-")


def may_offer_doubtful(manifest: str) -> bool:
    """Whether tasks of a manifest may have failed in their round before it was published.

    Those of a planned manifest and added ones were never tried, and those of a retry have just
    begun a round.
    """
    return not (is_original(manifest) or is_retry(manifest))


def is_manifest(name: str) -> bool:
    """Whether this is the name of a manifest: planned, orphans, added, retry, sweep or ruling."""
    return any(pattern.fullmatch(name) for pattern in (_PLANNED, _ORPHANS, _NUMBERED))


# Other names.


def parse_code(filename: str) -> str | None:
    """The name of a record of code, by that of its file in job/; None for other files."""
    match = _CODE.fullmatch(filename)
    if match is None:
        return None
    return match[1]


def parse_control(name: str) -> tuple[str, int] | None:
    """("drain", "leave" or "finished", epoch) of a name in control/, such as `drain.0002`; else
    None.

    "drain" and "finished" hold for all epochs up to that one, "leave" for that one alone.
    """
    match = _CONTROL.fullmatch(name)
    if match is None:
        return None
    return match[1], int(match[2])


def epoch_name(epoch: int) -> str:
    """An epoch, and so its parent, in names of files: `0007`."""
    return f"{epoch:04d}"


def parse_parent(filename: str) -> tuple[int, bool] | None:
    """(epoch, whether it tells of its end) of a file in parents/; None for other names."""
    match = _PARENT.fullmatch(filename)
    if match is None:
        return None
    return int(match[1]), match[2] is not None


def parse_beat(filename: str) -> tuple[str, int] | None:
    """(whose, number) of a file in beats/: of an attempt, or of an epoch's parent. Else None."""
    match = _BEAT.fullmatch(filename)
    if match is None:
        return None
    return match[1], int(match[2])


def parse_slurm_script(filename: str) -> int | None:
    """The number of a batch script, by the name of its file in slurm/; None for other files."""
    match = _SLURM_SCRIPT.fullmatch(filename)
    if match is None:
        return None
    return int(match[1])


def generation_name(number: int) -> str:
    """The spool of one `spawn_workers` of the seed API: `spool-0003`."""
    return f"spool-{number:04d}"


def parse_generation(name: str) -> int | None:
    """The number in the name of such a spool, None where the name is not one."""
    match = _GENERATION.fullmatch(name)
    if match is None:
        return None
    return int(match[1])


def encode_key(key: str) -> str:
    """A task's key as one file name, which no other key gets.

    The key is percent-encoded, so that no name holds a slash or begins with a dot. Of a key that is
    too long for that the beginning stays, followed by `%%` and a digest of all of it; no short key
    is encoded with `%%`.
    """
    name = quote(key, safe=" +,=@~()[]", errors="surrogateescape")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) <= _KEY_BYTES:
        return name
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{name[:_KEY_BYTES_LEFT]}%%{digest[:32]}"


def leads_out(path: str) -> str | None:
    """Why a path is none that lies below OUT; None where it is one.

    Keys and the names of outputs are such paths. They are asked when a run is made, and again where
    they are read of a record, which somebody else may have written.
    """
    if path.startswith("/"):
        return "is absolute; outputs go below OUT"
    if not _NO_NAMES.isdisjoint(path.split("/")):
        return "has an empty part, '.' or '..'; outputs go below OUT"
    if "\0" in path:
        return "holds a zero byte"
    return None


def refuse_output(name: str) -> str | None:
    """Why a name in a record is not that of an output below OUT; None where it can be."""
    parts = os.fsencode(name).split(b"/")
    if max(map(len, parts)) > NAME_BYTES or len(name) > PATH_BYTES:
        return "is longer than any file's"
    return leads_out(name)


def refuse_key(key: str) -> str | None:
    """Why a key cannot be the path of an output; None where it can."""
    reason = leads_out(key)
    if reason is not None:
        return reason
    if _CONTROL_CHARACTER.search(key):
        return "holds control characters"
    if any(part.startswith(OUT_MARK) for part in key.split("/")):
        return f"begins with {OUT_MARK}, which gpuspool keeps for itself"
    return None


def copy_name(source: str, sha256: str = "") -> str:
    """The name in job/ of the copy of a source file with this name.

    sha256: of a source that changed; its beginning tells the copy from the first one.
    """
    stem, suffix = os.path.splitext(source)
    if sha256:
        suffix = f".{sha256[:8]}{suffix}"
    stem = stem.lstrip(".") or "job"
    if f"{stem}{suffix}" == "run.json":
        stem = "run.job"
    # Room for the rest of the name is made where the file system would not take all of it.
    short = os.fsencode(stem)[: NAME_BYTES - len(os.fsencode(suffix))]
    return short.decode(errors="ignore") + suffix


def writer_name(marked_run: str, attempt: str) -> str:
    """Who writes an output, in its hidden name: no other attempt of any spool has this name.

    marked_run: of the run, as `processes.run_mark` makes it. Attempts of a copied spool, or of two
    runs in one OUT, are told apart by it.
    """
    return f"{marked_run}-{attempt}"


def hidden_output(writer: str, task: int, suffix: str) -> str:
    """The name of a task's output until it is published, in the folder of its final name."""
    return f"{OUT_MARK}-{writer}-{task}-{suffix}"


def parse_hidden_output(name: str) -> str | None:
    """Who was writing this output, None where the name is not one of ours.

    Earlier versions named the attempt alone.
    """
    match = _HIDDEN_OUTPUT.match(name)
    if match is None:
        return None
    return match[1]


def hidden_name(name: str) -> str:
    """A name for a file that is to be published as `name`, in the same folder.

    Nobody else ever makes it: the process, its counter and four random bytes are part of it. Some
    file systems link only within a folder, so it is made for the folder of `name`.
    """
    # Cut, so that the longest name that can be published has a hidden name that can be made.
    short = os.fsdecode(os.fsencode(name)[:200])
    return f".{short}.{os.getpid()}.{next(_counter)}.{os.urandom(4).hex()}"


def parse_hidden(hidden: str) -> tuple[str, int] | None:
    """(name, pid of the process that made it) of what `hidden_name` made, None for other names."""
    match = _HIDDEN.fullmatch(hidden)
    if match is None:
        return None
    return match[1], int(match[2])


def meeting_name(key: str, number: int) -> str:
    """The hidden folder in which copies of the doctor on several hosts meet.

    key: what they have in common. number: of the meeting; a meeting that is full or somebody else's
    is followed by another one.
    """
    return f".{PROBE_NAME}-meeting.{quote(key, safe='')}.{number:04d}"


def is_doctors(name: str) -> bool:
    """Whether a folder is one that the doctor made to try a file system in."""
    return name.startswith(f".{PROBE_NAME}")


class Layout:
    """The paths of one spool. Making one, or any of its paths, touches no file.

    docs/spool-format.md shows the tree. Raises AssertionError for a name that is none of ours,
    which is a bug of the caller's.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(root))

    # Files and folders that a spool has once.

    @property
    def format(self) -> Path:
        return self.root / "FORMAT"

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def run_copy(self) -> Path:
        """The second copy of run.json, since without any of them no other file makes sense."""
        return self.root / "job" / "run.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def lock(self) -> Path:
        return self.root / "orchestrator.lock"

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
        """The queued reports of workers; exists only where the seed API made the spool."""
        return self.root / "reports"

    @property
    def warmups(self) -> Path:
        """Who warms a host up; exists only where the job has a warm-up."""
        return self.root / "warmup"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def parents(self) -> Path:
        """Who has started attempts of this run, and how those ended that have."""
        return self.root / "parents"

    @property
    def beats(self) -> Path:
        """Who lives: each name is somebody's newest beat."""
        return self.root / "beats"

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
        """One of the folders that every spool has."""
        assert name in SUBDIRS, name
        return self.root / name

    def job_copy(self, filename: str) -> Path:
        return self.root / "job" / filename

    def code(self, name: str) -> Path:
        """The record of the files that an attempt ran, named by a digest of its content."""
        return self.root / "job" / f"code-{name}.json"

    # Manifests and claims.

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

    # What belongs to one attempt.

    def intent(self, attempt: str) -> Path:
        return self.attempts / f"{attempt}.json"

    def heartbeat(self, attempt: str) -> Path:
        return self.root / "heartbeat" / f"{attempt}.json"

    def journal(self, attempt: str) -> Path:
        return self.journals / f"{attempt}.jsonl"

    def report(self, attempt: str) -> Path:
        return self.reports / f"{attempt}.jsonl"

    def usage(self, attempt: str) -> Path:
        """What the attempt used from moment to moment, for people."""
        return self.root / "usage" / f"{attempt}.jsonl"

    def log(self, attempt: str) -> Path:
        return self.root / "logs" / f"{attempt}.log"

    def stacks(self, attempt: str) -> Path:
        """Where every thread stood when the attempt's own timer ended it; else empty or missing."""
        return self.root / "logs" / f"{attempt}.stacks"

    def status(self, state: str, attempt: str) -> Path:
        """A copy of the closing of an attempt, in the folder of the state in which it ended."""
        assert state in STATES, state
        return self.root / state / f"{attempt}.json"

    # What belongs to one epoch.

    def parent(self, epoch: int) -> Path:
        """The word that a parent is there. Its link(2) gives it the epoch, and to nobody else."""
        return self.parents / f"{epoch_name(epoch)}.json"

    def parent_end(self, epoch: int) -> Path:
        """How a parent ended, written once it has seen off all that it started."""
        return self.parents / f"{epoch_name(epoch)}.end.json"

    def beat(self, name: str, number: int) -> Path:
        """A beat of an attempt, or of the parent whose `epoch_name` this is."""
        return self.beats / f"{name}.{number}"

    def events(self, epoch: int) -> Path:
        """What a parent did, in order."""
        return self.root / "events" / f"{epoch_name(epoch)}.jsonl"

    def warmup(self, epoch: int, host: str, kernel: str, what: str) -> Path:
        """Who tries to warm a host up, or the word that it is done.

        kernel: what tells apart the boots and pid namespaces of one host. what: the number of the
        attempt to do so ("0", "1", …), or "done".
        """
        where = f"{quote(host, safe='')}.{zlib.crc32(kernel.encode()):08x}"
        return self.warmups / f"{epoch_name(epoch)}.{where}.{what}"

    def drain(self, epoch: int) -> Path:
        """The order that the attempts and parents of the epochs up to this one shall drain."""
        return self.control / f"drain.{epoch_name(epoch)}"

    def leave(self, epoch: int) -> Path:
        """The word of one parent that its own attempts shall drain, while others go on."""
        return self.control / f"leave.{epoch_name(epoch)}"

    def finished(self, epoch: int) -> Path:
        """The word that every task has a verdict, for the attempts of the epochs up to this one."""
        return self.control / f"finished.{epoch_name(epoch)}"

    # What is submitted to Slurm.

    @property
    def slurm(self) -> Path:
        """Batch scripts and what their jobs print; exists only where `gpuspool submit` was used."""
        return self.root / "slurm"

    def slurm_script(self, number: int) -> Path:
        return self.slurm / f"{number:04d}.sh"

    @property
    def slurm_setup(self) -> Path:
        """What the batch scripts run first: the user's own lines of shell, such as modules."""
        return self.slurm / "setup.sh"

    # What belongs to one task.

    @property
    def scratches(self) -> Path:
        """The folders in which tasks keep what they have; exists only where one asked for its."""
        return self.root / "scratch"

    def scratch(self, task: int) -> Path:
        """Where a task keeps what it has until it completes."""
        return self.scratches / f"{task:09d}"

    # Failed tasks, for people.

    def failed_task(self, key: str) -> Path:
        return self.failed_tasks / f"{encode_key(key)}.json"

    def failed_round(self, round_: int) -> Path:
        """Where the failures of an earlier round are kept once a retry has begun."""
        return self.failed_tasks / f"round-{round_}"
