"""What stands in the files of a spool, one frozen record each.

Unknown fields are ignored by every reader, so that a later version may add some. Times are Unix
seconds, durations seconds, both floats.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gpuspool.spool.states import AttemptState, ErrorKind, JobKind, LineState, Phase, Reason

NO_JSON = msgspec.Raw(b"")  # an absent JSON value; left out when the record is written


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The root of all records: fields that hold their default are left out.

    `gc=False`: what JSON can say has no cycles, and a million records would have the collector look
    at each in vain.
    """


class TaskLine(Record, frozen=True, kw_only=True):
    """One task in a manifest."""

    task: int
    key: str
    payload: msgspec.Raw
    cost: float
    round: int = 0
    crashes: int = 0
    kills: int = 0
    careful: bool = False
    crashed_in: tuple[str, ...] = ()


class Error(Record, frozen=True, kw_only=True):
    """Why a task or an attempt failed; `kind` comes from the type of what happened, never from its
    text.

    Kinds of tasks: exception, result, output, exit, gpu_oom, host_oom, timeout, lost, unreadable;
    of attempts: load, device, io, timeout. `where` is the line that raised, `file:line`. What
    stands behind `exit_code` is told of tasks that took their worker along: `signal` is the name of
    the signal that killed it, `attempts` are those that died with the task in hand, `log_tail` is
    the end of the last one's log.
    """

    kind: ErrorKind
    type: str
    message: str
    where: str = ""
    traceback: str = ""
    tries: int = 1
    exit_code: int | None = None
    signal: str = ""
    rank: int | None = None
    device: str = ""
    host: str = ""
    attempts: list[str] = msgspec.field(default_factory=list)
    log_tail: str = ""


class TaskFailure(Record, frozen=True, kw_only=True):
    """A task that closing an attempt failed for good."""

    task: int
    round: int = 0
    key: str = ""
    error: Error


class Claim(Record, frozen=True, kw_only=True):
    attempt: str
    start: int
    stop: int
    at: float


class Identity(Record, frozen=True, kw_only=True):
    """One process of one boot of one host: what a proof of death needs."""

    host: str
    boot_id: str
    pid_ns: str
    pid: int
    pid_start: int


class JournalHead(Identity, frozen=True, kw_only=True):
    """The first line of a journal: whose it is."""

    attempt: str


class JournalLine(Record, frozen=True, kw_only=True):
    """One finished task ("complete", "failed"); or a call that begins ("started"); or a try that
    failed ("deferred").

    `batch`: the other tasks of a call; without any, its task runs alone.
    """

    task: int
    round: int
    state: LineState
    start: float = 0.0
    seconds: float = 0.0
    result: msgspec.Raw = NO_JSON
    error: Error | None = None
    outputs: list[tuple[str, int]] = msgspec.field(default_factory=list)
    log: tuple[int, int] | None = None
    batch: list[int] = msgspec.field(default_factory=list)


class QueuedReport(Record, frozen=True, kw_only=True):
    """One line of reports/: what a worker of the seed API put into its queue, as spool.values
    encodes it.
    """

    at: float
    report: msgspec.Raw


class JournalBrief(Record, frozen=True, kw_only=True):
    """What the accounting needs of a journal line; the rest is skipped, not decoded."""

    task: int
    round: int
    state: LineState
    batch: tuple[int, ...] = ()


class Stats(Record, frozen=True, kw_only=True):
    """What an attempt tells of itself when it ends. `idle_s`: the seconds outside of the job's
    calls, by cause.
    """

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    busy_s: float = 0.0
    idle_s: dict[str, float] = msgspec.field(default_factory=dict)
    ready: bool = False
    device: str = ""
    device_name: str = ""
    device_uuid: str = ""
    peak_memory_bytes: int = 0
    peak_device_memory_bytes: int = 0
    batch_size: int | None = None
    oom_halvings: int = 0
    left_behind: int = 0
    versions: dict[str, str] = msgspec.field(default_factory=dict)


