"""How a run stands, drawn for a terminal. Pure: of what `status` returned alone.

Every line is safe for a terminal and fits into it, whatever keys, hosts, devices, jobs and paths
there are. A column is as wide as what stands in it. What is the same for all ranks is said once.
Where not everything fits, hosts, devices and notes are cut before the key is, and numbers never.
Where that is not enough, whole columns are left out, those of least use first.

- `table_lines`: all that `gpuspool status` prints.
- `one_line_of`: the run in one line.
- `list_lines`: several runs, one line each.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpuspool.orchestrator.report.parents import LIVE, SILENT, is_at_work
from gpuspool.orchestrator.report.queued import queued_lines
from gpuspool.orchestrator.report.ranks import FINE, TROUBLED
from gpuspool.orchestrator.report.status import doubtful_text
from gpuspool.orchestrator.text.cells import (
    CUT,
    cut_end,
    cut_front,
    cut_middle,
    cut_name,
    cut_words,
    left,
    right,
    width,
    wrap,
)
from gpuspool.orchestrator.text.printable import one_line
from gpuspool.orchestrator.text.progress import about, duration, percent_of, rate_of
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.records import CPU
from gpuspool.spool.states import Ending, Phase, RunState

# Between two columns.
GAP = "  "

# A device token is told by its end, which differs from card to card: so many letters are enough to
# tell the cards of a node apart.
TOKEN_CELLS = 7
# More devices of one rank than these are counted.
DEVICES_SHOWN = 4

# Of several parents so many are shown, and of damaged files. The rest are counted.
PARENTS_SHOWN = 8
DAMAGE_SHOWN = 8

# A command that is longer than a line goes on in the next one, as a shell takes it. Beyond so many
# lines it is left out.
COMMAND_LINES = 12

# Letters that a shell may take for more than themselves, and what must not be parted.
_SPECIAL = re.compile(r"[^\w@%+=:,./-]")
_PIECE = re.compile(r"\\.|.")

# What stands before the file of a damage, and where its bytes are told in it.
DAMAGED = "damaged: "
_PLACE = re.compile(r"(.*?)(, byte \d+)(?=: )")
# With fewer cells the end of a file's name tells nothing.
LEAST_NAME = 8

# A table of ranks is worth its two lines (names and sums) from so many lines on.
LEAST_TABLE = 4


class Column(msgspec.Struct):
    """A column of a table.

    cells: one for each row, safe for a terminal. usual, least: to how many cells it may be cut
    where lines are too long, at first and at worst; by default it may not. cut: how. is_number: it
    stands at the right. is_key: it is what the others are about, and cut after them. left_out:
    where lines are too long even so, the column with the highest number is left out first; one with
    0 never is.
    """

    name: str
    cells: list[str]
    usual: int = 1000
    least: int = 1000
    cut: Callable[[str, int], str] = cut_words
    is_number: bool = False
    is_key: bool = False
    left_out: int = 0

    @property
    def natural(self) -> int:
        """How wide it is if nothing is cut."""
        return max(map(width, (self.name, *self.cells)))

    @property
    def narrowest(self) -> int:
        """How wide it is if it is cut as far as it may be."""
        return min(self.natural, max(self.least, width(self.name)))

    @property
    def is_empty(self) -> bool:
        return not any(self.cells)


def table_lines(now: dict[str, Any], columns: int = 80, most_lines: int | None = None) -> list[str]:
    """How a run stands, in lines of at most so many cells, each safe for a terminal.

    now: what `status` returned. most_lines: never more than these; ranks in trouble come first
    then, next those that run a task, and the others are counted. "next" is left out where it is "".
    """
    columns = max(columns, 1)
    head = _head(now, columns)
    foot = _command_lines(now["next"], columns)
    if most_lines is None:
        lines = [
            *head,
            *_parents(now, columns, PARENTS_SHOWN),
            *_remarks(now, columns),
            *_ranks(now, columns, None),
            *_damage(now, columns, DAMAGE_SHOWN),
            *foot,
        ]
        return [cut_words(line, columns) for line in lines]
    return [cut_words(line, columns) for line in _fitted(now, columns, most_lines, head, foot)]


# Where lines are few, the head comes first, then the command, then some ranks, then what is said
# beside, then the parents, then the other ranks.
def _fitted(
    now: dict[str, Any], columns: int, most_lines: int, head: list[str], foot: list[str]
) -> list[str]:
    """The lines of `table_lines` where there may be no more than `most_lines`."""
    head = head[: max(0, most_lines)]
    free = most_lines - len(head)
    if len(foot) > 1 or free < 1:
        foot = []
    free -= len(foot)
    wanted = len(_ranks(now, columns, None))
    remarks = [*_remarks(now, columns), *_damage(now, columns, 1)]
    remarks = remarks[: max(0, free - min(wanted, LEAST_TABLE))]
    free -= len(remarks)
    parents = _parents(now, columns, PARENTS_SHOWN)
    room = max(0, free - min(wanted, LEAST_TABLE))
    if len(parents) > room:
        parents = _parents(now, columns, room - 1)[:room]
    free -= len(parents)
    return [*head, *parents, *remarks, *_ranks(now, columns, free), *foot]


# The head.

# What was said at such an end tells nothing: that a run was drained is known by now, and one that
# was finished and is not any more, by damage or with new tasks, has other counts than it had then.
_NO_NEWS = (Ending.DRAINED, Ending.STOPPED, Ending.FINISHED)


def _head(now: dict[str, Any], columns: int) -> list[str]:
    """The run, its state and its times; its counts; why it stopped."""
    facts = f"{one_line(now['says'])}{GAP}{_pace(now)}"
    job = cut_name(one_line(now["job"]), max(8, columns - width(facts) - len(GAP)))
    first = f"{job}{GAP}{facts}"
    counts = _counts(now["tasks"])
    where = _where(now["ranks"])
    second = [f"{counts}{GAP}{where}" if where else counts]
    if width(second[0]) > columns:
        second = [counts, where] if where else [counts]
        second = [line for text in second for line in wrap(text, columns)]
    message = one_line((now["message"] or "").partition("\n")[0])
    is_news = now["state"] == RunState.STOPPED and now["ending"] not in _NO_NEWS
    why = [cut_words(message, columns)] if message and is_news else []
    return [*(wrap(first, columns) if width(first) > columns else [first]), *second, *why]


def _pace(now: dict[str, Any]) -> str:
    """The finished part, the time that it took, the time left, and the rate."""
    text = _percent(now["tasks"])
    if now["elapsed_s"] is not None:
        is_finished = now["state"] in (RunState.COMPLETE, RunState.FAILED)
        text += f" {'in' if is_finished else 'after'} {duration(now['elapsed_s'])}"
    if now["left_s"] is not None:
        text += f", {duration(now['left_s'])} left"
    rate = rate_of(now["tasks_per_s"])
    return f"{text}, {rate}" if rate else text


def _percent(tasks: dict[str, int]) -> str:
    """The finished part of the tasks."""
    return f"{percent_of(tasks['complete'] + tasks['failed'], tasks['total'])} %"


def _counts(tasks: dict[str, int]) -> str:
    names = ("complete", "failed", "running", "waiting")
    return f"{', '.join(f'{tasks[name]:,} {name}' for name in names)} of {tasks['total']:,}"


def _where(ranks: list[dict[str, Any]]) -> str:
    """What is the same for all ranks: "on n1, cpu"."""
    host, device = _one_of(ranks, "host"), _one_of(ranks, "device")
    found = [cut_middle(one_line(host), 24)] if host else []
    if device:
        found.append(device if device == CPU else f"device {_tokens(device.split(','))}")
    return f"on {', '.join(found)}" if found else ""


def _one_of(ranks: list[dict[str, Any]], name: str) -> str:
    """What all ranks have, "" where they differ or it is not known."""
    values = {row[name] for row in ranks}
    return (values.pop() or "") if len(values) == 1 else ""


# Parents.


def _parents(now: dict[str, Any], columns: int, most: int) -> list[str]:
    """Those at work, where they are several: in trouble first, at most so many.

    Of a finished run nobody waits for one that is silent.
    """
    there = [row for row in now["parents"] if is_at_work(row)]
    if now["state"] in (RunState.COMPLETE, RunState.FAILED):
        there = [row for row in there if row["state"] == LIVE]
    if len(there) < 2 and all(row["state"] == LIVE for row in there):
        return []
    in_order = sorted(there, key=lambda row: row["state"] == LIVE)
    shown = in_order if len(there) <= most else in_order[: max(0, most - 1)]
    lines = _drawn(_parent_columns(shown), columns) if shown else []
    rest = in_order[len(shown) :]
    if rest:
        lines.append(_and_more("parent", "more" if shown else "", rest))
    return lines


def _parent_columns(rows: list[dict[str, Any]]) -> list[Column]:
    return [
        Column("parent", [str(row["epoch"]) for row in rows], is_number=True),
        Column("state", [_parent_state(row) for row in rows]),
        Column("host", _short_hosts([row["host"] for row in rows]), 16, 8, cut_middle, left_out=1),
        Column("job", [one_line(row["job"] or "") for row in rows], 12, 6, cut_middle, left_out=2),
        Column("pid", ["" if row["pid"] is None else str(row["pid"]) for row in rows], left_out=4),
        Column("since", [_clock(row["since"]) for row in rows], left_out=3),
        Column("slots", [_slots(row["slots"]) for row in rows], 12, 6, cut_end, left_out=5),
    ]


def _parent_state(row: dict[str, Any]) -> str:
    if row["state"] == SILENT and row["silent_s"] is not None:
        return f"{SILENT} {row['silent_s']:.0f} s"
    return "draining" if row["is_draining"] else row["state"]


def _slots(devices: list[str]) -> str:
    """ "8 cpu", or the ends of the tokens."""
    if len(devices) > 1 and set(devices) == {CPU}:
        return f"{len(devices)} {CPU}"
    return _tokens(devices)


def _clock(at: float | None) -> str:
    """A moment: the time of day, or where it was another day, the date too."""
    if at is None:
        return ""
    try:
        then, today = time.localtime(at), time.localtime()
    except (OverflowError, ValueError, OSError):
        return "?"
    is_today = then[:3] == today[:3]
    return time.strftime("%H:%M:%S" if is_today else "%d %b %H:%M", then)


# What is said beside the tables.


def _remarks(now: dict[str, Any], columns: int) -> list[str]:
    texts = queued_lines(now)
    if now["left_alone"]:
        workers = count_of(now["left_alone"], "worker goes", "workers go")
        them = "it" if now["left_alone"] == 1 else "them"
        text = f"{workers} on although what started {them} is gone: "
        if now["is_draining"]:
            text += "no new task is begun, and nobody but the run's own command ends one that hangs"
        else:
            text += f"`gpuspool drain` stops {them}, and the run's own command takes over"
        texts.append(text)
    if now["doubtful"]:
        text = doubtful_text(now["doubtful"])
        if now["excused"]:
            text += f"; {now['excused']} of them for a file system in trouble"
        texts.append(text)
    for parent in now["parents"]:
        if parent["is_stopped"]:
            texts.append(
                f"the command of pid {parent['pid']} is stopped, and starts and ends no worker: "
                f"`fg` in its shell or `kill -CONT {parent['pid']}` wakes it"
            )
        if parent["slots_waiting"]:
            first = next(row for row in now["ranks"] if row["epoch"] == parent["epoch"])
            slots = count_of(parent["slots_waiting"], "more rank waits", "more ranks wait")
            texts.append(f"{slots} for rank {first['rank']}, which imports the job first")
    return [line for text in texts for line in wrap(text, columns)]


def _damage(now: dict[str, Any], columns: int, most: int) -> list[str]:
    """Damaged files, at most so many."""
    found = now["damage"]
    shown = found if len(found) <= most else found[: most - 1]
    lines = [_damaged(one_line(_within(now["spool"], text)), columns) for text in shown]
    n_more = len(found) - len(shown)
    if n_more:
        lines.append(f"{DAMAGED}{n_more} {'more ' if shown else ''}places; `gpuspool verify`")
    return lines


def _within(spool: str, text: str) -> str:
    """A text that begins with a path, which is told as it is below the spool."""
    return text.removeprefix(f"{spool.rstrip('/')}/")


# Several lines mostly tell of the same file and the same fault, so the bytes are what must stay,
# then the file's name.
def _damaged(text: str, columns: int) -> str:
    """Which file is damaged and where; then, as far as there is room, what is wrong there."""
    room = columns - len(DAMAGED)
    place = _PLACE.match(text)
    if place is None:
        return f"{DAMAGED}{cut_middle(text, room)}"
    if width(place[0]) + 1 < room:
        return f"{DAMAGED}{cut_words(text, room)}"
    room_of_name = room - width(place[2])
    if room_of_name < LEAST_NAME:
        return f"{DAMAGED}{cut_middle(place[0], room)}"
    return f"{DAMAGED}{cut_front(place[1], room_of_name)}{place[2]}"


# Ranks.


def _ranks(now: dict[str, Any], columns: int, most: int | None) -> list[str]:
    """The table of ranks and its sums, in at most so many lines."""
    rows = now["ranks"]
    if not rows or (most is not None and most < min(LEAST_TABLE, len(rows) + 2)):
        return []
    sums = _sum_cells(now)
    more = _more_than_sums(now, columns)
    shown = rows
    rest: list[dict[str, Any]] = []
    if most is not None and len(rows) + 2 + len(more) > most:
        more = more if most >= LEAST_TABLE + len(more) else []
        in_order = sorted(rows, key=_by_interest)
        n_shown = max(0, min(len(rows), most - 3 - len(more)))
        shown, rest = in_order[:n_shown], in_order[n_shown:]
    lines = _drawn(_rank_columns(shown, rows, sums), columns)
    if rest:
        lines.insert(len(lines) - 1, _and_more("rank", "more" if shown else "", rest))
    return [*lines, *more]


def _by_interest(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Where a rank stands among those that are shown first: those in trouble, then those that run a
    task, then the others that may yet, idle ones, and those that have ended.
    """
    trouble = row["trouble"] if row["trouble"] >= TROUBLED else FINE
    if row["ended"] is not None:
        turn = 3
    elif row["state"] in (Phase.IDLE, Phase.CLOSING):
        turn = 2
    elif row["state"] in (Phase.RUNNING, Phase.PUBLISHING):
        turn = 0
    else:
        turn = 1
    return -trouble, turn, -row["trouble"], row["rank"]


