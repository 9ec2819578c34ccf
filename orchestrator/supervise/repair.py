"""Repairing a spool that was damaged, before and while a run goes on with it. Nothing is deleted.

`repair` and `repair_job` are called by a start, under the lock, before it reads anything else,
`repair` only where no other parent may be alive: they make whole what everything hangs on, the
folders, FORMAT, both copies of run.json, and the job. Whatever is replaced is copied to corrupt/
first. Where locks do not work several starts may repair at the same moment: what another one has
repaired just now is no error. Other records cannot be made whole and cost what they held: their
tasks are looked up elsewhere or run again. Of those `DamageKeeper` copies the files to corrupt/
when the loop meets them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from gpuspool.spool.code import damaged_records
from gpuspool.spool.codec import seal_pretty
from gpuspool.spool.errors import SpoolError
from gpuspool.spool.layout import FORMAT_TEXT, SUBDIRS, Layout
from gpuspool.spool.manifest import Damage
from gpuspool.spool.publish import (
    fsync_dir,
    is_regular,
    make_subfolder,
    publish,
    read_bytes,
    read_sealed,
    replace,
)
from gpuspool.spool.records import Job, Run
from gpuspool.spool.states import JobKind
from gpuspool.spool.view import View, is_of_older_format


class DamageKeeper:
    """Copies each file that a view found damaged to corrupt/, once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._n_kept = 0

    def keep_new(self) -> Iterator[Damage]:
        """The damage that was found since the last call, each after its file was copied.

        Raises OSError where a copy cannot be made; the next call begins with that one.
        """
        while self._n_kept < len(self._view.damage):
            damage = self._view.damage[self._n_kept]
            keep_copy(self._view.layout, damage.path)
            self._n_kept += 1
            yield damage


def keep_copy(layout: Layout, path: str) -> None:
    """Copy a damaged file to corrupt/, unless a copy is there: by link(2). Raises OSError."""
    damaged = Path(path)
    copy = layout.corrupt / f"{damaged.parent.name}-{damaged.name}"
    if not copy.exists():
        publish(copy, read_bytes(damaged) or b"")


def repair(layout: Layout, run: Run) -> None:
    """Make the folders that are missing, and FORMAT and both copies of run.json where they are
    damaged. Raises OSError.
    """
    # The folders come first, because the copies of what is damaged go to one of them. A run record
    # that is whole says all that the other one does. Both may be damaged only since the caller read
    # one, so `run` is that reading, and not what stands there now.
    _make_folders(layout)
    if is_of_older_format(layout):
        # From here on versions that know that format alone refuse the spool.
        replace(layout.format, FORMAT_TEXT.encode(), durable=True)
    elif read_bytes(layout.format) != FORMAT_TEXT.encode():
        _restore(layout, layout.format, FORMAT_TEXT.encode())
    for path in (layout.run, layout.run_copy):
        if read_sealed(path, Run) is None:
            _restore(layout, path, seal_pretty(run))
    make_way(layout.summary)
    for path in damaged_records(layout):
        # Whoever knows the same code publishes the record again.
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, layout.corrupt / f"job-{path.name}")


def _make_folders(layout: Layout) -> None:
    """Make the folders that are missing. Raises OSError."""
    for folder in map(layout.subdir, SUBDIRS):
        if not folder.is_dir():
            _move_aside(folder)
            make_subfolder(folder)
            fsync_dir(layout.root)


def repair_job(layout: Layout, job: Job, source: bytes | None) -> None:
    """Make the spool's copy of the job what its hash says.

    The whole text comes from `source`, or from the file that the job was taken from. Raises
    SpoolError where neither is what it was, OSError.
    """
    if job.kind is JobKind.COMMAND:
        return
    # The job is known by this hash. What has another one is other code, whether a disk or a person
    # changed it, and the tasks that are left must not run it unless the user says so: one run would
    # hold results of both. What has the hash is the same code, wherever it comes from.
    if not job.copy:
        raise SpoolError(
            f"{layout.root}: its newest intent, or its run record, names no copy of the job. Make "
            "a new run, with another --spool or with --fresh."
        )
    copy = layout.job_copy(job.copy)
    if _sha256(read_bytes(copy)) == job.sha256:
        return
    for whole in (source, read_bytes(Path(job.file))):
        if whole is not None and _sha256(whole) == job.sha256:
            _restore(layout, copy, whole)
            return
    raise SpoolError(
        f"{copy} is damaged or missing, and {job.file} is not what it was. Restore either, or go "
        "on with the new code: --keep-done."
    )


def _sha256(data: bytes | None) -> str:
    return hashlib.sha256(data or b"").hexdigest()


def _restore(layout: Layout, path: Path, data: bytes) -> None:
    """Replace a damaged file by rename(2), once what is there was kept."""
    make_way(path)
    keep_copy(layout, str(path))
    replace(path, data, durable=True)


def make_way(path: Path) -> None:
    """Move aside what stands in the place of a file and is no file. Raises OSError."""
    if os.path.lexists(path) and not is_regular(path):
        _move_aside(path)


def _move_aside(path: Path) -> None:
    """Rename what stands where it cannot be, a file for a folder or the reverse: it keeps existing
    as `<name>.damaged-<number>`.
    """
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