class Closing(Record, frozen=True, kw_only=True):
    """The first line of an orphans manifest: how an attempt ended. The status record is a copy of
    it.

    `reason`: finished, drained, killed, load, device, io, timeout, crash, lost. `suspects` counts
    the tasks whose record a witnessed crash made worse: while there are any, the rank itself is not
    blamed.
    """

    attempt: str
    state: AttemptState
    reason: Reason
    by: str
    at: float = 0.0
    exit_code: int | None = None
    suspects: int = 0
    failures: list[TaskFailure] = msgspec.field(default_factory=list, name="lost")
    error: Error | None = None
    stats: Stats | None = None


class Heartbeat(Identity, frozen=True, kw_only=True):
    attempt: str
    beat: int
    parent: str
    device: str
    state: Phase
    at: float
    device_name: str = ""
    device_uuid: str = ""
    job_sha256: str = ""
    task: int | None = None
    task_since: float | None = None
    done: int = 0
    failed: int = 0


class ParentBeat(Record, frozen=True, kw_only=True):
    beat: int
    at: float


class Holder(Identity, frozen=True, kw_only=True):
    """orchestrator.json: the live orchestrator, told to whoever comes second; with `until`, the
    last one.
    """

    epoch: int
    since: float
    until: float | None = None


class Job(Record, frozen=True, kw_only=True):
    """What to run. kind "file" and "module" name a class or function; "command" is a list of
    arguments.

    "call" is the seed API's: a function that is called once per rank, with what `worker_args` of
    the run's args says.
    """

    kind: JobKind
    spec: str
    name: str = ""
    file: str = ""
    module: str = ""
    copy: str = ""
    sha256: str = ""
    command: list[str] = msgspec.field(default_factory=list)
    sys_path: list[str] = msgspec.field(default_factory=list)


class Options(Record, frozen=True, kw_only=True):
    """Options that every epoch of a run shares, unless a resume says otherwise."""

    seed: int = 0
    retries: Annotated[int, Meta(ge=0)] = 0
    max_restarts: Annotated[int, Meta(ge=0)] = 3
    max_crashes: Annotated[int, Meta(ge=1)] = 2
    grace_s: Annotated[float, Meta(ge=0)] = 25.0
    lease_s: Annotated[float, Meta(ge=1)] = 120.0
    poll_s: Annotated[float, Meta(ge=0)] = 0.0
    ranks: Annotated[int, Meta(ge=1)] | None = None
    devices: str | None = None
    ranks_per_gpu: Annotated[int, Meta(ge=1)] = 1
    gpus_per_rank: Annotated[int, Meta(ge=1)] = 1
    time_limit_s: Annotated[float, Meta(ge=0)] | None = None
    task_timeout_s: Annotated[float, Meta(gt=0)] | None = None
    stall_timeout_s: Annotated[float, Meta(gt=0)] | None = None
    max_failed: Annotated[str, Meta(pattern=r"^([1-9]\d*|(\d+(\.\d+)?)%)$")] | None = None
    on_parent_exit: Literal["finish", "stop"] = "finish"


class Intent(Record, frozen=True, kw_only=True):
    """attempts/: that a parent is about to start this attempt, and all that the attempt needs to
    know.
    """

    attempt: str
    epoch: int
    device: str
    world_size: int
    argv: list[str]
    parent: Identity
    job: Job
    options: Options
    environment: dict[str, str]
    at: float


class Fingerprint(Record, frozen=True, kw_only=True):
    job_sha256: str
    args_sha256: str
    tasks_sha256: str
    seed: int
    out: str


class Run(Record, frozen=True, kw_only=True):
    """run.json: what was asked."""

    id: str
    job: Job
    args: dict[str, Any]
    tasks: Annotated[int, Meta(ge=0)]
    cost: float
    fingerprint: Fingerprint
    options: Options
    submit_dir: str
    out: str | None
    created_at: float
    versions: dict[str, str]
    argv: list[str]
    manifests: Annotated[int, Meta(ge=0)]
    manifests_crc32: list[int] = msgspec.field(default_factory=list)
    format: int = 1
