"""The entry point of the command line: what becomes of errors, and how the process ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

import click

from gpuspool.orchestrator.cli.verbs import cli
from gpuspool.orchestrator.text.progress import say
from gpuspool.spool.errors import EXIT_INTERRUPTED, GpuspoolError, UsageError

# Values of GPUSPOOL_DEBUG with which it counts as not set.
OFF = ("", "0", "false", "no")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line. Always ends with SystemExit, or ends the process.

    arguments: the words after the program's name. None for those of this process: then it ends
    right here, after the exit functions and the flushing. The interpreter would take all modules
    and what they hold apart before it ends, which takes time and serves nobody.
    """
    try:
        _main(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        if arguments is None and isinstance(end.code, int):
            _end_now(end.code)
        raise


def _end_now(code: int) -> None:
    """End the process with this code; returns only if stdout cannot be written to.

    A stream is None where its descriptor was closed before the start. Nobody hears an error about
    stderr. An error about stdout means that data is missing, so the usual end must tell of it.
    """
    # What the interpreter does at its end for others to see is done here: the exit functions first,
    # because they may print, then stderr, then stdout. All that is left out is the taking apart of
    # modules and objects, whose memory the kernel takes back anyway. If stdout cannot be flushed,
    # os._exit is not reached, and the interpreter's own end reports it.
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.flush()
    with contextlib.suppress(OSError, AttributeError):
        sys.stdout.flush()
        os._exit(code)


def _main(arguments: list[str]) -> NoReturn:
    """Run a verb. An error of ours or of the file system becomes one paragraph and an exit code.

    With --debug it is raised on, so that its traceback is seen.
    """
    is_debug = _is_debug(arguments)
    try:
        cli.main(args=arguments, prog_name="gpuspool", standalone_mode=False)
    except (GpuspoolError, OSError) as error:
        if is_debug:
            raise
        say(_paragraph(error))
        sys.exit(getattr(error, "exit_code", GpuspoolError.exit_code))
    except click.ClickException as error:
        error.show()
        sys.exit(UsageError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _is_debug(arguments: list[str]) -> bool:
    """Whether a traceback is wanted. Asked of the words, since parsing them may be what fails."""
    if "--debug" in arguments:
        return True
    return os.environ.get("GPUSPOOL_DEBUG", "").lower() not in OFF


def _paragraph(error: Exception) -> str:
    """What is said of an error: its message, or of one of the file system what, where and next."""
    if not isinstance(error, OSError):
        return str(error)
    where = ""
    if error.filename:
        where = f" ({error.filename})"
    what = error.strerror or str(error)
    return f"{what}{where}, errno {error.errno}. Fix it, then run the same command again."
