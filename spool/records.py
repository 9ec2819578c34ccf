"""What stands in the files of a spool, one frozen record each.

docs/spool-format.md tells every field and who writes it. A field that holds its default is left
out of the file. A reader ignores fields that it does not know, so that a later version may add
some. Times are Unix seconds and durations are seconds, both floats; sizes are bytes.

Nothing here reads or writes a file: `codec` makes bytes of records, `publish` makes files of bytes.
"""

# Unlike in all other modules annotations are no strings here, because msgspec would compile each of
# them again, in every process, before it decodes the first record of a kind.

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gpuspool.spool.layout import ATTEMPT_PATTERN, COPY_PATTERN, rank_of
from gpuspool.spool.states import AttemptState, ErrorKind, JobKind, LineState, Phase, Reason

# Names in a record that files are found or made by. A record that holds any other name is none that
# gpuspool wrote, and counts as damaged: whoever can write to a spool could lead its next reader or
# writer to any file otherwise. The patterns are checked when a record is decoded.
AttemptName = Annotated[str, Meta(pattern=rf"^{ATTEMPT_PATTERN}\Z")]
CopyName = Annotated[str, Meta(pattern=rf"^({COPY_PATTERN})?\Z")]
CodeName = Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?\Z")]
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z")]
# A path as Python tells it, which may be relative or empty.
SomePath = Annotated[str, Meta(pattern=r"^[^\x00]*\Z")]

# Numbers that files are named after, and sizes that memory is taken for. They are far larger than
# any run that was ever made, and small enough to be neither too long for a name nor too large for
# the memory of whoever looks at a spool.
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]

# So many failures in a row, with nothing completed between them, end a process. One that has to
# show first that its place is in order is given fewer.
USUAL_PATIENCE = 6

# The device of a worker that gets none.
CPU = "cpu"

# An absent JSON value, which is left out when its record is written.
NO_JSON = msgspec.Raw(b"")
ZERO = msgspec.Raw(b"0")


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The root of all records: fields that hold their default are left out.

    `gc=False`: what JSON can say has no cycles, and the garbage collector would look at each of a
    million records in vain.
    """


def place_name(host: str, job_id: str, device: str) -> str:
    """A device as no other host has it, nor another job of a scheduler on the same host.

    job_id: "" in none. The devices of the CPU are one in all jobs of a host. host: "" where there
    is only one, as in tests of pure functions.
    """
    if not host:
        return device
    if job_id and device != CPU:
        return f"{host}/{job_id}:{device}"
    return f"{host}:{device}"


def is_cpu(place: str) -> bool:
    """Whether a `place_name` is that of the CPU of a host."""
    return place == CPU or place.endswith(f":{CPU}")


class TaskLine(Record, frozen=True, kw_only=True):
    """One task, as a line of a manifest.

    task: its index in the run. cost: in any unit, at least 0; manifests are sorted by it. round:
    how often `retry` or `redo` gave it out again. kills: how often, in this round, its worker was
    killed by SIGKILL with it certainly in hand. careful: it runs alone, after a `started` line.
    failed_in: the attempts in which it failed or took the worker along in this round, each with the
    device as `Intent.place` names it; that is "" where a file system in trouble was to blame, see
    `ErrorKind.IO`. redo: `redo` gave it this round: what earlier ones came to is forgotten, and its
    outputs replace theirs. restarts: how often in this round calls with it asked for a fresh
    process, since it was last said to be not done.
    """

    task: int
    key: str
    payload: msgspec.Raw
    cost: float
    round: int = 0
    kills: int = 0
    careful: bool = False
    failed_in: tuple[tuple[str, str], ...] = ()
    redo: bool = False
    restarts: Count = 0


class Error(Record, frozen=True, kw_only=True):
    """Why a task or an attempt failed.

    kind: from the type of what happened, never from its text. type: the class of the exception.
    where: the line that raised, as `file:line`. tries: how often the task was executed; of one that
    a ruling failed, in how many attempts it failed. exit_code: -N for signal N. signal: the name of
    the signal behind it.

    The remaining fields are told of tasks that a ruling failed, or that took their worker along.
    attempts: those in which it failed, in order. attempt: the one of which all else is told, which
    need not be the last; rank, device and host are its own. log_tail: the end of its log, where it
    died.
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
    attempt: str = ""
    log_tail: str = ""

    @property
    def told_attempt(self) -> str:
        """The attempt of which it tells, "" where it does not say.

        Earlier versions recorded the rank of that attempt and not its number. Of several attempts
        of the rank it is taken for the last.
        """
        if self.attempt:
            return self.attempt
        own = [name for name in self.attempts if self.rank in (None, rank_of(name))]
        return own[-1] if own else ""


