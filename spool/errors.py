"""Every error that gpuspool itself raises, and the exit code that each becomes.

    GpuspoolError            1   something of ours went wrong
    ├── UsageError           2   the request cannot be taken as it is; nothing was changed
    ├── NotFinished          4   the run ended early and can be resumed
    ├── SpoolError           5   the spool is damaged, or of another format
    └── OrchestratorLive     6   another orchestrator holds the spool

A message says what happened, to which path, rank or task, and what to do next, in that order.
"""

EXIT_COMPLETE = 0
EXIT_SOME_FAILED = 3
EXIT_CANNOT_CLOSE = (
    74  # of a worker whose end could not be written: its parent closes it and blames no task
)
EXIT_DRAINED = 75
EXIT_UNUSABLE = (
    76  # of a worker whose device or process was broken by what it ran: a crash like any other
)
EXIT_INTERRUPTED = 130


class GpuspoolError(Exception):
    """The root; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(GpuspoolError):
    exit_code = 2


class NotFinished(GpuspoolError):
    exit_code = 4


class SpoolError(GpuspoolError):
    exit_code = 5


class OrchestratorLive(GpuspoolError):
    exit_code = 6
