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
from types import FrameType
from typing import IO, TYPE_CHECKING, NamedTuple

from gpuspool.spool.errors import EXIT_UNSEEN

if TYPE_CHECKING:
    import subprocess

# fork(2), clone(2) and exec(2) when there is no room for another process, or no memory for it.
NO_ROOM = (errno.EAGAIN, errno.ENOMEM)

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
# What is read of a pipe at once: all that it holds.
PIPE_BYTES = 64 * 1024
# How often it is looked whether a command has ended, in ms, where nothing tells of it.
LOOK_MS = 20

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


def run(arguments: list[str], is_literal: bool) -> Ended:
    """Run a command to its end.

    Its status is EXIT_UNSEEN where somebody else has waited for it. is_literal: its program is the
    same for all tasks. Raises NotNow, NotStartable, and OSError where this task's arguments are to
    blame.
    """
    # Only here, since a worker whose job runs no commands starts faster without.
    import subprocess

    log_was = _log_size()
    try:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except OSError as error:
        # A program that is just being written is one that passes too.
        if error.errno in NO_ROOM or (is_literal and error.errno == errno.ETXTBSY):
            raise NotNow(error) from error
        if is_literal and error.errno in _OF_THE_PROGRAM:
            _refuse_gone(arguments[0], error)
            raise NotStartable(error.errno, error.strerror, arguments[0]) from error
        raise
    said = _pass_on(process)
    status = _wait(process)
    if status != 0 and not said.strip():
        said = _end_of_log(log_was)
    return Ended(status, _whole_lines(said))


# What a command writes to stderr goes into the log as it comes, and its end is kept: in the log
# alone it could not be told from what it wrote to stdout, which many programs write at their very
# end. The pipe may outlive the command, in the hands of what that left running; a thread passes on
# what still comes then.
def _pass_on(process: subprocess.Popen[bytes]) -> bytes:
    """Copy what a command writes to stderr until it has ended; returns the end of it."""
    assert process.stderr is not None
    pipe = process.stderr.fileno()
    os.set_blocking(pipe, False)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    watch, wait_ms = _watch(process.pid, poll)
    said = b""
    try:
        while True:
            is_over = watch is None and _has_ended(process.pid)
            ready = dict(poll.poll(0 if is_over else wait_ms))
            data = _read(pipe) if pipe in ready else None
            if data:
                _write(data)
                said = (said + data)[-SAID_BYTES:]
                continue
            if data == b"":
                process.stderr.close()
                return said
            if is_over or watch in ready:
                break
    finally:
        if watch is not None:
            os.close(watch)
    threading.Thread(target=_pass_on_later, args=(process.stderr,), daemon=True).start()
    return said


def _watch(pid: int, poll: select.poll) -> tuple[int | None, int | None]:
    """(a descriptor that tells when a process has ended, how long to wait for it in ms).

    Where the kernel has none, (None, how often to look).
    """
    try:
        watch = os.pidfd_open(pid)
    except OSError:
        return None, LOOK_MS
    poll.register(watch, select.POLLIN)
    return watch, None


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _read(pipe: int) -> bytes | None:
    """What can be read now: b"" at the end, None where there is nothing yet."""
    try:
        return os.read(pipe, PIPE_BYTES)
    except BlockingIOError:
        return None


def _write(data: bytes) -> None:
    # A log that takes no more must cost no task. That it takes no more is found out elsewhere.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


def _pass_on_later(stderr: IO[bytes]) -> None:
    """Copy what others, whom a command left running, write to its stderr."""
    os.set_blocking(stderr.fileno(), True)
    with stderr:
        while data := os.read(stderr.fileno(), PIPE_BYTES):
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