class TaskFailure(Record, frozen=True, kw_only=True):
    """A task that failed, as part of a closing or a ruling.

    In `failures` it is the verdict. In `held` it is one opinion, since the worker died with this
    task in hand; `line` is then the task as it was claimed. start: when the call began in which it
    failed last, 0 where that is not known.
    """

    task: int
    round: int = 0
    key: str = ""
    error: Error
    line: TaskLine | None = None
    start: float = 0.0


class Claim(Record, frozen=True, kw_only=True):
    """An attempt took the positions start..stop of a manifest; `stop` is the first that it left.

    number: how many claims the attempt had tried to make, with this one. No two tries of an attempt
    have one number, so it knows a claim as its own by what the claim says. 0: not told.
    """

    attempt: str
    start: int
    stop: int
    at: float
    number: int = 0


class Identity(Record, frozen=True, kw_only=True):
    """One process of one boot of one host: what a proof of death needs.

    boot_id: of the kernel. pid_ns: the pid namespace, which `pid` belongs to. pid_start: when the
    process started, in clock ticks since the boot; it tells the process from a later one that was
    given the same pid. machine: a hash of what names the machine itself, whatever was booted on it;
    "" where that is not known, or in a container.
    """

    host: str
    boot_id: str
    pid_ns: str
    pid: int
    pid_start: int
    machine: str = ""


class Scheduler(Record, frozen=True, kw_only=True):
    """Where a parent runs, as its batch scheduler tells. It is shown to people and decides nothing.

    kind: "slurm". job: the id of the job; of an element of an array, "123_4". restart: how often
    the scheduler has started this job again. nodes: the hosts of the job, as far as they are known.
    step: the id of the job step, "" for the job's own script.
    """

    kind: str
    job: str
    restart: int = 0
    nodes: list[str] = msgspec.field(default_factory=list)
    step: str = ""


class JournalHead(Identity, frozen=True, kw_only=True):
    """The first line of a journal: the attempt and its process."""

    attempt: AttemptName


class JournalLine(Record, frozen=True, kw_only=True):
    """Every other line of a journal: what happened to a task.

    start: when its call began. seconds: its share of the call, which is the call's duration divided
    by the number of tasks in it; a `started` line has none. result: what the job returned, as JSON.
    outputs: the name below OUT and the size of each. log: from which byte to which the attempt's
    log was written meanwhile. batch: of a `started` line, the other tasks in hand; without any, its
    task runs alone; of a `deferred` line, the other tasks of a call that raised. line: of a `held`
    line, the task as it was claimed, for whoever gives it out again.
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
    line: TaskLine | None = None


class IdleLine(Record, frozen=True, kw_only=True):
    """The line of a journal that says that its attempt has no task in hand.

    state: always IDLE. claims: the number of its last claim. Whatever it has claimed up to that
    one and not finished by the lines before this one is nobody's from here on. is_leaving: the
    attempt calls its job for no task any more. Then `claims` is 0: what it has claimed stays its
    own to give back, and its death speaks against none of it.
    """

    state: LineState
    claims: int
    is_leaving: bool = False


class ErrorBrief(Record, frozen=True, kw_only=True):
    """The part of an error that the accounting needs. A later version may know other kinds."""

    kind: str
    type: str = ""
    where: str = ""


class JournalBrief(Record, frozen=True, kw_only=True):
    """The part of a journal line that the accounting needs; the rest is skipped, not decoded.

    A `JournalLine` or an `IdleLine`, which has no task. error: to be read as an `ErrorBrief`; only
    that of a `held` line is. start: to be read as a number, of a few lines; a verdict counts
    whatever it is.
    """

    state: LineState
    task: int = -1
    round: int = 0
    start: msgspec.Raw = ZERO
    batch: tuple[int, ...] = ()
    claims: int = 0
    is_leaving: bool = False
    error: msgspec.Raw = NO_JSON


class TimedBrief(JournalBrief, frozen=True, kw_only=True):
    """A `JournalBrief` that also says how long, for whoever tells people of that.

    It takes a sixth more time to decode. seconds: to be read as `start`.
    """

    seconds: msgspec.Raw = ZERO


class QueuedReport(Record, frozen=True, kw_only=True):
    """A line of reports/: what a worker of the seed API put into its queue.

    report: the value as `spool.values` encodes it.
    """

    at: float
    report: msgspec.Raw


class Stats(Record, frozen=True, kw_only=True):
    """What an attempt tells of itself when it ends.

    done, failed: how many tasks. seconds: since the process began. busy_s: in calls of the job.
    idle_s: all other seconds, by cause ("start", "load", "inputs", "publish", "work", "close").
    ready: the job was loaded. peak_memory_bytes: resident. peak_device_memory_bytes: held by torch.
    batch_size: at its end; None where the job was not loaded. oom_halvings: how often several
    tasks at once did not fit into memory. splits: how many calls with several tasks raised, and
    were run in parts. wrong_lengths: for how many the job returned another number of results than
    it got tasks. left_behind: how many unfinished outputs it could not remove.
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
    splits: int = 0
    wrong_lengths: int = 0
    left_behind: int = 0
    versions: dict[str, str] = msgspec.field(default_factory=dict)


