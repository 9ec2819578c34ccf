"""A terminal for tests: a pty with a program in it, and what a person would see there.

`Glass` understands what gpuspool and a shell write: text, newlines, colours, moving up, and
erasing. What it does not understand fails the test. Lines that scroll off its top are kept in
`history`, as a terminal's scrollback keeps them.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from helpers import PATIENCE_S, Box, wait_until

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\]|[\r\n\x07\x08\t]|[^\x1b\r\n\x07\x08\t]+")


def cells(text: str) -> int:
    """How many cells a text takes on a terminal."""
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


class Glass:
    """What a terminal of so many columns and lines shows of the text that it is fed."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.history: list[str] = []
        self._rows: list[list[str]] = [[] for _ in range(lines)]
        self._row = self._column = 0

    @property
    def shown(self) -> list[str]:
        """The lines on it, without spaces at their ends, to the last that is not empty."""
        rows = ["".join(row).rstrip() for row in self._rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            assert match is not None, f"not understood: {text[at : at + 20]!r}"
            at = match.end()
            if match[2] is not None:
                self._control(match[1], match[2])
            else:
                self._text(match[0])

    def _control(self, numbers: str, letter: str) -> None:
        match letter:
            case "A":
                self._row = max(0, self._row - int(numbers or "1"))
            case "K":
                row = self._rows[self._row]
                self._rows[self._row] = row[: self._column] if numbers in ("", "0") else []
            case "J":
                assert numbers in ("", "0")
                self._rows[self._row] = self._rows[self._row][: self._column]
                for row in range(self._row + 1, self.lines):
                    self._rows[row] = []
            case "m":
                pass
            case "h" | "l" if numbers == "?2004":
                # A shell's bracketed paste.
                pass
            case _:
                raise AssertionError(f"not understood: CSI {numbers} {letter}")

    def _text(self, text: str) -> None:
        match text:
            case "\r":
                self._column = 0
            case "\n":
                self._line_feed()
            case "\x07":
                pass
            case "\x08":
                self._column = max(0, self._column - 1)
            case _:
                for character in text:
                    self._put(character)

    def _put(self, character: str) -> None:
        wide = _cells_of(character)
        if self._column + wide > self.columns:
            self._line_feed()
            self._column = 0
        row = self._rows[self._row]
        row += [" "] * (self._column + wide - len(row))
        row[self._column] = character
        if wide == 2:
            row[self._column + 1] = ""
        self._column += wide

    def _line_feed(self) -> None:
        if self._row < self.lines - 1:
            self._row += 1
            return
        self.history.append("".join(self._rows.pop(0)).rstrip())
        self._rows.append([])


class Terminal:
    """A program with a terminal of its own, which is its controlling one.

    Nothing is read from it unless a test looks: then the program may meet a full buffer.
    """

    def __init__(
        self,
        box: Box,
        *words: str | Path,
        columns: int = 80,
        lines: int = 24,
        env: Mapping[str, str | None] | None = None,
        stdout: Path | None = None,
    ) -> None:
        """stdout: a file for stdout, where only stderr shall be the terminal."""
        self._ours, theirs = os.openpty()
        os.set_blocking(self._ours, False)
        self.glass = Glass(columns or 80, lines or 24)
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.resize(columns, lines)
        environment = {**box.environment, "TERM": "xterm-256color", "NO_COLOR": None, **(env or {})}
        with open(stdout or os.devnull, "wb") as file:
            self.process = subprocess.Popen(
                list(map(str, words)),
                cwd=box.home,
                env={name: value for name, value in environment.items() if value is not None},
                stdin=theirs,
                stdout=theirs if stdout is None else file,
                stderr=theirs,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        os.close(theirs)

    def resize(self, columns: int, lines: int) -> None:
        """Change the window's size; 0 and 0 are what some programs leave it at."""
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, size)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def look(self) -> list[str]:
        """Take what was written by now; returns the lines that are shown."""
        while True:
            data = b""
            # EAGAIN: there is nothing yet. EIO: nobody has the other end open any more.
            with contextlib.suppress(OSError):
                data = os.read(self._ours, 65536)
            if not data:
                break
            text = self._decoder.decode(data)
            self.text += text
            self.glass.feed(text)
        return self.glass.shown

    @property
    def everything(self) -> list[str]:
        """What was ever left on it: what scrolled off, and what is shown."""
        return [*self.glass.history, *self.look()]

    def wait_for(self, *texts: str) -> list[str]:
        """Wait until each of these stands in a line that is shown; returns all lines."""

        def is_shown() -> bool:
            shown = "\n".join(self.look())
            return all(text in shown for text in texts)

        wait_until(is_shown)
        return self.glass.shown

    def wait_until(self, condition: Callable[[list[str]], bool]) -> list[str]:
        """Wait until what is shown satisfies a condition; returns it."""
        wait_until(lambda: condition(self.look()))
        return self.glass.shown

    def count(self, text: str) -> int:
        """How often a text was written by now."""
        self.look()
        return self.text.count(text)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self, code: int | None = None) -> list[str]:
        """Wait for the program's end, and check its exit code; returns what is shown."""

        def is_over() -> bool:
            self.look()
            return self.process.poll() is not None

        wait_until(is_over, PATIENCE_S)
        shown = self.look()
        assert code is None or self.process.returncode == code, (
            self.process.returncode,
            self.everything,
        )
        return shown

    def hang_up(self) -> None:
        """Close the terminal, as a connection that breaks does."""
        os.close(self._ours)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)
