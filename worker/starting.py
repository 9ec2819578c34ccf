"""Starting processes and threads, and what it tells when that fails.

Where the system has no room for another process or thread, no task is to blame: it is so for a
moment, and for every task. `NotNow` says so: what is in hand goes back to the backlog, and the same
attempt goes on after a pause. Where the program of a command cannot be executed, and its name is
the same for all tasks, no task is to blame either: `NotStartable` ends the attempt. One that went
away is waited for before.

Called by `job`, which runs commands, and by `trouble`, which judges what a job of Python raised.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
from collections.abc import Callable
from types import FrameType
from typing import IO, TYPE_CHECKING, NamedTuple

from gpuspool.spool.errors import EXIT_UNSEEN
from gpuspool.spool.layout import RESULT_BYTES

if TYPE_CHECKING:
    import subprocess

# fork(2), clone(2) and exec(2) when there is no room for another process, or no memory for it.
NO_ROOM = (errno.EAGAIN, errno.ENOMEM)

# The most that is kept of what a command writes: one byte more than a result may have, so that it
# is seen to be too much. The rest is read too, or the command would wait for a reader.
KEPT_BYTES = RESULT_BYTES + 1

# The most that the system lets a pipe hold, unless root asked for more; and one read of it.
PIPE_BYTES = 1024 * 1024
READ_BYTES = 64 * 1024

# Where the kernel has no pidfd (before 5.3), the end of a command is seen this late at most.
END_LOOK_MS = 50

# Errors by which exec(2) tells of the program, rather than of this task's arguments.
_OF_THE_PROGRAM = frozenset(
    (
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.ENOEXEC,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EISDIR,
        errno.ELIBBAD,
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ENODEV,
        errno.EHOSTDOWN,
    )
)

# So much of the end of what a command wrote is kept: more than the traceback of a short program.
SAID_BYTES = 4000

# Where the standard library starts processes: (file, function). An EAGAIN that was raised in there
# is one of fork(2); one of a socket is not.
_STARTERS = frozenset(
    (
        ("subprocess.py", "_execute_child"),
        ("popen_fork.py", "_launch"),
        ("util.py", "spawnv_passfds"),
        ("pty.py", "fork"),
    )
)


class NotNow(Exception):
    """Something that passes keeps every task from being run, and this process is sound.

    error: what the attempt ends with if it does not pass. A private signal of this package.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class NotStartable(OSError):
    """The program of a command, the same for all tasks, is not there or cannot be executed."""

    def __str__(self) -> str:
        return f"the program {self.filename!r} of the command cannot be run: {self.strerror}"


def find_program(program: str) -> None:
    """Return if a command's program is there and may be executed. Raises NotStartable."""
    places = [program]
    if "/" not in program:
        places = [os.path.join(folder, program) for folder in os.get_exec_path()]
    number = errno.ENOENT
    for place in places:
        try:
            is_file = stat.S_ISREG(os.stat(place).st_mode)
        except OSError:
            continue
        if is_file and os.access(place, os.X_OK):
            return
        number = errno.EACCES
    raise NotStartable(number, os.strerror(number), program)


class Ended(NamedTuple):
    """How a command ended: its exit status, -N for signal N, and the end of what it wrote.

    said: to stderr; to stdout where it wrote nothing to stderr and failed.
    """

    status: int
    said: str


def run(arguments: list[str], is_literal: bool, printed: bytearray | None = None) -> Ended:
    """Run a command to its end.

    Its status is EXIT_UNSEEN where somebody else has waited for it. is_literal: its program is the
    same for all tasks. printed: gets what the command writes to its stdout, and no more than
    KEPT_BYTES of it; None leaves that to the log. Raises NotNow, NotStartable, and OSError where
    this task's arguments are to blame.
    """
    # Only here, since a worker whose job runs no commands starts faster without.
    import subprocess

    log_was = _log_size()
    stdout = None if printed is None else subprocess.PIPE
    try:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
        )
    except OSError as error:
        # A program that is just being written is one that passes too.
        if error.errno in NO_ROOM or (is_literal and error.errno == errno.ETXTBSY):
            raise NotNow(error) from error
        if is_literal and error.errno in _OF_THE_PROGRAM:
            _refuse_gone(arguments[0], error)
            raise NotStartable(error.errno, error.strerror, arguments[0]) from error
        raise
    said = _listen(process, printed)
    status = _wait(process)
    if status != 0 and not said.strip():
        said = _end_of_log(log_was) if printed is None else bytes(printed[-SAID_BYTES:])
    return Ended(status, _whole_lines(said))


# What a command writes to stderr goes into the log as it comes, and its end is kept: in the log
# alone it could not be told from what it wrote to stdout, which many programs write at their very
# end. What it writes to stdout goes into the log by itself, unless it is wanted as a result.
#
# The end of a pipe is no sign of the command's end: a process that it leaves in the background has
# the pipe too, maybe for ever. So the end of the process is watched beside the pipes. All that the
# command itself wrote is in the pipes by then, and a last look finds it.
def _listen(process: subprocess.Popen[bytes], printed: bytearray | None) -> bytes:
    """Take what a command writes until it has ended; returns the end of its stderr."""
    said = bytearray()

    def keep_said(data: bytes) -> None:
        _write(data)
        said.extend(data)
        del said[:-SAID_BYTES]

    def keep_printed(data: bytes) -> None:
        assert printed is not None
        printed.extend(data[: KEPT_BYTES - len(printed)])

    takers: dict[IO[bytes], Callable[[bytes], None]] = {}
    if process.stdout is not None:
        takers[process.stdout] = keep_printed
    if process.stderr is not None:
        takers[process.stderr] = keep_said
    _take_until_end(process.pid, takers)
    if process.stdout is not None:
        process.stdout.close()
    if process.stderr is not None and process.stderr in takers:
        later = threading.Thread(target=_pass_on_later, args=(process.stderr,), daemon=True)
        try:
            later.start()
        except RuntimeError:
            # There is no thread to be had. The command has ended all the same, and what others
            # write is lost.
            process.stderr.close()
    return bytes(said)


