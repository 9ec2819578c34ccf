"""What may happen to the files of a spool while nobody looks.

Each function does one kind of damage to one file or folder.

A mutation is what a bad disk, a power cut, a careless restore, an editor or another program leaves.
`KINDS` are applied to each of `PLACES`; both are chosen by name, and where in a file is chosen by a
seeded random generator, so that each case can be repeated. Nothing here knows more of a spool than
where its files lie.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Folders whose every file may be hit, and single files. What is not named here is found under
# "root".
PLACES = (
    "FORMAT", "run.json", "job", "manifests", "claims", "attempts", "journal", "parents", "beats",
    "heartbeat", "complete", "failed", "stopped", "failed-tasks", "control", "events", "usage",
    "logs", "summary.json", "orchestrator.lock", "root",
)  # fmt: skip
DECISIVE = {"FORMAT", "run.json", "job", "manifests", "claims", "attempts", "journal"}
FOREIGN = (
    "README", ".nfs000000000001", ".rank-0000.a00.json.swp", "notes.txt", "x.jsonl", "x.json",
    "rank-0000.a00.jsonl~", "999999999999", "rank-0000", "rank-00.a0.json",
    "rank-0000.a00.orphans.json",
)  # fmt: skip
NOT_OURS = "not ours\n"
BLOCK = 8192
STALE = 1000
# A FORMAT with another number is no damage, and must be refused.
ANOTHER_VERSION = re.compile(rb"gpuspool -?\d+\n")
HUGE = (b"9" * 40, b"-1", b"-" + b"9" * 25, b"1e400", b"18446744073709551616")


@dataclass(frozen=True)
class Mutation:
    """What was done to which file, and whether its content is now another than before."""

    path: Path
    is_content: bool


Kind = Callable[[random.Random, Path], None]


def files_of(spool: Path, place: str) -> list[Path]:
    """The files of a place, in order; OUT and corrupt/ belong to nobody here."""
    if place == "root":
        named = {name for name in PLACES if "." in name or name == "FORMAT"}
        found = [path for path in spool.iterdir() if path.name not in named]
    else:
        found = [spool / place, *(spool / place).rglob("*")]
    return sorted(path for path in found if path.is_file())


def torn(rng: random.Random, path: Path) -> None:
    """Cut the file anywhere, perhaps at the end of a line."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def flipped(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def wrong_digit(rng: random.Random, path: Path) -> None:
    """Flip a bit so that a number stays a number: only a checksum or a second copy shows it."""
    data = bytearray(path.read_bytes())
    at = rng.choice([at for at, byte in enumerate(data) if chr(byte).isdecimal()] or [0])
    data[at] ^= rng.choice([bit for bit in (1, 2, 4, 8) if chr(data[at] ^ bit).isdecimal()] or [1])
    path.write_bytes(data)


def noise(rng: random.Random, path: Path) -> None:
    """A block of bytes that are no UTF-8."""
    _overwrite(rng, path, bytes(rng.randrange(128, 256) for _ in range(rng.choice([1, 30, 400]))))


def zeroed(rng: random.Random, path: Path) -> None:
    """A block that was never written, at the end of a page or in the middle."""
    _overwrite(rng, path, bytes(rng.choice([1, 64, BLOCK])))


def _overwrite(rng: random.Random, path: Path, block: bytes) -> None:
    data = path.read_bytes()
    start = rng.randrange(len(data))
    path.write_bytes((data[:start] + block + data[start + len(block) :])[: len(data)])


def zeroes_appended(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(BLOCK))


