"""`python -P -m gpuspool.worker --spool DIR --rank N --attempt K`: what the parent starts. Not for
people.
"""

from __future__ import annotations

import faulthandler
import gc
import sys

from gpuspool.spool.errors import EXIT_CANNOT_CLOSE, GpuspoolError, SpoolError
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.publish import read_sealed
from gpuspool.spool.records import Intent
from gpuspool.spool.view import load_run, refuse_unsafe
from gpuspool.worker.attempt import Attempt
from gpuspool.worker.say import say


def _intent(layout: Layout, name: str) -> Intent:
    """What the parent wrote for this attempt. Raises SpoolError where that cannot be read."""
    intent = read_sealed(layout.intent(name), Intent)
    if intent is None:
        raise SpoolError(
            f"{layout.intent(name)} cannot be read; the parent starts the next attempt"
        )
    return intent


def main() -> int:
    words = sys.argv[1:]
    given = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 6 or given.keys() != {"--spool", "--rank", "--attempt"}:
        is_asked = words == ["--help"]
        print(__doc__, file=sys.stdout if is_asked else sys.stderr)
        return 0 if is_asked else 2
    faulthandler.enable()
    layout, rank = Layout(given["--spool"]), int(given["--rank"])
    name = attempt_name(rank, int(given["--attempt"]))
    try:
        refuse_unsafe(layout)
        run, intent = load_run(layout), _intent(layout, name)
        journal = start_journal(layout, name, myself())
        if journal is None:
            say(f"gpuspool: {name} was started or closed before; this process ends")
            return 0
        # what is ours stays until the end, which comes sooner when nobody looks through it
        gc.freeze()
        return Attempt(layout, run, intent, rank, journal).run()
    except OSError as error:
        say(f"gpuspool: {name} cannot begin, or end: {error}")
        return EXIT_CANNOT_CLOSE
    except GpuspoolError as error:
        say(f"gpuspool: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
