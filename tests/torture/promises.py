"""What must be certain at every moment of a recording, whatever is lost.

This is looked up in the model, without any recovery.

A line that calls a task complete may reach the disk as soon as it is written. So by then the task's
output must be certain: its data, its name, and the names of all folders above it. When the command
has ended with exit code 0, all lines must be certain.
"""

from __future__ import annotations

from torture.checker import JOURNAL, checked_line, nonce_of
from torture.crash_recordings import TASKS, Recording
from torture.replay import Moment
from torture.two_epochs import OUT, SPOOL

Tree = dict[str, bytes | None]


def certain(recording: Recording, cut: float) -> Tree:
    """What is on disk if everything in doubt is lost."""
    moment = Moment(recording.record, cut)
    return moment.state([], {inode: before for inode, (before, _) in moment.data.items()}).tree()


def broken_promises(recording: Recording) -> list[str]:
    """Every line that came too early, and the lines that are not certain at the end."""
    found = []
    for cut, line in recording.lines():
        tree = certain(recording, cut - 1)
        for name, size in line.get("outputs", ()):
            data = tree.get(f"{OUT}/{name}")
            if data is None or len(data) != size or nonce_of(data) is None:
                found.append(
                    f"cut {cut}: the line of task {line['task']} is written "
                    f"before {name} is certain"
                )
    missing = sorted(set(range(TASKS)) - complete_tasks(certain(recording, float("inf"))))
    if missing:
        found.append(
            f"after exit code 0 the lines of {len(missing)} tasks are not certain, "
            f"task {missing[0]} for one"
        )
    return found


def complete_tasks(tree: Tree) -> set[int]:
    """The tasks that a journal in this tree calls complete."""
    found = set()
    for path, data in tree.items():
        folder, _, name = path.rpartition("/")
        if folder == f"{SPOOL}/journal" and JOURNAL.fullmatch(name) and data is not None:
            lines = filter(None, map(checked_line, data.split(b"\n")[:-1]))
            found |= {line["task"] for line in lines if line.get("state") == "complete"}
    return found
