"""Text that may have come from anywhere, made safe for a terminal.

Keys, paths, device tokens, messages of errors and logs reach a terminal through here: an escape
sequence in the name of an input could otherwise change what the person in front of it sees, a
newline could forge a line of ours, and a character that turns the direction of writing could show
`exe.fdp` as `pdf.exe`.

- `printable` is for text of several lines, whose newlines and tabs are meant.
- `one_line` is for a name or a message in a line of ours.
- `plain_json` is for JSON: it stays the same value, byte for byte once it is parsed.
- `shell_word` is for a word of a command that people copy.
- `recordable` is for what people find in a record: text that UTF-8 can say.
"""

from __future__ import annotations

import re
import shlex

# What changes more of a terminal than the place where it stands: the control characters of ASCII
# (C0 and DEL) and of Latin-1 (C1), the marks, embeddings, overrides and isolates that turn the
# direction of writing, the separators of lines and paragraphs of Unicode, and surrogates, which
# stand for bytes that are not UTF-8 and which no terminal can be sent.
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_DIRECTIONS = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_SEPARATORS = r"\u2028\u2029"
_SURROGATES = r"\ud800-\udfff"
_UNSAFE_CLASS = _CONTROLS + _DIRECTIONS + _SEPARATORS + _SURROGATES

_UNSAFE = re.compile(f"[{_UNSAFE_CLASS}]")
_UNSAFE_IN_A_LINE = re.compile(rf"[\t\n{_UNSAFE_CLASS}]")

# The same characters as they stand in the UTF-8 of JSON text. Those of C0 are not among them, since
# JSON text holds none but as escapes; neither are surrogates, which UTF-8 cannot say.
_UNSAFE_UTF8 = re.compile(
    rb"\x7f|\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]"
)


def printable(text: str) -> str:
    """The text with what is not safe for a terminal escaped as \\x1b or \\u202e.

    Newlines and tabs stay.
    """
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """The text as part of one line: as `printable`, but newlines and tabs are escaped too."""
    return _UNSAFE_IN_A_LINE.sub(_escape, text)


def shell_word(text: str) -> str:
    """The text as one word of a shell's command, which means the same when it is typed.

    What is not safe for a terminal stands byte by byte as bash and zsh have it in $'…'.
    """
    if one_line(text) == text:
        return shlex.quote(text)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_UNSAFE_IN_A_LINE.sub(_escape_for_shell, quoted)}'"


def plain_json(data: bytes) -> bytes:
    """JSON text that says the same, with what is not safe for a terminal as \\u202e.

    Outside of its strings JSON has ASCII alone, so every such character stands in a string.
    """
    return _UNSAFE_UTF8.sub(_escape_utf8, data)


def recordable(text: str) -> str:
    """The text with each surrogate escaped as \udc80: records are UTF-8, and paths may not be."""
    return text.encode(errors="backslashreplace").decode()


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    if match[0] == "\n":
        return "\\n"
    if match[0] == "\t":
        return "\\t"
    if number <= 0xFF:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}"


def _escape_for_shell(match: re.Match[str]) -> str:
    # A surrogate stands for a byte that is not UTF-8. Some stand for none, and no shell has them.
    is_byte = "\udc80" <= match[0] <= "\udcff"
    letter = match[0].encode(errors="surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in letter)


def _escape_utf8(match: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(match[0].decode())
