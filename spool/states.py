"""The names of all states, as they stand in the files of a spool.

Each is a `StrEnum`: in JSON it is its text, in the program it is a value that a `match` can be
proved to handle completely. A text that is none of these makes its record unreadable, since a
reader that guessed would decide on something that it does not understand.
"""

from __future__ import annotations

from enum import StrEnum

# What a closing says of who closed the attempt: a parent that knows how it died, or whoever found
# it dead afterwards.
BY_PARENT = "parent"
BY_RESUME = "resume"


class Life(StrEnum):
    """What is known of a process. ELSEWHERE: nothing is proved, as it may run on another host."""

    ALIVE = "alive"
    DEAD = "dead"
    ELSEWHERE = "elsewhere"


class LineState(StrEnum):
    """What a line of a journal says of its task.

    STARTED: a call with it begins. DEFERRED: a call of it is over, and it needs another: it failed
    and has tries left, is not done, or asked for a fresh process.
    HELD: it failed here, which decides nothing yet: the attempt lets go of the task, and the
    orchestrator rules what becomes of it. COMPLETE and FAILED are verdicts. IDLE speaks of no task:
    the attempt has none in hand.
    """

    STARTED = "started"
    DEFERRED = "deferred"
    HELD = "held"
    COMPLETE = "complete"
    FAILED = "failed"
    IDLE = "idle"


class Verdict(StrEnum):
    """What became of a finished task."""

    COMPLETE = "complete"
    FAILED = "failed"


class AttemptState(StrEnum):
    """How an attempt ended; also the name of the folder that holds its status record.

    COMPLETE: it left nothing to do. STOPPED: it was told to end. FAILED: anything else.
    """

    COMPLETE = "complete"
    FAILED = "failed"
    STOPPED = "stopped"


class Reason(StrEnum):
    """Why an attempt ended.

    FINISHED, DRAINED: it ended itself, in peace. LOAD, DEVICE, IO: it ended itself since it could
    not load its job, did not see its device, or could not use a file system; IO is said of it by
    its parent too. FAILURES: so many tasks failed in a row that a fresh process shall go on.
    HANDOVER: only tasks were left that had failed, and another process shall try them, or rule.
    RECYCLED: its job wants a fresh process, by `recycle` or `Restart`.
    KILLED: its parent ended it. TIMEOUT: it took too long. CRASH: its parent saw it die. LOST: it
    died and nobody saw how.
    """

    FINISHED = "finished"
    DRAINED = "drained"
    KILLED = "killed"
    LOAD = "load"
    DEVICE = "device"
    IO = "io"
    FAILURES = "failures"
    HANDOVER = "handover"
    RECYCLED = "recycled"
    TIMEOUT = "timeout"
    CRASH = "crash"
    LOST = "lost"


class Phase(StrEnum):
    """What a worker is at, in its heartbeat.

    LOADING: it imports the job. MAKING: the job is imported, and its object is made. WAITING: for
    another process to warm its host up. PUBLISHING: the outputs of the call in hand,
    for which no limit of time holds. CLOSING: no task any more, but the job's `close`.
    """

    LOADING = "loading"
    MAKING = "making"
    WAITING = "waiting"
    RUNNING = "running"
    PUBLISHING = "publishing"
    IDLE = "idle"
    CLOSING = "closing"


class RunState(StrEnum):
    """How a run stands.

    STOPPED: it is not finished and nothing of it lives; `resume` goes on. SILENT: it is not
    finished, and of nobody who may be at work on another host was heard lately; a lease will tell.
    """

    COMPLETE = "complete"
    FAILED = "failed"
    RUNNING = "running"
    SILENT = "silent"
    STOPPED = "stopped"


# A run of such a state may yet change without anybody's doing.
UNDER_WAY = frozenset({RunState.RUNNING, RunState.SILENT})


class JobKind(StrEnum):
    """What a job is: a name in a FILE or a MODULE, a COMMAND, or the seed API's CALL."""

    FILE = "file"
    MODULE = "module"
    COMMAND = "command"
    CALL = "call"


class Ending(StrEnum):
    """How one parent of a run ended.

    DRAINED: it was told to stop, by a signal or its time limit, and others may go on. STOPPED: by
    an order for all parents.
    """

    FINISHED = "finished"
    DRAINED = "drained"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    TOO_MANY_FAILED = "too many failed"
    LOAD = "load"
    GAVE_UP = "gave up"
    STUCK = "stuck"
    BROKEN = "broken"
    OUTAGE = "outage"


class ErrorKind(StrEnum):
    """What kind of failure an error is. It comes from the type of what happened, never its text.

    Of tasks: EXCEPTION (the job raised), RESULT (it returned what cannot be kept), OUTPUT, EXIT (a
    command's status), GPU_OOM, HOST_OOM, TIMEOUT, LOST (its worker died with it in hand),
    UNREADABLE, and IO: a file system that the task needs was seen to be in trouble, so neither the
    task is to blame nor the place, and it is tried again. Of attempts: LOAD, DEVICE, IO, TIMEOUT.
    NOT_DONE is no failure, and stands in no file: the job says that a task needs another call.
    RESTART says why an attempt was recycled: the job asked for a fresh process.
    """

    EXCEPTION = "exception"
    RESULT = "result"
    OUTPUT = "output"
    EXIT = "exit"
    GPU_OOM = "gpu_oom"
    HOST_OOM = "host_oom"
    TIMEOUT = "timeout"
    LOST = "lost"
    UNREADABLE = "unreadable"
    LOAD = "load"
    DEVICE = "device"
    IO = "io"
    NOT_DONE = "not_done"
    RESTART = "restart"
