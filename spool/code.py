"""What code a run consists of, beside the job's own file: which files, and what was in them.

A worker that has imported helper modules publishes a record of them, and so does a start for the
files that a command or the job's `args` name. Such a record has the digest of its bytes for a name:
the same code is one record, whoever publishes it, and a record is what it was or it is nothing.
Every attempt tells in its heartbeat which record is its own. By them a later start sees that a file
has changed since, and `results` tell which code each of them comes from.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from gpuspool.spool.codec import decode, encode
from gpuspool.spool.errors import Damaged
from gpuspool.spool.layout import Layout, parse_code
from gpuspool.spool.publish import Owners, listdir, publish, read_bytes
from gpuspool.spool.records import Code, CodeFile

# A file of at most so many bytes is known by its content. Of a larger one (weights) reading all of
# it at each start would take longer than the start, so it is known by its size and time of change.
READ_BYTES = 1 << 20

# The text of a module is kept if it has at most so many bytes, and all texts of a record at most so
# many. That is far more than people write, and keeps generated tables out of the spool.
TEXT_BYTES = 256 << 10
ALL_TEXT_BYTES = 4 << 20

# The longest record that is read: all texts, each byte of which may take six in JSON, and the rest.
RECORD_BYTES = 6 * ALL_TEXT_BYTES + (4 << 20)


def look_at(path: str, name: str, module: str = "") -> CodeFile | None:
    """A file as it is now; None where it is no regular file that can be read.

    name, module: as in a `CodeFile`. The text is kept where there is a module.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return None
            if about.st_size > READ_BYTES:
                return CodeFile(name=name, module=module, size=about.st_size, mtime=about.st_mtime)
            data = file.read(READ_BYTES + 1)
    except (OSError, ValueError):
        return None
    return _of_content(name, module, data)


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a FIFO too, which would else wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _of_content(name: str, module: str, data: bytes) -> CodeFile:
    text = None
    if module and len(data) <= TEXT_BYTES:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = None
    digest = hashlib.sha256(data).hexdigest()
    return CodeFile(name=name, module=module, sha256=digest, size=len(data), text=text)


def look_from_outside(path: str, name: str) -> CodeFile | None:
    """A file by its size and time of change, without opening it; None where there is none.

    For what only the job knows how to read: it may be large, or on a file system whose reads hang.
    """
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    return CodeFile(name=name, size=about.st_size, mtime=about.st_mtime)


def is_known_from_outside(file: CodeFile) -> bool:
    """Whether a file is known by its size and time of change alone."""
    return not file.module and not file.sha256


def is_same(one: CodeFile, other: CodeFile | None) -> bool:
    """Whether two looks at a file found the same content."""
    if other is None:
        return False
    if one.sha256 or other.sha256:
        return one.sha256 == other.sha256
    return (one.size, one.mtime) == (other.size, other.mtime)


def conflicts(one: Code, other: Code) -> list[str]:
    """The names of the files that both records know, and know with other content."""
    known = {file.name: file for file in one.files}
    found: list[str] = []
    for file in other.files:
        if file.name in known and not is_same(known[file.name], file):
            found.append(file.name)
    return found


def name_of(path: str, folder: str) -> str:
    """How a record names a file: relative to this folder, the job's, where it lies below that.

    So a project that was moved, job and helpers together, is still the same code.
    """
    if folder and path.startswith(folder.rstrip("/") + "/"):
        return os.path.relpath(path, folder)
    return path


def make_code(job_sha256: str, files: Iterable[CodeFile]) -> Code:
    """The record of these files, each with its text as far as there is room for all of them."""
    # Two that know the same must come out alike, in whatever order they met the files.
    kept: list[CodeFile] = []
    left = ALL_TEXT_BYTES
    for file in sorted(files, key=lambda file: file.name):
        if file.text is not None:
            left -= file.size
            if left < 0:
                file = msgspec.structs.replace(file, text=None)
        kept.append(file)
    return Code(job_sha256=job_sha256, files=kept)


def publish_code(layout: Layout, code: Code) -> str:
    """Publish a record by link(2), unless it is there already; returns its name. Raises OSError."""
    data = encode(code)
    name = _digest(data)
    path = layout.code(name)
    if not path.exists():
        publish(path, data)
    return name


def read_code(layout: Layout, name: str, owners: Owners | None = None) -> Code | None:
    """The record of this name; None where there is none, or where it is not what its name says.

    owners: as for `read_bytes`. Raises OSError.
    """
    if not name:
        return None
    data = read_bytes(layout.code(name), 0, RECORD_BYTES, owners) or b""
    if _digest(data) != name:
        return None
    try:
        return decode(data, Code)
    except Damaged:
        return None


def damaged_records(layout: Layout) -> Iterator[Path]:
    """The records that are not what their names say. Raises OSError."""
    for filename in listdir(layout.subdir("job")):
        name = parse_code(filename)
        if name is not None and read_code(layout, name) is None:
            yield layout.code(name)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