class Closing(Record, frozen=True, kw_only=True):
    """How an attempt ended: the first line of its orphans manifest, and the status record.

    by: who closed it: the attempt itself, "parent", "resume" (another parent) or another attempt.
    exit_code: as its parent saw it, -N for signal N. suspects: how many tasks' records this death
    made worse; while there are any, the rank itself is not blamed. failures: the tasks that fail
    for good by it. held: those that it speaks against, and that are left to a ruling. killed: the
    task that was certainly in hand when the attempt was killed by SIGKILL. killed_start: when its
    call began, 0 where that is not known. error: why the attempt itself failed, or why its job
    asked for a fresh process. close_error: what the job's `close` raised, or that it took too long.
    stats: only where it closed itself. journal_bytes: how long the journal was, up to the end of
    its last whole line, by the attempt's own count or as far as whoever closed it had read; None
    where that was not told.
    """

    attempt: AttemptName
    state: AttemptState
    reason: Reason
    by: str
    at: float = 0.0
    exit_code: int | None = None
    suspects: int = 0
    failures: list[TaskFailure] = msgspec.field(default_factory=list, name="lost")
    held: list[TaskFailure] = msgspec.field(default_factory=list)
    killed: int | None = None
    killed_start: float = 0.0
    error: Error | None = None
    close_error: Error | None = None
    stats: Stats | None = None
    journal_bytes: Annotated[int, Meta(ge=0)] | None = None


class Ruling(Record, frozen=True, kw_only=True):
    """What the gatherer ruled about tasks that were held back: the first line of its manifest.

    epoch: the gatherer's. failures: the tasks that have failed for good. Those that are to be
    tried again are the manifest's tasks.
    """

    epoch: int
    at: float = 0.0
    failures: list[TaskFailure] = msgspec.field(default_factory=list)


class Added(Record, frozen=True, kw_only=True):
    """That tasks were added to a run: the first line of their manifest.

    first: the index of the first of them, which is how many tasks the run had before. tasks, cost:
    how many they are, and the sum of their costs. argv: the command line, for people.
    """

    first: Count
    tasks: Count
    cost: float
    at: float = 0.0
    argv: list[str] = msgspec.field(default_factory=list)


class CodeFile(Record, frozen=True, kw_only=True):
    """One file of the code that an attempt runs, as it was read.

    name: its path, relative to the folder of the job where it lies below that, else absolute.
    module: the dotted name under which it was imported, "" if it was not. sha256: of its content;
    "" for a large file, which is known by its size and its time of change, in Unix seconds. text:
    its content, of a module that is no larger than most.
    """

    name: SomePath
    module: str = ""
    sha256: str = ""
    size: int = 0
    mtime: float = 0.0
    text: str | None = None


class Code(Record, frozen=True, kw_only=True):
    """All that is known of the code that an attempt runs, beside what comes with the interpreter.

    job_sha256: as in `Job`. files: the modules that it imported, the files that the words of its
    command name, and those that its `args` name; sorted by name.
    """

    job_sha256: str
    files: list[CodeFile] = msgspec.field(default_factory=list)


