"""What a start made of its ranks: the few lines at the end of a run that show whether it was worth
its GPUs.

It is about one start: the ranks that this process gave work to, in the time that they were its own.
Where others work on the same run, each tells its own people of its own ranks; the whole run is
another question, of another verb.

A rank's time is that of the start, from its beginning to its end, since so long its GPU was kept
for it. What no process of the rank tells of (it had ended, or the next one was not started yet) is
waiting too.

Called by `api.epoch` once a start is over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from gpuspool.orchestrator.report.keys import inputs_of
from gpuspool.orchestrator.text.cells import cut_name, left, right, width
from gpuspool.orchestrator.text.printable import one_line
from gpuspool.orchestrator.text.progress import took
from gpuspool.orchestrator.text.words import count_of, quoted_path
from gpuspool.spool.layout import rank_of
from gpuspool.spool.records import Record
from gpuspool.spool.states import LineState
from gpuspool.spool.view import View

# So many ranks have a line each. Of more, all together have one, and the least busy have theirs.
MOST_RANKS = 4
WORST = 2

# So many tasks are named.
SLOWEST = 3

# No line is longer, whatever the terminal: it also stands in logs. But for the command at the end,
# which is of no use if it is cut.
COLUMNS = 80

# The names of the columns, as docs/jobs.md has them, and what of an attempt's idle time each is.
_CAUSES = {"inputs": ("inputs",), "publish": ("publish",), "load": ("start", "load", "close")}
BUSY = "busy"
WAIT = "wait"
_COLUMNS = (BUSY, *_CAUSES, WAIT)

_VERDICTS = (LineState.COMPLETE, LineState.FAILED)


class _Timed(Record, frozen=True, kw_only=True):
    """What a journal line says of how long a task took; the rest is skipped, not decoded."""

    state: LineState
    task: int = -1
    seconds: float = 0.0


class Slow(msgspec.Struct, frozen=True, order=True):
    """How long a task took, and where."""

    seconds: float
    task: int
    rank: int


def efficiency_text(view: View, epoch: int, took_s: float) -> str:
    """What the start of this epoch made of its ranks in so many seconds, in whole lines; "" where
    it has finished no task. Raises OSError.
    """
    attempts = _attempts_of(view, epoch)
    if not any(view.finished_by.get(attempt) for attempt in attempts):
        return ""
    ranks = time_of_ranks(view, attempts, took_s)
    head = f"gpuspool: {count_of(len(ranks), 'rank')} of this start in {took(took_s)}:"
    lines = [head, *_table(ranks, took_s), *_slowest_lines(view, slowest_tasks(view, attempts))]
    lines.append(f"  next: gpuspool report {quoted_path(view.layout.root)}")
    return "".join(f"{line}\n" for line in lines)


def _attempts_of(view: View, epoch: int) -> list[str]:
    """The attempts that the parent of an epoch started."""
    found: list[str] = []
    for attempt in view.attempts:
        intent = view.intents.get(attempt)
        if intent is not None and intent.epoch == epoch:
            found.append(attempt)
    return found


def time_of_ranks(
    view: View, attempts: Sequence[str], took_s: float
) -> dict[int, dict[str, float]]:
    """By rank: the seconds of its time in each column, which are together `took_s`.

    attempts: those of the start. Raises OSError.
    """
    ranks: defaultdict[int, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_COLUMNS, 0.0))
    for attempt in attempts:
        row = ranks[rank_of(attempt)]
        busy_s, idle_s = _spent(view, attempt)
        row[BUSY] += busy_s
        for name, causes in _CAUSES.items():
            row[name] += sum(idle_s.get(cause, 0.0) for cause in causes)
    for row in ranks.values():
        # A process may have begun a little before the start counted, or told a little too much.
        row[WAIT] = max(0.0, took_s - sum(row.values()))
    return dict(ranks)


def _spent(view: View, attempt: str) -> tuple[float, dict[str, float]]:
    """An attempt's seconds in calls, and all others by cause.

    By its own word at its end; of one that was killed, by what it told last.
    """
    closing = view.closed.get(attempt)
    if closing is not None and closing.stats is not None:
        return closing.stats.busy_s, closing.stats.idle_s
    usage = view.usage(attempt)
    return (0.0, {}) if usage is None else (usage.busy_s, usage.idle_s)


def _table(ranks: dict[int, dict[str, float]], took_s: float) -> list[str]:
    """A line for each rank where they are few, else one for all and one for each of the worst."""
    rows: list[tuple[str, dict[str, float]]] = []
    if len(ranks) > 1:
        whole = {name: sum(row[name] for row in ranks.values()) for name in _COLUMNS}
        mean = {name: seconds / len(ranks) for name, seconds in whole.items()}
        rows.append((f"all {len(ranks)}", mean))
    in_order = sorted(ranks)
    if len(ranks) > MOST_RANKS:
        in_order = sorted(ranks, key=lambda rank: (ranks[rank][BUSY], rank))[:WORST]
    rows += [(f"rank {rank}", ranks[rank]) for rank in in_order]
    first = max(width(name) for name, _ in rows)
    lines = ["  " + " " * first + "".join(right(name, 9) for name in _COLUMNS)]
    for name, row in rows:
        shares = "".join(right(f"{_percent(row[column], took_s)} %", 9) for column in _COLUMNS)
        lines.append(f"  {left(name, first)}{shares}")
    if len(ranks) > MOST_RANKS:
        lines[-WORST] += "  the least busy"
    return lines


def _percent(seconds: float, took_s: float) -> int:
    return min(100, round(100 * seconds / took_s))


# The journals were read as they grew. To learn from every line how long its task took was too much
# then, while workers ran.
def slowest_tasks(view: View, attempts: Sequence[str]) -> list[Slow]:
    """The tasks that took longest in these attempts, by the lines with their verdicts, the slowest
    first. Raises OSError.
    """
    best: dict[int, Slow] = {}
    least_s = -1.0
    for attempt in attempts:
        known = view.journals.get(attempt)
        if known is None:
            continue
        for at, line in view.reread(attempt, _Timed):
            if at >= known.offset:
                break
            if line.seconds <= least_s or line.state not in _VERDICTS:
                continue
            # A task may have run twice.
            before = best.get(line.task)
            if before is None or before.seconds < line.seconds:
                best[line.task] = Slow(line.seconds, line.task, rank_of(attempt))
            if len(best) > SLOWEST:
                del best[min(best.values()).task]
                least_s = min(best.values()).seconds
    return sorted(best.values(), reverse=True)


def _slowest_lines(view: View, slow: Sequence[Slow]) -> list[str]:
    inputs = inputs_of(view, {one.task: one.rank for one in slow})
    lines: list[str] = []
    for number, one in enumerate(slow):
        known = inputs.get(one.task)
        key = f"#{one.task}" if known is None else one_line(known.key)
        begin = "slowest" if number == 0 else ""
        line = f"  {left(begin, 9)}{right(took(one.seconds), 8)}  rank {one.rank}  "
        lines.append(line + cut_name(key, COLUMNS - width(line)))
    return lines