def _rank_columns(
    shown: list[dict[str, Any]], rows: list[dict[str, Any]], sums: dict[str, str]
) -> list[Column]:
    """The columns of a table with these ranks and the sums. rows: all ranks."""
    found = [
        Column("rank", [str(row["rank"]) for row in shown], is_number=True),
        Column("state", [row["state"] for row in shown]),
    ]
    if not _one_of(rows, "device"):
        devices = [_tokens((row["device"] or "").split(",")) for row in shown]
        found.append(Column("device", devices, 12, 5, cut_front, left_out=7))
    if not _one_of(rows, "host"):
        hosts = _short_hosts([row["host"] for row in shown])
        found.append(Column("host", hosts, 16, 7, cut_middle, left_out=6))
    ages = [_age(row["task_s"]) for row in shown]
    failed = [f"{row['failed']:,}" for row in shown]
    # That none has failed is told by the head.
    failed_left_out = 2 if {*failed, sums["failed"]} != {"0"} else 8
    found += [
        Column("done", [f"{row['done']:,}" for row in shown], is_number=True, left_out=1),
        Column("failed", failed, is_number=True, left_out=failed_left_out),
        Column("for", ages, is_number=True, left_out=4),
        Column("task", [_task(row) for row in shown], 12, 8, _cut_task, is_key=True, left_out=5),
        Column("note", [one_line(row["note"]) for row in shown], 26, 12, left_out=3),
    ]
    for column in found:
        column.cells.append(sums.get(column.name, ""))
        if column.is_key:
            column.least = max(column.least, width(column.cells[-1]))
            column.usual = max(column.usual, column.least)
    return [column for column in found if not column.is_empty or column.name == "state"]


