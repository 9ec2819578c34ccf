"""All that a page shows of a run: one JSON object, and behind it the numbers of each call.

Guarantees: every text in it is safe to show, wherever it came from: keys, messages, paths and names
of hosts belong to whoever wrote the spool. Control characters, and those that turn the direction of
writing, are escaped. How large the object is depends on the number of calls only up to
`MOST_CALLS`; above that, each rank is drawn in a fixed number of bins.

The page's script, `page.js`, is the one reader of the object; what it does not need is not in it.
"""

from __future__ import annotations

import array
import heapq
import itertools
import math
import os
import re
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gpuspool.orchestrator.page.axis import Axis
from gpuspool.orchestrator.page.calls import Outcome, read_calls
from gpuspool.orchestrator.page.lives import Attempt, Cause, read_attempts
from gpuspool.orchestrator.page.sums import POINTS, Used, completions, rank_bins, times_of, used_by
from gpuspool.orchestrator.report.endings import ending
from gpuspool.orchestrator.report.failures import each_failure
from gpuspool.orchestrator.report.keys import SEARCHED, read_keys
from gpuspool.orchestrator.report.naming import Namer, explain_command, logs_command, redo_command
from gpuspool.orchestrator.report.ranks import why_ended
from gpuspool.orchestrator.report.status import status
from gpuspool.orchestrator.text.groups import How, how_of
from gpuspool.orchestrator.text.printable import one_line, printable, shell_word
from gpuspool.orchestrator.text.words import count_of, quoted_path
from gpuspool.spool import __version__
from gpuspool.spool.layout import parse_attempt, rank_of
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.records import Error, Options, Record
from gpuspool.spool.states import AttemptState, JobKind, RunState
from gpuspool.spool.view import View

# Up to so many calls each is drawn, and each has its name. Above it a page would take a browser
# seconds to open, and mail programs would refuse it.
MOST_CALLS = 200_000

# So many of the slowest calls are named.
SLOWEST = 20

# So many failed tasks are named, with their tracebacks; `gpuspool failed --json` has all.
MOST_FAILED = 500

# So many kinds of failures are named. Those who fix the first ones will look again.
MOST_KINDS = 50

# A traceback has at most so many characters here. Of a longer one the end is kept, where the error
# is: a page with 500 of 16 KiB would be larger than all else in it.
TRACEBACK_LETTERS = 4000

# A key or a message of which more than so many characters are shown would hide what is beside it.
KEY_LETTERS = 300
MESSAGE_LETTERS = 2000

# Times on the axis are whole numbers of a unit, a power of ten in seconds. It is fine enough to
# tell the digits of a usual call that a page shows, and to draw the call in its place if the axis
# is made a hundred times as long. A finer one would only make the file larger.
UNITS_A_CALL = 200
UNITS_AN_AXIS = 1e5
# What four bytes hold.
MOST_UNITS = 2.0**32 - 1
LEAST_UNIT_S = 1e-6

# The value of an argument with such a name is not told: a page is made to be handed on.
_SECRET = re.compile(r"token|secret|passw|credential|api[-_]?key|private[-_]?key", re.IGNORECASE)
HIDDEN = "(not shown)"


class TaskCost(Record, frozen=True, kw_only=True):
    """What names a task and weighs it, of a manifest line; the rest is skipped, not decoded."""

    task: int
    key: str
    cost: float = 0.0


def told(text: str, most: int = KEY_LETTERS) -> str:
    """A name or a message as part of a line, cut where it is too long to be read."""
    line = one_line(text[: most + 1])
    return line if len(text) <= most else f"{line[: most - 1]}…"


@dataclass
class Run:
    """What was read of a run for a page, a trace or a list of jobs. now: `status` as of `made_at`.

    named: the spool as the user named it.
    """

    view: View
    now: dict[str, Any]
    attempts: list[Attempt]
    axis: Axis
    named: str
    made_at: float

    @property
    def n_calls(self) -> int:
        return sum(len(attempt.calls) for attempt in self.attempts)

    def host_of(self, attempt: Attempt) -> str:
        """Where an attempt ran, "" where nothing tells."""
        identity = self.view.identity(attempt.name)
        if identity is not None:
            return identity.host
        return attempt.intent.parent.host if attempt.intent is not None else ""


