"""`python -P -m gpuspool.worker --spool DIR --rank N --attempt K`: what the parent starts.

Not for people.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Imports make many objects, and all of them stay. The collector would look through them again
    # and again, which takes 2 of the 65 ms of a start. `_run` lets it work from then on.
    gc.disable()

from gpuspool.spool.errors import EXIT_CANNOT_CLOSE, GpuspoolError, SpoolError
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.open_folder import SPOOL, OpenFolder
from gpuspool.spool.processes import is_this_process, run_mark
from gpuspool.spool.publish import Owners, read_sealed
from gpuspool.spool.records import Intent, Run
from gpuspool.spool.signals import restore_defaults
from gpuspool.spool.trust import Trust, refuse_strangers, refuse_unsafe
from gpuspool.spool.view import load_run
from gpuspool.worker import leaving
from gpuspool.worker.attempt import Attempt
from gpuspool.worker.folders import Folders
from gpuspool.worker.nudges import Nudges, nudges_of_stdin
from gpuspool.worker.say import say, tell_instead


def _read_intent(layout: Layout, name: str) -> Intent:
    """What the parent wrote for this attempt.

    Raises SpoolError where it cannot be read, and UsageError where another user wrote it.
    """
    # All that this process will run stands in there, and the parent is a process of the same user.
    # So nobody else may have written it, whomever the parent trusts.
    path = layout.intent(name)
    owners: Owners = {}
    intent = read_sealed(path, Intent, owners)
    refuse_strangers(layout, Trust(), owners)
    if intent is None:
        raise SpoolError(f"{path} cannot be read; the parent starts the next attempt")
    return intent


def _parse(words: list[str]) -> dict[str, str] | None:
    """The arguments by name; None where they are not exactly the three."""
    given = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 6 or given.keys() != {"--spool", "--rank", "--attempt"}:
        return None
    return given


def _refuse_another_spool(run: Run, folder: OpenFolder, name: str) -> None:
    """Raise SpoolError where this is not the spool that the parent meant.

    Since the parent looked, another run may have been made at its path.
    """
    if not is_this_process(run_mark(run.id, folder.folder_id), name):
        raise SpoolError(
            f"{folder.path} is not the spool that {name} was started for; this process ends"
        )


def _run(root: Path, rank: int, name: str, nudges: Nudges) -> int:
    """Begin the attempt and run it; returns the exit code. Raises GpuspoolError and OSError."""
    folder = OpenFolder(root, SPOOL)
    by_path = Layout(root)
    intent = _read_intent(by_path, name)
    owners: Owners = {}
    run = load_run(by_path, owners=owners)
    refuse_unsafe(by_path, Trust(intent.trusted), owners)
    _refuse_another_spool(run, folder, name)
    # From here on the spool is reached through the folder that is held open. See `folders`.
    tell_instead(str(folder.held), str(folder.path))
    layout = Layout(folder.held)
    journal = start_journal(layout, name, myself())
    if journal is None:
        say(f"gpuspool: {name} was started or closed before; this process ends")
        return 0
    # All that exists by now stays until the end of the process. The collector need not look
    # through it any more, which also makes that end come sooner.
    gc.freeze()
    gc.enable()
    return Attempt(layout, Folders(folder), run, intent, rank, journal, nudges).run()


def main() -> int:
    """The process of one worker; returns its exit code, or -N for the signal that shall end it."""
    words = sys.argv[1:]
    given = _parse(words)
    if given is None:
        if words == ["--help"]:
            print(__doc__)
            return 0
        print(__doc__, file=sys.stderr)
        return 2
    # Whoever started the run may have ignored or blocked signals, and a job must not inherit that.
    restore_defaults()
    nudges = nudges_of_stdin()
    # A crash in C leaves the stack of every thread in the log.
    faulthandler.enable()
    rank = int(given["--rank"])
    name = attempt_name(rank, int(given["--attempt"]))
    try:
        return _run(Path(os.path.abspath(given["--spool"])), rank, name, nudges)
    # First, since a SyncError is both.
    except OSError as error:
        say(f"gpuspool: {name} cannot begin, or end: {error}")
        return EXIT_CANNOT_CLOSE
    except GpuspoolError as error:
        say(f"gpuspool: {error}")
        return error.exit_code


if __name__ == "__main__":
    leaving.end(main())
