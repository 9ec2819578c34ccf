"""Finding what one task left: its lines in the log of the attempt that ran it."""

from __future__ import annotations

from orchestrator.results import journal_lines
from spool.errors import UsageError
from spool.records import JournalLine, unseal
from spool.view import View


def task_log(view: View, key: str) -> str:
    """What was printed while the task with this key ran, attempt by attempt. Raises UsageError for an unknown key."""
    wanted = {task.task for manifest in view.manifests.values() for task in manifest.tasks() if task.key == key}
    if not wanted:
        raise UsageError(f"{view.layout.root} has no task with the key {key!r}. `gpuspool results` lists the keys.")
    text = ""
    for attempt in view.journals:
        for _, data in journal_lines(view, attempt):
            line = unseal(data, JournalLine)
            if line.task in wanted and line.log is not None:
                start, stop = line.log
                whole = view.layout.log(attempt).read_bytes()
                text += f"==> {attempt} <==\n" + whole[start:stop].decode(errors="replace")
    return text
