"""Every error that gpuspool raises on purpose, and the exit code of a process that ends with it.

    GpuspoolError (Exception)          1   the root: `except gpuspool.GpuspoolError` catches all
    │
    │   raised at whoever calls gpuspool from Python; the command line prints them
    ├── UsageError                     2   the request cannot be granted; nothing was changed
    ├── SpoolError                     5   the spool is damaged, or another version wrote it
    │   └── Damaged (ValueError)       5   these bytes are not the record that should stand there
    ├── Incomplete                     3   not every task is complete, and that was asked for
    ├── OrchestratorLive               6   somebody may be at work whom this would disturb
    ├── SyncError (OSError)            1   fsync(2) failed: nobody knows what is on the disk
    ├── FolderGone (OSError)           1   the spool, or OUT, is not the folder that it was
    │
    │   raised inside a worker, and recorded as the reason why an attempt failed
    ├── AttemptError                   1
    │   ├── JobDamaged                 1   the spool's copy of the job is not what it was
    │   ├── DeviceError                1   the worker does not see the devices it was given
    │   ├── DevicesChanged             1   the job changed the variables that name its devices
    │   └── Unusable                  76   the device or the process is broken
    │
    │   raised inside a worker, and recorded as the reason why a task failed
    └── TaskError                      1
        ├── ResultError                1   the job returned what is not a JSON value
        ├── OutputError                1   an output is missing, or none, or in the way of another
        └── CommandFailed              1   a command ended with a status other than 0
            └── CommandOutOfMemory     1   a command was killed because memory ran out

`run`, `resume` and `retry` do not raise what is recorded: they return a report, and `gpuspool
failed` names the error of each task. Outside of the tree stand on purpose: an OSError of the file
system, which is passed on as it is; a TypeError or ValueError for an argument of a wrong type in
the worker's context and in the API of `GPUProcessCoordinator`; and private signals that nobody else
ever sees, such as `Drained` of a worker's warm-up, `OutOfMemory` of a call, `Silent` of a
meeting of doctors and `NpyError` of a file that is stacked.

A message says what happened, to which path, rank or task, and what to do next, in this order. Every
error survives pickling. All parts of gpuspool import this module; it imports nothing.
"""

from __future__ import annotations

from typing import Any

# Every task is complete.
EXIT_COMPLETE = 0

# Every task has a verdict, and some have failed.
EXIT_SOME_FAILED = 3

# The run ended early and can be resumed. A worker ends with this code when its attempt failed.
EXIT_NOT_FINISHED = 4

# A worker could not write how it ended. Its parent closes the attempt and blames no task for it. As
# the parent sees it: -N for signal N. It is a real-time signal (34 or 35 to 64 on Linux), which
# nobody sends by accident. A job may end its process with any exit code, so none of these is proof
# of what the worker itself had to say.
EXIT_CANNOT_CLOSE = -45

# The run, or the worker, was told to stop and did. A batch script may submit itself again on this
# code: it is EX_TEMPFAIL of sysexits.h.
EXIT_DRAINED = 75

# What a worker ran has broken its device or its process. The parent treats this like a crash.
EXIT_UNUSABLE = 76

# Nobody learned how a process ended: something else in this process has waited for it, or the
# kernel dropped the status since SIGCHLD is ignored. It stands for any end but success.
EXIT_UNSEEN = 255

# A second Ctrl-C: the workers were killed. Shells report 128 + SIGINT like this.
EXIT_INTERRUPTED = 130

# The reader of standard output went away, as `head` does. Shells report 128 + SIGPIPE like this.
EXIT_READER_GONE = 141


class GpuspoolError(Exception):
    """The root of all errors of gpuspool.

    exit_code: with what the command line ends when this error reaches it.
    """

    exit_code = 1


class UsageError(GpuspoolError):
    """The request cannot be granted as it is. Nothing was changed; the message says what to ask."""

    exit_code = 2


class SpoolError(GpuspoolError):
    """The spool is damaged beyond what can be worked around, or another version wrote it."""

    exit_code = 5


class Damaged(SpoolError, ValueError):
    """These bytes are not the record that should stand there; the message says why."""


class Incomplete(GpuspoolError):
    """Results were wanted only if every task is complete, and some are not. Nothing was written."""

    exit_code = EXIT_SOME_FAILED


class OrchestratorLive(GpuspoolError):
    """A start was not admitted, or what would be moved may still be used by parents or workers."""

    exit_code = 6


class SyncError(GpuspoolError, OSError):
    """fsync(2) failed, with the `errno`, `strerror` and `filename` of an OSError.

    The kernel may have dropped the data, so that a second fsync would succeed and mean nothing.
    Therefore it is never tried again.
    """


class FolderGone(GpuspoolError, OSError):
    """At the path of the spool, or of OUT, there is another folder than before, or none.

    It was moved, removed or unmounted, or something was mounted over it. No task is to blame. It is
    an OSError without an `errno`, and `str` of it tells all.
    """


class AttemptError(GpuspoolError):
    """A worker cannot go on, and no task is to blame. Recorded in the attempt's closing."""


class JobDamaged(AttemptError):
    """The spool's copy of the job is missing, or is not what the run began with."""


class DeviceError(AttemptError):
    """The worker does not see exactly the devices that it was given."""


class DevicesChanged(AttemptError):
    """The job changed the variables that name its devices, which every worker has for itself."""


class Unusable(AttemptError):
    """The worker's device or process is broken, for example by a CUDA error.

    It ends as a crash does, and the rules for crashes find the task that is to blame. traceback: of
    the exception of user code that led us to look.
    """

    exit_code = EXIT_UNUSABLE

    def __init__(self, reason: str, traceback: str = "") -> None:
        super().__init__(reason)
        self.traceback = traceback


class TaskError(GpuspoolError):
    """A task failed in a way that gpuspool itself noticed. Recorded as the error of the task."""


class ResultError(TaskError):
    """A job returned what a journal cannot hold: not a JSON value, too large or nested too deep."""


class OutputError(TaskError):
    """An output that cannot be published, or would never be.

    It was asked for elsewhere than in its task's call, is missing, is no file or folder of its own,
    or another task's output is in its way.
    """


class CommandFailed(TaskError):
    """A command ended with a status other than 0.

    status: what it ended with; -N where signal N killed it. said: the end of what it wrote to
    stderr, or to stdout where that is nothing.
    """

    def __init__(self, message: str, status: int, said: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.said = said

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all arguments: by default an exception passes only the message to __init__."""
        return type(self), (str(self), self.status, self.said)


class CommandOutOfMemory(CommandFailed):
    """The kernel killed a command because memory ran out."""