def read_run(view: View, named: str) -> Run:
    """Read all calls of a view that was just refreshed. Raises OSError."""
    detector = FailureDetector(view)
    now = status(view, detector, names_tasks=False, named=named)
    lives = {attempt: detector.life(attempt) for attempt in view.open_attempts}
    made_at = time.time()
    attempts = read_attempts(view, read_calls(view), lives, made_at)
    axis = Axis((attempt.began, attempt.ended) for attempt in attempts)
    return Run(view, now, attempts, axis, named, made_at)


def facts_of(run: Run) -> bytes:
    """How long the JSON is, in four bytes, the least significant first; the JSON; and the columns
    of `_each_call`, where each call is drawn. Raises OSError.
    """
    facts = _Facts(run)
    text = msgspec.json.encode(facts.all())
    return b"".join([struct.pack("<I", len(text)), text, *facts.columns])


def _planes(column: array.array[int]) -> bytes:
    """A column of numbers of four bytes: the lowest byte of each, then the next byte of each, …

    So what is alike lies together: compressed, it is a quarter shorter than the same as text.
    """
    if sys.byteorder == "big":
        column.byteswap()
    data = column.tobytes()
    return b"".join(data[byte::4] for byte in range(4))


class _Facts:
    """Puts the object together."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._view = run.view
        self._namer = Namer(run.view)
        self._attempts = run.attempts
        self._axis = run.axis
        self.columns: list[bytes] = []
        self._hosts = [told(run.host_of(attempt)) for attempt in run.attempts]
        seconds: list[float] = []
        for attempt in run.attempts:
            seconds += attempt.calls.durations_of(Outcome.COMPLETE)
        self._times = times_of(seconds)
        usual = run.axis.length if self._times is None else self._times.median
        finest = min(usual / UNITS_A_CALL, run.axis.length / UNITS_AN_AXIS)
        finest = max(finest, LEAST_UNIT_S, run.axis.length / MOST_UNITS)
        self._unit = 10.0 ** math.ceil(math.log10(finest) - 1e-9)

    def all(self) -> dict[str, Any]:
        used = used_by(self._attempts, self._axis)
        draws_each = self._run.n_calls <= MOST_CALLS
        slowest = self._slowest()
        failures = self._failures()
        named = {row["task"] for row in (*slowest, *failures["named"])}
        keys = self._every_key() if draws_each else None
        known = self._known(named)
        for row in (*slowest, *failures["named"]):
            line = known.get(row["task"])
            row["key"] = None if line is None else told(line.key)
            row["cost"] = None if line is None else line.cost
            row |= self._commands(row["task"], None if line is None else line.key)
        attempts, causes = self._attempt_rows()
        return {
            "meta": self._meta(),
            "tiles": self._tiles(used),
            "hours": self._hours(),
            "causes": causes,
            "attempts": attempts,
            "calls": self._each_call() if draws_each else None,
            "bins": None if draws_each else self._bins(),
            "keys": keys,
            "rate": self._rate(),
            "times": None if self._times is None else msgspec.to_builtins(self._times),
            "used": self._used(used),
            "slowest": slowest,
            "failures": failures,
            "how": self._how(),
            "notes": self._notes(draws_each),
        }

    # The top of the page.

    def _meta(self) -> dict[str, Any]:
        run, now = self._run, self._run.now
        return {
            "job": told(self._view.latest_job().spec),
            "spool": told(str(self._view.layout.root), 4096),
            "state": str(now["state"]),
            "says": told(now["says"]),
            "next": told(now["next"], 4096),
            "message": printable(now["message"] or "")[:MESSAGE_LETTERS],
            "made_at": run.made_at,
            "version": __version__,
            "origin": self._axis.origin,
            "length": self._axis.length,
            "unit": self._unit,
            "cuts": [[where, seconds] for where, seconds in self._axis.cuts],
        }

    def _tiles(self, used: Used) -> dict[str, Any]:
        ledger = self._view.ledger
        attempts = self._attempts
        seconds = math.fsum(attempt.seconds for attempt in attempts)
        busy = math.fsum(attempt.busy_s for attempt in attempts)
        ended = max((attempt.ended for attempt in attempts), default=self._axis.origin)
        return {
            "total": ledger.tasks,
            "complete": ledger.n_complete,
            "failed": ledger.n_failed,
            "in_hand": self._run.now["tasks"]["running"],
            "lived_s": self._axis.lived_s,
            "wall_s": ended - self._axis.origin,
            "starts": len(self._run.now["parents"]) or min(1, len(attempts)),
            "ranks": len({rank_of(attempt.name) for attempt in attempts}),
            "hosts": len(set(filter(None, self._hosts))),
            "attempts": len(attempts),
            "rank_s": seconds,
            "busy_s": busy,
            "restarts": _restarts(attempts),
            "gpu_mean": used.gpu_mean,
            "gpu_mem_most": used.gpu_mem_most,
            "rss_most": used.rss_most,
            "ran_twice": ledger.duplicates,
        }

    def _hours(self) -> list[list[Any]]:
        """[cause, seconds] of all ranks together, in the order of causes."""
        spent: dict[Cause, float] = defaultdict(float)
        for attempt in self._attempts:
            for cause, seconds in attempt.spent.items():
                spent[cause] += seconds
        return [[cause.value, spent[cause]] for cause in Cause if spent[cause] > 0.0]

    # The timeline.

    def _attempt_rows(self) -> tuple[list[dict[str, Any]], list[str]]:
        """What is told of each attempt, and the causes that their pauses are numbered by."""
        causes = list(Cause)
        number = {cause: at for at, cause in enumerate(causes)}
        rows: list[dict[str, Any]] = []
        for attempt, host in zip(self._attempts, self._hosts, strict=True):
            offset = self._axis.offset(attempt.began)
            closing, intent = attempt.closing, attempt.intent
            stats = None if closing is None else closing.stats
            rank, which = parse_attempt(attempt.name) or (-1, 0)
            failed = attempt.calls.outcomes.count(Outcome.FAILED)
            rows.append(
                {
                    "name": attempt.name,
                    "rank": rank,
                    "number": which,
                    "epoch": None if intent is None else intent.epoch,
                    "host": host,
                    "device": told("" if intent is None else intent.device),
                    "device_name": told("" if stats is None else stats.device_name),
                    "began": self._units(attempt.began - offset),
                    "ended": self._units(attempt.ended - offset),
                    "seconds": attempt.seconds,
                    "busy_s": attempt.busy_s,
                    "done": self._view.completed(attempt.name),
                    "failed": failed,
                    "state": _state(attempt),
                    "why": told(why_of(attempt)),
                    "says": told(_says(attempt), MESSAGE_LETTERS),
                    "pauses": [
                        [self._units(until - offset), number[cause]]
                        for until, cause in attempt.pauses
                    ],
                }
            )
        return rows, [cause.value for cause in causes]

    def _units(self, seconds: float) -> int:
        return max(0, round(seconds / self._unit))

    # Three columns of four bytes a call, of numbers that are mostly small, or alike, since few
    # bytes are left of such once they are compressed. Of the calls of each attempt, in order: how
    # long after the end of the one before, or the beginning of the attempt, it began; how long it
    # took; how much its task's number exceeds that of the one before. A call that is rounded never
    # begins before the last has ended.
    def _each_call(self) -> dict[str, Any]:
        gaps = array.array("I")
        durations = array.array("I")
        steps = array.array("i")
        odd: list[list[int]] = []
        scale = 1.0 / self._unit
        for attempt in self._attempts:
            calls = attempt.calls
            offset = self._axis.offset(attempt.began)
            last = self._units(attempt.began - offset)
            task = 0
            if not calls.are_all_complete():
                base = len(gaps)
                odd += [[base + at, one] for at, one in enumerate(calls.outcomes) if one]
            for begin, duration in zip(calls.begins, calls.durations, strict=True):
                start = begin - offset
                first = round(start * scale)
                stop = round((start + duration) * scale)
                if first < last:
                    first = last
                if stop < first:
                    stop = first
                gaps.append(first - last)
                durations.append(stop - first)
                last = stop
            for one in calls.tasks:
                steps.append(one - task)
                task = one
        self.columns = [_planes(column) for column in (gaps, durations, steps)]
        return {"counts": [len(attempt.calls) for attempt in self._attempts], "odd": odd}

    def _bins(self) -> dict[str, Any]:
        """By rank, what `rank_bins` says."""
        by_rank: dict[int, list[Attempt]] = defaultdict(list)
        for attempt in self._attempts:
            by_rank[rank_of(attempt.name)].append(attempt)
        return {str(rank): rank_bins(by_rank[rank], self._axis) for rank in sorted(by_rank)}

    # Figures over time, and of times.

    def _rate(self) -> dict[str, Any]:
        counts = completions(self._attempts, self._axis, self._view.ledger)
        return {"counts": counts, "total": self._view.ledger.tasks}

    def _used(self, used: Used) -> dict[str, Any]:
        return {
            "points": POINTS,
            "gpu": used.gpu,
            "gpu_mem": used.gpu_mem,
            "gpu_mem_total": used.gpu_mem_total,
            "rss": used.rss,
            "cpu": used.cpu,
        }

    # Tasks by name.

    def _slowest(self) -> list[dict[str, Any]]:
        numbered = enumerate(attempt.calls for attempt in self._attempts)
        slowest = heapq.nlargest(
            SLOWEST,
            itertools.chain.from_iterable(
                zip(calls.durations, itertools.repeat(number), itertools.count())
                for number, calls in numbered
            ),
        )
        rows: list[dict[str, Any]] = []
        for seconds, number, at in slowest:
            attempt = self._attempts[number]
            calls = attempt.calls
            offset = self._axis.offset(attempt.began)
            rows.append(
                {
                    "task": calls.tasks[at],
                    "seconds": seconds,
                    "outcome": calls.outcomes[at],
                    "rank": rank_of(attempt.name),
                    "attempt": attempt.name,
                    "host": self._hosts[number],
                    "at": self._units(calls.begins[at] - offset),
                }
            )
        return rows

    def _failures(self) -> dict[str, Any]:
        """Each kind of failure with how often it happened; the first failed tasks, with all that
        is known of them.
        """
        counts: Counter[How] = Counter()
        first: dict[How, Error] = {}

        def counted() -> Iterator[tuple[int, Error, int | None]]:
            for task, error, rank in each_failure(self._view):
                how = how_of(error)
                if how in first or len(first) < MOST_KINDS:
                    counts[how] += 1
                    first.setdefault(how, error)
                yield task, error, rank

        named = heapq.nsmallest(MOST_FAILED, counted(), key=lambda failure: failure[0])
        kinds = [
            {
                "count": count,
                "kind": str(first[how].kind),
                "type": told(first[how].type),
                "where": told(first[how].where),
                "message": told(first[how].message),
            }
            for how, count in counts.most_common()
        ]
        return {
            "count": self._view.ledger.n_failed,
            "kinds": kinds,
            "n_other": self._view.ledger.n_failed - sum(counts.values()),
            "named": [self._failure(task, error, rank) for task, error, rank in named],
            "retry": f"gpuspool retry {quoted_path(self._run.named)}",
            "all": f"gpuspool failed {quoted_path(self._run.named)} --json",
        }

    def _failure(self, task: int, error: Error, rank: int | None) -> dict[str, Any]:
        line = self._view.failed_lines.get(task)
        attempts = error.attempts or ([] if line is None else [line.attempt])
        told_by = error.told_attempt or (attempts[-1] if attempts else "")
        host = error.host
        if not host and told_by:
            identity = self._view.identity(told_by)
            host = "" if identity is None else identity.host
        return {
            "task": task,
            "kind": str(error.kind),
            "type": told(error.type),
            "where": told(error.where),
            "message": printable(error.message)[:MESSAGE_LETTERS],
            "traceback": _end_of(printable(error.traceback or error.log_tail)),
            "is_log": not error.traceback and bool(error.log_tail),
            "tries": error.tries,
            "rank": rank,
            "host": told(host),
            "device": told(error.device),
            "attempts": [told(name) for name in attempts],
        }

    def _commands(self, task: int, key: str | None) -> dict[str, str]:
        named = self._run.named
        name = self._namer.name_of(task, key)
        return {
            "explain": explain_command(named, name),
            "redo": redo_command(named, key),
            "logs": logs_command(named, name),
        }

    def _every_key(self) -> list[str | None]:
        return [None if key is None else told(key) for key in read_keys(self._view)]

    def _known(self, tasks: set[int]) -> dict[int, TaskCost]:
        """Key and cost of some tasks, as far as a readable line has them."""
        found: dict[int, TaskCost] = {}
        if len(tasks) <= SEARCHED:
            for task in tasks:
                for manifest in self._view.manifests.values():
                    line = manifest.find(task, TaskCost)
                    if line is not None:
                        found[task] = line
                        break
            return found
        missing = set(tasks)
        for manifest in self._view.manifests.values():
            if not missing:
                break
            for line in manifest.records(TaskCost):
                if line.task in missing:
                    found[line.task] = line
                    missing.remove(line.task)
        return found

    # How it was run, and what is worth knowing of the page.

    def _how(self) -> dict[str, Any]:
        view, run = self._view, self._view.run
        job = view.latest_job()
        options = msgspec.to_builtins(run.options)
        usual = msgspec.to_builtins(Options())
        versions = dict(run.versions)
        for attempt in self._attempts:
            if attempt.closing is not None and attempt.closing.stats is not None:
                versions |= attempt.closing.stats.versions
        facts: dict[str, str | float] = {
            "command": _command(run.argv),
            "job": _job_text(job),
            "sha256 of the job": job.sha256,
            "arguments": _plain(_without_secrets(run.args)) if run.args else "",
            "options": _plain({k: v for k, v in options.items() if v != usual.get(k)}),
            "folder": run.submit_dir,
            "spool": str(view.layout.root),
            "outputs": str(out_of(view.layout, run)),
            "made": run.created_at,
            "id of the run": run.id,
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
        return {
            "facts": [
                [name, value if isinstance(value, float) else told(value, 8000)]
                for name, value in facts.items()
                if value not in ("", "{}")
            ],
            "starts": [self._start(row) for row in self._run.now["parents"]],
            "hosts": self._host_rows(),
        }

    def _start(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "epoch": row["epoch"],
            "command": told(row["command"] or ""),
            "host": told(row["host"] or ""),
            "job": told(row["job"] or ""),
            "slots": told(_counted(row["slots"])),
            "since": row["since"],
            "ended_at": row["ended_at"],
            "state": told(row["state"]),
            "exit_code": row["exit_code"],
            "message": told((row["message"] or "").partition("\n")[0], MESSAGE_LETTERS),
        }

    def _host_rows(self) -> list[dict[str, Any]]:
        """By host: how many ranks and attempts it had, which devices, and how much it did."""
        rows: dict[str, dict[str, Any]] = {}
        for attempt, host in zip(self._attempts, self._hosts, strict=True):
            row = rows.setdefault(
                host, {"ranks": set(), "attempts": 0, "devices": set(), "done": 0, "seconds": 0.0}
            )
            row["ranks"].add(rank_of(attempt.name))
            row["attempts"] += 1
            row["done"] += self._view.completed(attempt.name)
            row["seconds"] += attempt.seconds
            stats = None if attempt.closing is None else attempt.closing.stats
            device = "" if attempt.intent is None else attempt.intent.device
            row["devices"].add((stats.device_name if stats is not None else "") or device)
        return [
            {
                "host": host,
                "ranks": len(row["ranks"]),
                "attempts": row["attempts"],
                "devices": told(", ".join(sorted(filter(None, row["devices"]))), 200),
                "done": row["done"],
                "seconds": row["seconds"],
            }
            for host, row in sorted(rows.items())
        ]

    def _notes(self, draws_each: bool) -> list[str]:
        notes: list[str] = []
        now = self._run.now
        if now["state"] in (RunState.RUNNING, RunState.SILENT):
            notes.append("The run was under way when this page was made: it tells of that moment.")
        if not draws_each:
            calls = count_of(self._run.n_calls, "call")
            notes.append(
                f"There are too many calls to draw each ({calls}). The timeline shows how busy "
                "each rank was, and names the slowest calls and the failed tasks alone."
            )
        if now["doubtful"]:
            tasks = count_of(now["doubtful"], "task has", "tasks have")
            notes.append(f"{tasks} failed somewhere and may yet complete: no verdict so far.")
        if self._view.ledger.duplicates:
            tasks = count_of(self._view.ledger.duplicates, "task", "tasks")
            notes.append(f"{tasks} ran twice, as happens after a kill, and counted once.")
        if now["damage"]:
            found = count_of(len(now["damage"]), "thing", "things")
            notes.append(
                f"{found} in the spool could not be read, and may be missing here: "
                f"gpuspool verify {quoted_path(self._run.named)}"
            )
        notes += self._clock_notes()
        return [told(note, MESSAGE_LETTERS) for note in notes]

    def _clock_notes(self) -> Iterator[str]:
        """Which clocks were set, in so far as it is seen: those of hosts, each once."""
        jumps: dict[str, float] = {}
        for attempt, host in zip(self._attempts, self._hosts, strict=True):
            for _, seconds in attempt.calls.jumps:
                if abs(seconds) > abs(jumps.get(host, 0.0)):
                    jumps[host] = seconds
        for host, seconds in sorted(jumps.items()):
            way = "back" if seconds < 0 else "forward"
            yield (
                f"The clock of {host or 'a host'} was set {way} by {abs(seconds):,.0f} s while "
                "tasks ran. What came before is drawn by the clock as it was afterwards."
            )


def _restarts(attempts: Iterable[Attempt]) -> int:
    """How many processes died or gave up, and were followed by another one of their rank."""
    newest: dict[int, str] = {}
    for attempt in attempts:
        newest[rank_of(attempt.name)] = attempt.name
    return sum(
        attempt.closing is not None
        and attempt.closing.state is AttemptState.FAILED
        and newest[rank_of(attempt.name)] != attempt.name
        for attempt in attempts
    )


def _state(attempt: Attempt) -> str:
    """`complete`, `failed`, `stopped`; `running`; or `lost`, where nobody has closed it yet."""
    if attempt.closing is not None:
        return str(attempt.closing.state)
    return "running" if attempt.is_alive else "lost"


def why_of(attempt: Attempt) -> str:
    """Why an attempt ended, in a word or two; "" of one that lives."""
    if attempt.closing is None:
        return "" if attempt.is_alive else "its process is gone"
    return why_ended(attempt.closing)


def _says(attempt: Attempt) -> str:
    return ending(attempt.closing) if attempt.closing is not None else ""


def _end_of(text: str) -> str:
    if len(text) <= TRACEBACK_LETTERS:
        return text
    return f"…\n{text[-TRACEBACK_LETTERS:]}"


def _job_text(job: Any) -> str:
    match job.kind:
        case JobKind.COMMAND:
            return _command(job.command)
        case _:
            return f"{job.spec} ({job.file})" if job.file else job.spec


def _counted(names: Sequence[str]) -> str:
    """Names in their order, each once: "2 × 0, 2 × 1"."""
    counts = Counter(names)
    return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in counts.items())


def _plain(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _without_secrets(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, without the values of those whose names say that they are secret."""
    return {name: HIDDEN if _SECRET.search(name) else value for name, value in args.items()}


def _command(argv: Sequence[str]) -> str:
    """A command line as it is typed, without the values of what is called a secret."""
    words: list[str] = []
    is_secret = False
    for number, word in enumerate(argv):
        if number == 0:
            word = os.path.basename(word)
        name, equals, _ = word.partition("=")
        if is_secret:
            words.append(HIDDEN)
        elif equals and _SECRET.search(name):
            words.append(f"{shell_word(name)}={HIDDEN}")
        else:
            words.append(shell_word(word))
        is_secret = (
            not is_secret and not equals and bool(re.match(r"-", word) and _SECRET.search(word))
        )
    return " ".join(words)
