"""The entry point of the command line: what becomes of errors, and how the process ends."""

from __future__ import annotations

import atexit
import io
import os
import sys
import traceback
import types
from typing import NoReturn

import click

from gpuspool.orchestrator.cli.options import PipeBroken
from gpuspool.orchestrator.cli.reaper import run_below_reaper
from gpuspool.orchestrator.cli.streams import Output, RunEnded, flush_stderr, standard_output
from gpuspool.orchestrator.cli.verbs import cli
from gpuspool.orchestrator.plan.encoding import start_again_in_utf8
from gpuspool.orchestrator.text.progress import say, write_message
from gpuspool.spool.errors import (
    EXIT_INTERRUPTED,
    EXIT_READER_GONE,
    FolderGone,
    GpuspoolError,
    UsageError,
)
from gpuspool.spool.signals import unblock_all

# Names of files that are standard output.
STDOUT_NAMES = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")

# Values of GPUSPOOL_DEBUG with which it counts as not set.
OFF = ("", "0", "false", "no")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line. Always ends with SystemExit, or ends the process.

    arguments: the words after the program's name. None for those of this process: then it ends
    right here, after the exit functions and the flushing. The interpreter would take all modules
    and what they hold apart before it ends, which takes time and serves nobody.
    """
    is_program = arguments is None
    if arguments is None:
        start_again_in_utf8()
        arguments = sys.argv[1:]
        run_below_reaper()
    with standard_output() as output:
        if is_program:
            # Whoever started this program may have blocked signals: it would never hear of a stop.
            unblock_all()
            sys.excepthook = _show_traceback
        try:
            _main(arguments, output)
        except SystemExit as end:
            if is_program:
                # Exit functions may print, so they come before the last look at stdout.
                atexit._run_exitfuncs()
            code = output.end(_code_of(end), isinstance(end, RunEnded))
        if is_program:
            flush_stderr()
            os._exit(code)
    sys.exit(code)


def _code_of(end: SystemExit) -> int:
    """The exit code that a SystemExit asks for."""
    if isinstance(end.code, int):
        return end.code
    return 0 if end.code is None else GpuspoolError.exit_code


def _main(arguments: list[str], output: Output) -> NoReturn:
    """Run a verb. An error of ours or of the file system becomes one paragraph and an exit code.

    With --debug it is raised on, so that its traceback is seen.
    """
    is_debug = _is_debug(arguments)
    try:
        cli.main(args=arguments, prog_name="gpuspool", standalone_mode=False)
    except PipeBroken as broken:
        error = broken.error
        if is_debug:
            raise error from None
        if error.filename in STDOUT_NAMES:
            sys.exit(EXIT_READER_GONE)
        _end_with(error, output)
    except (GpuspoolError, OSError) as error:
        if is_debug:
            raise
        _end_with(error, output)
    except click.ClickException as error:
        _show_usage(error)
        sys.exit(UsageError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _end_with(error: GpuspoolError | OSError, output: Output) -> NoReturn:
    """Say what went wrong, and end with its exit code."""
    # What stdout met is told at the end, where the last of it is met too.
    if error is not output.error:
        say(_paragraph(error))
    sys.exit(getattr(error, "exit_code", GpuspoolError.exit_code))


def _show_usage(error: click.ClickException) -> None:
    """What click says of words that it does not understand, which it quotes as they are."""
    text = io.StringIO()
    error.show(text)
    write_message(text.getvalue())


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Show an error that nobody expected, made safe for a terminal.

    Called by the interpreter, which then ends with exit code 1.
    """
    write_message("".join(traceback.format_exception(kind, error, trace)))


def _is_debug(arguments: list[str]) -> bool:
    """Whether a traceback is wanted. Asked of the words, since parsing them may be what fails."""
    if "--debug" in arguments:
        return True
    return os.environ.get("GPUSPOOL_DEBUG", "").lower() not in OFF


def _paragraph(error: Exception) -> str:
    """What is said of an error: its message, or of one of the file system what, where and next."""
    if not isinstance(error, OSError) or isinstance(error, FolderGone):
        return str(error)
    where = ""
    if error.filename:
        where = f" ({error.filename})"
    what = error.strerror or str(error)
    return f"{what}{where}, errno {error.errno}. Fix it, then run the same command again."
