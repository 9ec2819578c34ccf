"""`python -P -m worker --spool DIR --rank N --attempt K`: what the parent starts. Not for people."""

from __future__ import annotations

import argparse
import faulthandler
import sys

from spool.errors import EXIT_CANNOT_CLOSE, GpuspoolError, SpoolError
from spool.identity import myself
from spool.journal import start_journal
from spool.layout import Layout, attempt_name
from spool.publish import read_record
from spool.records import Intent
from spool.view import load_run, refuse_unsafe
from worker.attempt import Attempt
from worker.say import say


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -P -m worker", description="One attempt of one rank of a gpuspool run."
    )
    parser.add_argument("--spool", required=True, metavar="DIR", help="the run's spool directory")
    parser.add_argument("--rank", required=True, type=int, metavar="N", help="the rank this process is")
    parser.add_argument(
        "--attempt", required=True, type=int, metavar="K", help="the number of this attempt of the rank"
    )
    return parser.parse_args()


def _intent(layout: Layout, name: str) -> Intent:
    """What the parent wrote for this attempt. Raises SpoolError where that cannot be read."""
    intent = read_record(layout.intent(name), Intent)
    if intent is None:
        raise SpoolError(f"{layout.intent(name)} cannot be read; the parent starts the next attempt")
    return intent


def main() -> int:
    arguments = _arguments()
    faulthandler.enable()
    layout = Layout(arguments.spool)
    name = attempt_name(arguments.rank, arguments.attempt)
    try:
        refuse_unsafe(layout)
        run, intent = load_run(layout), _intent(layout, name)
        journal = start_journal(layout, name, myself())
        if journal is None:
            say(f"gpuspool: {name} was started or closed before; this process ends")
            return 0
        return Attempt(layout, run, intent, arguments.rank, journal).run()
    except GpuspoolError as error:
        say(f"gpuspool: {error}")
        return error.exit_code
    except OSError as error:
        say(f"gpuspool: {name} cannot begin, or end: {error}")
        return EXIT_CANNOT_CLOSE


if __name__ == "__main__":
    sys.exit(main())