class Heartbeat(Identity, frozen=True, kw_only=True):
    """That an attempt lives, and what it is at. Replaced every few seconds.

    beat: a count; a reader asks only whether it moves. parent: a pid, as text. device: the value of
    CUDA_VISIBLE_DEVICES. task, key, task_since: the first task of the call in hand, and since when.
    in_hand: how many tasks that call has, 0 where it is not told. done, failed: how many tasks so
    far. code: the name of the record of what it runs; of the last heartbeat, of all that it ever
    ran.
    """

    attempt: AttemptName
    beat: int
    parent: str
    device: str
    state: Phase
    at: float
    device_name: str = ""
    device_uuid: str = ""
    job_sha256: str = ""
    task: int | None = None
    key: str = ""
    task_since: float | None = None
    in_hand: int = 0
    done: int = 0
    failed: int = 0
    code: CodeName = ""


class Usage(Record, frozen=True, kw_only=True):
    """A line of usage/: what an attempt has done by a moment, and what it uses at it. For people.

    done: how many tasks are complete. busy_s, idle_s: as in `Stats`, with the call in hand up to
    now. rss: the resident memory of its process and of all that this has started; what two of them
    share counts twice. cpu: how many cores these kept busy since the line before, or since the
    start. gpu: how busy its devices are, in percent, by whoever uses them. gpu_mem, gpu_mem_total:
    how much of their memory is taken, by whoever, and how much there is. None of these three where
    that is not told: gpu by MIG instances, and none of them on the CPU.
    """

    at: float
    done: int = 0
    busy_s: float = 0.0
    idle_s: dict[str, float] = msgspec.field(default_factory=dict)
    rss: int = 0
    cpu: float = 0.0
    gpu: float | None = None
    gpu_mem: int | None = None
    gpu_mem_total: int | None = None


class Place(Record, frozen=True, kw_only=True):
    """A slot of a parent: where its worker runs. `device` and `uuids` as in a `Slot`."""

    device: str = ""
    uuids: tuple[str, ...] = ()


class Parent(Identity, frozen=True, kw_only=True):
    """parents/<epoch>.json: that a process is about to start attempts, and where.

    slots: in their order, which is the `local_rank` of attempts. command: what was typed ("run",
    "resume", "join", …). scheduler: the job that it runs in, None in none. folder: which folder the
    spool was, as in an intent. lease_s: as this parent was told. job_sha256, code: of the job that
    it runs, as in an intent's job; its first attempt may be a while in coming.
    """

    epoch: Count
    at: float
    slots: list[Place]
    argv: list[str]
    command: str
    lease_s: float
    scheduler: Scheduler | None = None
    folder: str = ""
    job_sha256: str = ""
    code: CodeName = ""


class ParentEnd(Record, frozen=True, kw_only=True):
    """parents/<epoch>.end.json: a parent has seen off what it started, and writes nothing more.

    how: an `Ending`, or "failed" where it could not go on. message: what people were told.
    """

    how: str
    exit_code: int
    at: float
    message: str = ""


class DrainOrder(Record, frozen=True, kw_only=True):
    """control/drain.<epoch>: that all of the epochs up to this one shall stop.

    why: "asked", "new-code", or the `Ending` that the gatherer has decided on. message: the reason
    in words, where there is more to say. by: the host and pid of whoever gave it.
    """

    why: str
    message: str = ""
    by: str = ""
    at: float = 0.0


class Job(Record, frozen=True, kw_only=True):
    """What to run.

    kind: FILE and MODULE name a class or function; COMMAND is a list of arguments; CALL is the seed
    API's: a function that is called once for each rank, with `worker_args` of the run's args. spec:
    as the user wrote it. name: the class or function, perhaps dotted; of a command its program.
    file: the absolute path of the source. module: the dotted name, of kind MODULE. copy: the name
    of the source's copy in job/. sha256: of the source; of a command, of its arguments. sys_path:
    what a worker puts at the front of `sys.path`. code: the name of the record of what else was
    known of the code when an attempt was started; in intents alone. capture: what a command prints
    is its result.
    """

    kind: JobKind
    spec: str
    name: str = ""
    file: SomePath = ""
    module: str = ""
    copy: CopyName = ""
    sha256: str = ""
    command: list[str] = msgspec.field(default_factory=list)
    sys_path: list[str] = msgspec.field(default_factory=list)
    code: CodeName = ""
    capture: bool = False


