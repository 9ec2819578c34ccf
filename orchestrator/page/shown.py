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
_SECRET = re.compile(
    r"token|secret|passw|credential|authorization|api[-_]?key|private[-_]?key", re.IGNORECASE
)
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
            # Behind an option that is named so its value comes.
            before = [None, *value]
            return [
                HIDDEN if _is_secret_option(last) else without_secrets(one)
                for last, one in zip(before, value, strict=False)
            ]
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
        is_value_secret = not is_value_secret and _is_secret_option(word)
    return " ".join(words)


def _word(word: str) -> str:
    """One word of a command line: a value behind a `=`, JSON, or a line for a shell may hold a
    secret. Then nothing is told of what comes behind its name.
    """
    line = word.split()
    for n_told in range(1, len(line)):
        option = line[n_told - 1]
        if _is_secret_option(option):
            return f"{shell_word(' '.join(line[:n_told]))} {HIDDEN}"
    parts = word.split("=")
    for n_named in range(1, len(parts)):
        name = "=".join(parts[:n_named])
        if _is_secret(name):
            return f"{shell_word(name)}={HIDDEN}"
    # JSON may hold a `=` itself, so it begins behind the first one that a bracket follows.
    found = re.search(r"(?:^|=)(?=[{[])", word)
    if found is not None and _is_secret(word[found.end() :]):
        return f"{shell_word(word[: found.end()])}{HIDDEN}" if found.end() else HIDDEN
    header = re.match(r"[\w-]+(?=:)", word)
    if header is not None and _is_secret(header[0]):
        return f"{shell_word(header[0])}: {HIDDEN}"
    return shell_word(word)


def _is_secret_option(word: object) -> bool:
    """Whether the next word is the value of a secret."""
    is_option = isinstance(word, str) and word.startswith("-") and "=" not in word
    return is_option and _is_secret(word)


def _is_secret(name: object) -> bool:
    return bool(_SECRET.search(str(name)))