def emptied(rng: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def duplicated(rng: random.Random, path: Path) -> None:
    """Repeat one line, right behind itself or at the end."""
    lines = path.read_bytes().splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines.insert(rng.choice([at + 1, len(lines)]), lines[at])
    path.write_bytes(b"".join(lines))


def swapped(rng: random.Random, path: Path) -> None:
    """Swap two lines."""
    lines = path.read_bytes().splitlines(keepends=True)
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    path.write_bytes(b"".join(lines))


def oversize_line(rng: random.Random, path: Path) -> None:
    """Two megabytes without a newline, in front of any line."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), b'{"task":' + b"x" * (2 << 20) + b"}\n")
    path.write_bytes(b"".join(lines))


def huge_number(rng: random.Random, path: Path) -> None:
    """Replace a number by one that fits into nothing.

    In a sealed file this is done to a copy of a line, which is sealed anew and put at the end.
    """
    data = path.read_bytes()
    lines = [line for line in data.splitlines(keepends=True) if b',"crc":"' in line]
    if lines:
        path.write_bytes(
            data + _sealed(_with_huge_number(rng, rng.choice(lines).rpartition(b',"crc":"')[0]))
        )
    else:
        path.write_bytes(_with_huge_number(rng, data))


def _with_huge_number(rng: random.Random, data: bytes) -> bytes:
    numbers = list(re.finditer(rb"(?<=[:\[, ])-?\d+(\.\d+)?(?=[,}\]\n ]|$)", data))
    if not numbers:
        return data
    match = rng.choice(numbers)
    return data[: match.start()] + rng.choice(HUGE) + data[match.end() :]


def _sealed(body: bytes) -> bytes:
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def no_record(rng: random.Random, path: Path) -> None:
    """JSON, even sealed, but of another kind than it should be."""
    body = rng.choice([b'{"what":"this"', b'{"task":"seven"', b'{"attempt":17,"state":null'])
    path.write_bytes(_sealed(body))


def missing(rng: random.Random, path: Path) -> None:
    path.unlink()


def a_folder(rng: random.Random, path: Path) -> None:
    """A folder where a file should be, with something in it."""
    path.unlink()
    path.mkdir()
    (path / "file").write_text("x\n")


def a_link(rng: random.Random, path: Path) -> None:
    """A symbolic link: to a file outside, to nothing, or to itself."""
    path.unlink()
    path.symlink_to(rng.choice(["/etc/hostname", "/nowhere/at/all", path.name]))


def copied(rng: random.Random, path: Path) -> None:
    """Copy the file to a name that could be one of ours, as by `cp` or a restore gone wrong."""
    number = re.search(r"\d+", path.name)
    name = f"copy-of-{path.name}"
    if number is not None:
        name = (
            path.name[: number.start()]
            + str(rng.randrange(1, 10)).zfill(len(number[0]))
            + path.name[number.end() :]
        )
    if not (path.parent / name).exists():
        shutil.copyfile(path, path.parent / name)


def folder_missing(rng: random.Random, path: Path) -> None:
    shutil.rmtree(path)


def folder_a_file(rng: random.Random, path: Path) -> None:
    """A file where a folder should be."""
    shutil.rmtree(path)
    path.write_text("not a folder\n")


def folder_foreign(rng: random.Random, path: Path) -> None:
    """Files that are not ours, some with names that look like it."""
    for name in FOREIGN:
        if not (path / name).exists():
            (path / name).write_text(NOT_OURS)
    (path / "a folder").mkdir(exist_ok=True)


def folder_stale(rng: random.Random, path: Path) -> None:
    """A thousand files that were never linked to their names."""
    for number in range(STALE):
        (path / f".rank-0000.a00.json.{number}.0.{rng.randrange(2**32):08x}").write_bytes(
            b"{" * (number % 3)
        )


ON_FILES: tuple[Kind, ...] = (
    torn, flipped, wrong_digit, noise, zeroed, zeroes_appended, emptied, duplicated, swapped,
    oversize_line,
    huge_number, no_record, missing, a_folder, a_link, copied,
)  # fmt: skip
ON_FOLDERS: tuple[Kind, ...] = (folder_missing, folder_a_file, folder_foreign, folder_stale)
KINDS = {kind.__name__: kind for kind in ON_FILES + ON_FOLDERS}
WITHOUT_CONTENT = {
    "missing",
    "a_folder",
    "a_link",
    "copied",
    *(kind.__name__ for kind in ON_FOLDERS),
}


def mutate(rng: random.Random, spool: Path, place: str, kind: str) -> Mutation | None:
    """Damage one file (or the folder) of a place; None if there is nothing to be damaged so."""
    if kind.startswith("folder_"):
        path = spool if place == "root" else spool / place
        can_be = path.is_dir() and (path != spool or kind in ("folder_foreign", "folder_stale"))
    else:
        able = kind in WITHOUT_CONTENT
        candidates = [path for path in files_of(spool, place) if able or path.stat().st_size]
        can_be = bool(candidates)
        path = rng.choice(candidates) if can_be else spool
    if not can_be:
        return None
    before = path.read_bytes() if path.is_file() else b""
    KINDS[kind](rng, path)
    is_content = kind not in WITHOUT_CONTENT
    if is_content and (path.read_bytes() == before or ANOTHER_VERSION.fullmatch(path.read_bytes())):
        return None
    return Mutation(path, is_content)


def describe(mutation: Mutation, spool: Path) -> str:
    """What stands there now, for a report."""
    path = mutation.path
    name = str(path.relative_to(spool))
    if not mutation.is_content or not path.is_file():
        return name
    beginning = path.read_bytes()[:60].decode(errors="replace")
    return f"{name}, now {path.stat().st_size} bytes: {json.dumps(beginning)}"
