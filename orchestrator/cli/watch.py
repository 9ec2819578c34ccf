"""What `status --watch` shows: a table on a terminal, lines elsewhere, or JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol

import click

from gpuspool.orchestrator.api.watching import News, watch
from gpuspool.orchestrator.report.picture import picture
from gpuspool.orchestrator.report.table import one_line_of
from gpuspool.orchestrator.text.printable import one_line, plain_json
from gpuspool.orchestrator.text.progress import LINE_S, say
from gpuspool.orchestrator.text.screen import Screen, can_draw
from gpuspool.spool.errors import GpuspoolError

# What whoever watches need not be told to type.
WATCH = "gpuspool status --watch"


class Show(Protocol):
    """Shows people, or a program, what a watch sees."""

    def tell(self, text: str) -> None:
        """Something beside how the run stands."""

    def show(self, now: dict[str, Any]) -> None:
        """How the run stands now. Raises OSError."""

    def end(self) -> None:
        """The watch is over. Raises OSError."""


class Records:
    """A JSON object for each look."""

    def tell(self, text: str) -> None:
        say(one_line(text))

    def show(self, now: dict[str, Any]) -> None:
        click.echo(plain_json(json.dumps(now).encode()))

    def end(self) -> None:
        pass


class Due:
    """Says when a line is due: at first, every LINE_S seconds, and when the run's state changed."""

    def __init__(self) -> None:
        self._last = 0.0
        self._state = ""

    def begin_anew(self) -> None:
        """What comes next is due at once: it may be another run."""
        self._state = ""

    def is_due(self, now: dict[str, Any]) -> bool:
        """Whether this is to be told; the caller does."""
        moment = time.monotonic()
        if now["state"] == self._state and moment - self._last < LINE_S:
            return False
        self._state = now["state"]
        self._last = moment
        return True


class Lines:
    """Lines, where nothing can be drawn."""

    def __init__(self) -> None:
        self._due = Due()

    def tell(self, text: str) -> None:
        say(one_line(text))
        self._due.begin_anew()

    def show(self, now: dict[str, Any]) -> None:
        if self._due.is_due(now):
            click.echo(one_line_of(now))
            sys.stdout.flush()

    def end(self) -> None:
        pass


class Table:
    """A table that is drawn again in place; the last one stays. In the background it has lines."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._screen = Screen(sys.stdout)
        self._due = Due()

    def tell(self, text: str) -> None:
        self._screen.say(f"gpuspool: {one_line(text)}")
        self._due.begin_anew()
        self._refuse_closed()

    # The screen gets the table in the background too: it is what is drawn first after `fg`.
    def show(self, now: dict[str, Any]) -> None:
        if WATCH in now["next"]:
            now = {**now, "next": ""}
        self._screen.show(lambda columns, most_lines: picture(now, columns, most_lines))
        if self._screen.is_behind and self._due.is_due(now):
            self._screen.say(one_line_of(now))
        self._refuse_closed()

    def end(self) -> None:
        self._screen.close()
        self._refuse_closed()

    def _refuse_closed(self) -> None:
        if self._screen.error is not None:
            raise self._screen.error
        if self._screen.is_broken:
            # The thread has told of an error of ours, with its traceback.
            sys.exit(GpuspoolError.exit_code)


def show_until_ended(spool: str | None, as_json: bool) -> None:
    """Show how a run stands until it has ended. Ctrl-C ends the watch, and never the run.

    Raises what `watch` raises, OSError where nothing can be shown, and KeyboardInterrupt.
    """
    show: Show = Lines()
    if as_json:
        show = Records()
    elif can_draw(sys.stdout):
        show = Table()
    try:
        for sight in watch(spool):
            if isinstance(sight, News):
                show.tell(sight.text)
                continue
            show.show(sight)
    finally:
        show.end()