class Options(Record, frozen=True, kw_only=True):
    """The options that all attempts of an epoch share; docs/options.md explains each.

    Those in run.json hold for every epoch, unless a later `run`, `resume` or `retry` says otherwise
    for its own.
    """

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
    leave_when_idle_s: Annotated[float, Meta(ge=0)] | None = None
    task_timeout_s: Annotated[float, Meta(gt=0)] | None = None
    stall_timeout_s: Annotated[float, Meta(gt=0)] | None = None
    max_failed: Annotated[str, Meta(pattern=r"^([1-9]\d*|(\d+(\.\d+)?)%)$")] | None = None
    on_parent_exit: Literal["finish", "stop"] = "finish"
    keep_going: bool = False


class Intent(Record, frozen=True, kw_only=True):
    """That a parent is about to start an attempt, and all that the attempt needs to know.

    world_size: how many slots the parent has. local_rank: the number of the attempt's slot among
    these. job, options: those of the epoch, which may differ from the run's. patience: how many
    tasks may fail in a row before the attempt ends itself. is_doubted: nothing was completed in its
    place lately, and tasks failed there: it shall first show what it is worth. environment: the
    variables about devices and threads that the worker is started with. trusted: the numbers of the
    users that the parent was told to trust beside its own and root. device_uuids: of each device
    that `device` names by an index, the UUID that is meant, "" where it is not known. withheld: the
    parent's variables that the worker is not given, since they name the parent's own rank in a
    process group. folder: which folder the spool was when this was written, as
    `open_folder.folder_id` tells it; in a copy of the spool it still names the original.
    out_folder: likewise of OUT. "" in the spools of earlier versions. job_id: the job of a
    scheduler that the parent runs in, "" in none.
    """

    attempt: AttemptName
    epoch: Count
    device: str
    world_size: int
    local_rank: Count = 0
    argv: list[str]
    parent: Identity
    job: Job
    options: Options
    environment: dict[str, str]
    at: float
    trusted: list[int] = msgspec.field(default_factory=list)
    device_uuids: list[str] = msgspec.field(default_factory=list)
    withheld: dict[str, str] = msgspec.field(default_factory=dict)
    patience: int = USUAL_PATIENCE
    is_doubted: bool = False
    folder: str = ""
    out_folder: str = ""
    job_id: str = ""

    @property
    def place(self) -> str:
        """The device, told apart from those of the same name in other hosts and jobs."""
        return place_name(self.parent.host, self.job_id, self.device)


class Fingerprint(Record, frozen=True, kw_only=True):
    """What makes a run this run: `gpuspool run` goes on with a spool that has the same one.

    tasks_sha256: of the tasks that the run began with; if it differs, the tasks are compared one by
    one. root: what the keys of input files are relative to, and where they were when the run was
    made; "" where inputs are not files.
    """

    job_sha256: str
    args_sha256: str
    tasks_sha256: str
    seed: int
    out: str
    root: str = ""


class Run(Record, frozen=True, kw_only=True):
    """run.json: what was asked.

    args: what the job finds as `ctx.args`. tasks, cost: how many tasks the run began with, and the
    sum of their costs. Later ones may have been added.
    submit_dir: where workers run. out: the folder of outputs, absolute; None for the one in the
    spool. It changes where the user says that OUT was moved; the fingerprint keeps what it was.
    root: where the input files are, likewise; the payloads of tasks keep what the fingerprint says.
    manifests: how many were planned, one for each rank at the start. manifests_crc32: the checksum
    of the bytes of each of them. mounts: where file systems with files of users were mounted on the
    host that made the run: an input that is missing may lie on one that is gone.
    """

    id: str
    job: Job
    args: dict[str, Any]
    tasks: Count
    cost: float
    fingerprint: Fingerprint
    options: Options
    submit_dir: AbsolutePath
    out: AbsolutePath | None
    created_at: float
    versions: dict[str, str]
    argv: list[str]
    manifests: Count
    manifests_crc32: list[int] = msgspec.field(default_factory=list)
    mounts: list[str] = msgspec.field(default_factory=list)
    root: str = ""
    format: int = 1