def _sum_cells(now: dict[str, Any]) -> dict[str, str]:
    tasks = now["tasks"]
    in_hand = f"{tasks['running']:,} running" if tasks["running"] else ""
    return {
        "rank": "sum",
        "done": f"{tasks['complete']:,}",
        "failed": f"{tasks['failed']:,}",
        "task": in_hand,
    }


def _more_than_sums(now: dict[str, Any], columns: int) -> list[str]:
    """Why the rows do not add up to the sums, where they do not."""
    tasks, rows = now["tasks"], now["ranks"]
    again = sum(row["done"] for row in rows) - tasks["complete"]
    nowhere = tasks["failed"] - sum(row["failed"] for row in rows)
    texts: list[str] = []
    if again > 0:
        what = "times a task was done again: it ran twice, or was redone"
        texts.append(f"the ranks have done {again:,} more: so many {what}")
    if nowhere > 0:
        texts.append(f"of {count_of(nowhere, 'failed task')} it is not known which rank had it")
    return [line for text in texts for line in wrap(text, columns)]


def _and_more(what: str, more: str, rows: list[dict[str, Any]]) -> str:
    """ "… and 47 more ranks: 45 running, 2 idle" """
    states = Counter(row["state"] for row in rows)
    named = ", ".join(f"{number} {one_line(state)}" for state, number in states.most_common())
    words = " ".join(filter(None, (str(len(rows)), more, what if len(rows) == 1 else f"{what}s")))
    return f"{CUT} and {words}: {named}"