def _take_until_end(pid: int, takers: dict[IO[bytes], Callable[[bytes], None]]) -> None:
    """Give what comes from some pipes to their takers, until the process has ended.

    A pipe that is at its end is closed, and removed from the takers.
    """
    poll = select.poll()
    for pipe in takers:
        os.set_blocking(pipe.fileno(), False)
        poll.register(pipe, select.POLLIN)
    watch, wait_ms = _watch(pid, poll)
    try:
        is_over = False
        while takers and not is_over:
            is_over = watch is None and _has_ended(pid)
            ready = {fd for fd, _ in poll.poll(0 if is_over else wait_ms)}
            is_over = is_over or watch in ready
            for pipe, take in list(takers.items()):
                if not _take(pipe.fileno(), take):
                    poll.unregister(pipe)
                    pipe.close()
                    del takers[pipe]
    finally:
        if watch is not None:
            os.close(watch)


def _take(pipe: int, take: Callable[[bytes], None]) -> bool:
    """Give what a pipe holds now to its taker; False if nobody can write to it any more.

    More than a pipe can hold is not taken at once, or one that is always written to would never be
    left.
    """
    for _ in range(PIPE_BYTES // READ_BYTES):
        try:
            data = os.read(pipe, READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        take(data)
    return True


def _watch(pid: int, poll: select.poll) -> tuple[int | None, int | None]:
    """(a descriptor that tells when a process has ended, how long to wait for it in ms).

    Where the kernel has none, (None, how often to look).
    """
    try:
        watch = os.pidfd_open(pid)
    except OSError:
        return None, END_LOOK_MS
    poll.register(watch, select.POLLIN)
    return watch, None


def _has_ended(pid: int) -> bool:
    """Whether a command has ended. Its status is left for `_wait`."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _write(data: bytes) -> None:
    # A log that takes no more must cost no task. That it takes no more is found out elsewhere.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


def _pass_on_later(stderr: IO[bytes]) -> None:
    """Copy what others, whom a command left running, write to its stderr."""
    os.set_blocking(stderr.fileno(), True)
    with stderr:
        while data := os.read(stderr.fileno(), READ_BYTES):
            _write(data)


def _log_size() -> int:
    try:
        return os.fstat(1).st_size
    except OSError:
        return 0


def _end_of_log(start: int) -> bytes:
    """The end of what came into the log behind an offset: what a command wrote to stdout."""
    try:
        with open("/proc/self/fd/1", "rb") as log:
            size = os.fstat(log.fileno()).st_size
            if not stat.S_ISREG(os.fstat(log.fileno()).st_mode) or size <= start:
                return b""
            return os.pread(log.fileno(), SAID_BYTES, max(start, size - SAID_BYTES))
    except OSError:
        return b""


def _whole_lines(said: bytes) -> str:
    """Text as it stood there last: of a long one the lines that are whole, of each what a carriage
    return left.
    """
    if len(said) == SAID_BYTES:
        _, newline, rest = said.partition(b"\n")
        said = rest if newline else said
    lines = said.decode(errors="backslashreplace").rstrip().split("\n")
    return "\n".join(line.rstrip().rpartition("\r")[2] for line in lines)


def _refuse_gone(program: str, error: OSError) -> None:
    """Raise NotNow where a program cannot be reached that was there when the job was made.

    It may lie on a file system that is gone for a while, or be just being replaced. What is there
    and cannot be executed will not be better in a while.
    """
    try:
        find_program(program)
    except NotStartable as gone:
        if gone.errno == errno.ENOENT:
            raise NotNow(error) from error


def _wait(process: subprocess.Popen[bytes]) -> int:
    # `Popen` takes a status that nobody could read for 0. So it is read here first, in a way that
    # leaves it there.
    try:
        status = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        status = None
    process.wait()
    if status is None:
        return EXIT_UNSEEN
    if status.si_code == os.CLD_EXITED:
        return status.si_status
    return -status.si_status


def has_no_room(error: BaseException) -> bool:
    """Whether an exception says that no process or thread could be started, for want of room."""
    frame = _innermost(error)
    if frame is None:
        return False
    place = (os.path.basename(frame.f_code.co_filename), frame.f_code.co_name)
    if isinstance(error, OSError):
        return error.errno in NO_ROOM and place in _STARTERS
    return isinstance(error, RuntimeError) and place == ("threading.py", "start") and _is_new(frame)


def _is_new(frame: FrameType) -> bool:
    """Whether the thread that could not be started had never been started.

    To start one twice, or one whose class never called Thread's __init__, is the caller's fault,
    and raises the same type.
    """
    thread = frame.f_locals.get("self")
    return thread is not None and vars(thread).get("_ident", 0) is None


def _innermost(error: BaseException) -> FrameType | None:
    step = error.__traceback__
    if step is None:
        return None
    while step.tb_next is not None:
        step = step.tb_next
    return step.tb_frame
