"""What is mended before a damaged spool goes on: its second copies, its job, its folders. Nothing
is deleted.

Called by the one orchestrator, under its lock, before it reads anything else. Whatever is replaced
is copied to corrupt/ first. Records that cannot be mended cost what they held: their tasks are
looked up elsewhere or run again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gpuspool.spool.codec import seal_pretty
from gpuspool.spool.errors import SpoolError
from gpuspool.spool.layout import FORMAT_TEXT, SUBDIRS, Layout
from gpuspool.spool.publish import (
    FOLDER_MODE,
    fsync_dir,
    is_regular,
    publish,
    read_bytes,
    read_sealed,
    replace,
)
from gpuspool.spool.records import Job, Run


def keep_copy(layout: Layout, path: str) -> None:
    """Copy a damaged file to corrupt/, once."""
    damaged = Path(path)
    copy = layout.corrupt / f"{damaged.parent.name}-{damaged.name}"
    if not copy.exists():
        publish(copy, read_bytes(damaged) or b"")


def repair(layout: Layout, run: Run) -> None:
    """Make missing folders, and FORMAT and both copies of run.json where they are damaged. Raises
    OSError.
    """
    for folder in map(layout.subdir, SUBDIRS):
        if not folder.is_dir():
            _move_aside(folder)
            folder.mkdir(FOLDER_MODE)
            fsync_dir(layout.root)
    if read_bytes(layout.format) != FORMAT_TEXT.encode():
        _restore(layout, layout.format, FORMAT_TEXT.encode())
    for path in (layout.run, layout.run_copy):
        if read_sealed(path, Run) is None:
            _restore(layout, path, seal_pretty(run))
    for path in (layout.summary, layout.holder):
        make_way(path)


def repair_job(layout: Layout, job: Job, source: bytes | None) -> None:
    """Make the copy of the job what its hash says, from `source` or the job's own file. Raises
    SpoolError.
    """
    if job.kind == "command":
        return
    copy = layout.job_copy(job.copy)
    if _sha(read_bytes(copy)) == job.sha256:
        return
    candidates = (source, read_bytes(Path(job.file)))
    whole = next((data for data in candidates if _sha(data) == job.sha256), None)
    if whole is None:
        raise SpoolError(
            f"{copy} is damaged or missing, and {job.file} is not what it was. Restore either, or go on with the new "
            "code: --keep-done."
        )
    _restore(layout, copy, whole)


def _sha(data: bytes | None) -> str:
    return hashlib.sha256(data or b"").hexdigest()


def _restore(layout: Layout, path: Path, data: bytes) -> None:
    make_way(path)
    keep_copy(layout, str(path))
    replace(path, data, durable=True)


def make_way(path: Path) -> None:
    """Move aside what stands in the place of a file and is none."""
    if os.path.lexists(path) and not is_regular(path):
        _move_aside(path)


def _move_aside(path: Path) -> None:
    """What stands where it cannot be, a file for a folder or the reverse, keeps existing under
    another name.
    """
    if not os.path.lexists(path):
        return
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    os.rename(path, aside)
