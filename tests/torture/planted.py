"""gpuspool with a bug: `python planted.py BUG ARG…` is `gpuspool ARG…` in which one thing is wrong.

Crash states must reveal these bugs; a harness that does not see them proves nothing. They are
planted here, in the processes of the parent and of its workers, and nowhere else.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORKER = "gpuspool.worker"


def _sync_only(wanted: bool) -> None:
    """fsync only folders (True), or only files (False)."""
    sync = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) is wanted:
            sync(fd)

    os.fsync = fsync  # type: ignore[assignment]


def no_fsync() -> None:
    """Data is never made durable, names are."""
    _sync_only(True)
    os.fdatasync = lambda fd: None  # type: ignore[assignment]


def no_folder_fsync() -> None:
    """Names are never made durable, data is."""
    _sync_only(False)


def journal_first() -> None:
    """A task's line is written before its outputs are published."""
    from gpuspool.spool.journal import JournalWriter
    from gpuspool.worker.outputs import Outputs

    publish, append = Outputs.publish, JournalWriter.append
    waiting: dict[int, Outputs] = {}

    def publish_later(self: Outputs, tasks: Any) -> Any:
        found = {}
        for index in tasks:
            asked = self.asked.get(index, {}).values()
            found[index] = [(one.final.name, one.hidden.stat().st_size) for one in asked]
            waiting[index] = self
        return found

    def append_first(self: JournalWriter, line: Any, may_wait: bool = False) -> None:
        outputs = waiting.pop(line.task, None)
        append(self, line, may_wait and outputs is None)
        if outputs is not None:
            publish(outputs, [line.task])

    Outputs.publish = publish_later  # type: ignore[method-assign]
    JournalWriter.append = append_first  # type: ignore[method-assign]


def torn_tail() -> None:
    """Readers take the torn end of a journal for a whole line."""
    from gpuspool.spool.codec import R, decode
    from gpuspool.spool.journal import JournalReader
    from gpuspool.spool.publish import read_bytes
    from gpuspool.spool.records import JournalHead

    def read(self: JournalReader, kind: type[R]) -> Iterator[tuple[int, R]]:
        data = read_bytes(Path(self.path), self.offset) or b""
        for line in data.removesuffix(b"\n").split(b"\n") if data else []:
            at, self.offset = self.offset, self.offset + len(line) + 1
            if at == 0:
                self.head = decode(line, JournalHead)
            else:
                yield at, decode(line, kind)

    JournalReader.read = read  # type: ignore[method-assign]


BUGS = {bug.__name__: bug for bug in (no_fsync, no_folder_fsync, journal_first, torn_tail)}


def _plant_in_workers(bug: str) -> None:
    """Give the bug to the workers that this process starts, too."""
    start = subprocess.Popen

    def popen(argv: Any, **settings: Any) -> Any:
        if isinstance(argv, list) and argv[1:4] == ["-P", "-m", WORKER]:
            argv = [argv[0], __file__, bug, WORKER, *argv[4:]]
        return start(argv, **settings)

    subprocess.Popen = popen  # type: ignore[misc,assignment]


def main() -> Any:
    bug = sys.argv.pop(1)
    # The first entry is this folder, whose modules are the tests' and not a job's.
    sys.path.pop(0)
    BUGS[bug]()
    if sys.argv[1] == WORKER:
        from gpuspool.worker.__main__ import main as work

        del sys.argv[1]
        return work()
    from gpuspool.orchestrator.cli.main import main as orchestrate

    _plant_in_workers(bug)
    return orchestrate(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
