"""Texts of a spool as a page may show them, and without what is called a secret.

Keys, messages, paths and names of hosts belong to whoever wrote the spool. Control characters, and
those that turn the direction of writing, are escaped, and what is too long to be read is cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from gpuspool.orchestrator.text.printable import one_line, shell_word
from gpuspool.spool.records import Job
from gpuspool.spool.states import JobKind

# A traceback has at most so many characters here. Of a longer one the end is kept, where the error
# is: a page with 500 of 16 KiB would be larger than all else in it.
TRACEBACK_LETTERS = 4000

# A key or a message of which more than so many characters are shown would hide what is beside it.
KEY_LETTERS = 300
MESSAGE_LETTERS = 2000

# The value of an argument with such a name is not told: a page is made to be handed on.
_SECRET = re.compile(r"token|secret|passw|credential|api[-_]?key|private[-_]?key", re.IGNORECASE)
HIDDEN = "(not shown)"


def told(text: str, most: int = KEY_LETTERS) -> str:
    """A name or a message as part of a line, cut where it is too long to be read."""
    line = one_line(text[: most + 1])
    return line if len(text) <= most else f"{line[: most - 1]}…"


def end_of(text: str) -> str:
    """The end of a traceback or a log, where the error is."""
    if len(text) <= TRACEBACK_LETTERS:
        return text
    return f"…\n{text[-TRACEBACK_LETTERS:]}"


def job_text(job: Job) -> str:
    """What was run: the words of a command, without secrets, or how the job is named."""
    return command_text(job.command) if job.kind is JobKind.COMMAND else job.spec


def as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def without_secrets(value: Any) -> Any:
    """The same, without the values of whatever is named like a secret, however deep it stands."""
    match value:
        case dict():
            return {
                name: HIDDEN if _is_secret(name) else without_secrets(one)
                for name, one in value.items()
            }
        case list():
            return [without_secrets(one) for one in value]
        case _:
            return value


def command_text(argv: Sequence[str]) -> str:
    """A command line as it is typed, without the values of what is called a secret."""
    words: list[str] = []
    is_value_secret = False
    for number, word in enumerate(argv):
        if number == 0:
            word = os.path.basename(word)
        words.append(HIDDEN if is_value_secret else _word(word))
        # After such an option its value comes.
        is_option = word.startswith("-") and "=" not in word
        is_value_secret = not is_value_secret and is_option and _is_secret(word)
    return " ".join(words)


def _word(word: str) -> str:
    """One word of a command line: a value behind a `=`, JSON, or a line for a shell may hold a
    secret. Then nothing is told of what comes behind its name.
    """
    line = word.split()
    for n_told in range(1, len(line)):
        option = line[n_told - 1]
        if option.startswith("-") and "=" not in option and _is_secret(option):
            return f"{shell_word(' '.join(line[:n_told]))} {HIDDEN}"
    parts = word.split("=")
    for n_named in range(1, len(parts)):
        name = "=".join(parts[:n_named])
        if _is_secret(name):
            return f"{shell_word(name)}={HIDDEN}"
    name, value = "=".join(parts[:-1]), parts[-1]
    if value.startswith(("{", "[")) and _is_secret(value):
        return f"{shell_word(name)}={HIDDEN}" if name else HIDDEN
    return shell_word(word)


def _is_secret(name: object) -> bool:
    return bool(_SECRET.search(str(name)))