def _task(row: dict[str, Any]) -> str:
    """The task in hand: its key, else its number as `logs --task` takes it, and how many more."""
    if row["task"] is None:
        return ""
    name = f"#{row['task']}" if row["key"] is None else one_line(row["key"])
    return f"{name} +{row['in_hand'] - 1:,}" if row["in_hand"] > 1 else name


def _cut_task(text: str, most: int) -> str:
    """A task cut to so many cells; how many more there are stays."""
    name, plus, more = text.rpartition(" +")
    if plus and more.replace(",", "").isdigit() and width(more) + 8 < most:
        return f"{cut_name(name, most - width(more) - 2)} +{more}"
    return cut_name(text, most)


def _age(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


# Devices and hosts.


def _tokens(devices: Sequence[str]) -> str:
    """Device tokens by their ends: "0,1", "…3f2a81c0,…9b1d77ee", "…3f2a81c0 +7"."""
    ends = [cut_front(one_line(device), TOKEN_CELLS) for device in devices]
    if len(ends) <= DEVICES_SHOWN or max(map(width, ends)) <= 2:
        return ",".join(ends)
    return f"{ends[0]} +{len(ends) - 1}"


def _short_hosts(hosts: Sequence[str | None]) -> list[str]:
    """Hosts without their domains, where they differ without them too."""
    full = [one_line(host or "?") for host in hosts]
    short = {host: host.partition(".")[0] for host in full}
    is_told_apart = len(set(short.values())) == len(set(full)) and all(short.values())
    return [short[host] for host in full] if is_told_apart else full


# Drawing.


def _drawn(table: list[Column], columns: int) -> list[str]:
    """The lines of a table, the names of its columns first, in at most so many cells."""
    table = _fitting(table, columns)
    widths = _widths(table, columns)
    names = [column.name for column in table]
    n_rows = len(table[0].cells)
    rows = [names, *([column.cells[at] for column in table] for at in range(n_rows))]
    lines: list[str] = []
    for row in rows:
        cells: list[str] = []
        for text, column, cells_wide in zip(row, table, widths, strict=True):
            cut = text if width(text) <= cells_wide else column.cut(text, cells_wide)
            cells.append(right(cut, cells_wide) if column.is_number else left(cut, cells_wide))
        lines.append(GAP.join(cells).rstrip())
    return lines


def _fitting(table: list[Column], columns: int) -> list[Column]:
    """The columns that fit into so many cells, as far as it can be: those of least use left out."""
    shown = list(table)
    while sum(column.narrowest + len(GAP) for column in shown) - len(GAP) > columns:
        least_used = max(shown, key=lambda column: column.left_out)
        if not least_used.left_out:
            break
        shown.remove(least_used)
    return shown


def _widths(table: list[Column], columns: int) -> list[int]:
    """How wide each column is drawn, in at most so many cells together, if that can be."""
    widths = [column.natural for column in table]
    most = columns - len(GAP) * (len(table) - 1)
    keys = [at for at, column in enumerate(table) if column.is_key]
    others = [at for at, column in enumerate(table) if not column.is_key]
    usual, least = [one.usual for one in table], [one.least for one in table]
    for group, floors in ((others, usual), (keys, usual), (others, least), (keys, least)):
        while sum(widths) > most:
            spare = [
                (widths[at], at)
                for at in group
                if widths[at] > max(floors[at], width(table[at].name))
            ]
            if not spare:
                break
            widths[max(spare)[1]] -= 1
    return widths


def _command_lines(command: str, columns: int) -> list[str]:
    """The command to type next. What is too long for a line goes on in the next one, behind a
    backslash, so that it works when it is copied.
    """
    if not command:
        return []
    line = f"next: {command}"
    if width(line) <= columns:
        return [line]
    lines = _continued(command, columns)
    return ["next:", *lines] if 0 < len(lines) <= COMMAND_LINES else []


def _continued(command: str, columns: int) -> list[str]:
    """A command in lines that a shell joins again, [] where that cannot be.

    Within quotes the backslash at the end of a line would stay, so here each letter that means
    something to a shell has a backslash of its own.
    """
    if "$'" in command:
        return []
    words = [_SPECIAL.sub(r"\\\g<0>", word) for word in shlex.split(command)]
    lines = [""]
    for piece in _PIECE.findall(" ".join(words)):
        if width(lines[-1]) + width(piece) + 1 > columns and lines[-1]:
            lines[-1] += "\\"
            lines.append("")
        lines[-1] += piece
    return lines


# A run in one line, and several of them.


def one_line_of(now: dict[str, Any]) -> str:
    """How a run stands in one line, which is as long as it must be. Safe for a terminal."""
    tasks = now["tasks"]
    finished = tasks["complete"] + tasks["failed"]
    facts = [_pace(now), f"{finished:,} of {tasks['total']:,} tasks"]
    if tasks["failed"] and now["state"] != RunState.FAILED:
        facts.append(f"{tasks['failed']:,} failed")
    if tasks["running"]:
        facts.append(f"{tasks['running']:,} running")
    facts += [f"rank {row['rank']}: {row['note']}" for row in _troubled(now)[:1]]
    return one_line(f"{now['says']}  {', '.join(facts)}")


def _troubled(now: dict[str, Any]) -> list[dict[str, Any]]:
    """The ranks in trouble, the worst first; none of a run that has ended."""
    if now["state"] not in (RunState.RUNNING, RunState.SILENT):
        return []
    found = [row for row in now["ranks"] if row["trouble"] > FINE and row["note"]]
    return sorted(found, key=lambda row: (-row["trouble"], row["rank"]))


def list_lines(runs: list[dict[str, Any]], columns: int = 80) -> list[str]:
    """One line for each run, below the names of the columns.

    runs: what `status` returned of each; of one that cannot be read "spool" and "error" alone.
    """
    if not runs:
        return []
    table = [
        Column("state", [one_line(run.get("says", "cannot be read")) for run in runs], 20, 9),
        Column("done", [_done(run) for run in runs], is_number=True, left_out=1),
        Column("failed", [_failed(run) for run in runs], is_number=True, left_out=2),
        Column("time", [_list_time(run) for run in runs], is_number=True, left_out=3),
        Column("spool", [_list_name(run) for run in runs], 16, 8, cut_end, is_key=True),
    ]
    return [cut_words(line, columns) for line in _drawn(table, columns)]


def _done(run: dict[str, Any]) -> str:
    return _percent(run["tasks"]) if "tasks" in run else ""


def _failed(run: dict[str, Any]) -> str:
    return f"{run['tasks']['failed']:,}" if "tasks" in run else ""


def _list_time(run: dict[str, Any]) -> str:
    """For how long a run goes on, or how long ago it ended."""
    if run.get("ended_at") is not None:
        return f"{about(time.time() - run['ended_at'])} ago"
    elapsed_s = run.get("elapsed_s")
    return "" if elapsed_s is None else duration(elapsed_s)


def _list_name(run: dict[str, Any]) -> str:
    name = os.path.basename(run["spool"])
    if "error" in run:
        # Errors name the path of what is wrong.
        name += f": {run['error'].removeprefix(run['spool']).lstrip('/: ')}"
    return one_line(name)
