"""What is worth knowing before one looks at the page of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpuspool.orchestrator.page.reading import Reading
from gpuspool.orchestrator.page.shown import MESSAGE_LETTERS, told
from gpuspool.orchestrator.text.words import count_of, quoted_path
from gpuspool.spool.states import RunState

# Clocks that are apart by less than this put no call where a person would look for another.
CLOCKS_APART_S = 60.0


def notes_on(reading: Reading, hosts: Sequence[str], *, draws_each: bool) -> list[str]:
    """The notes at the top of a page. hosts: of each attempt, as it is shown."""
    notes = [
        *_of_state(reading),
        *_of_size(reading, draws_each),
        *_of_tasks(reading),
        *_of_clocks_set(reading, hosts),
        *_of_clocks_apart(reading),
    ]
    return [told(note, MESSAGE_LETTERS) for note in notes]


def _of_state(reading: Reading) -> Iterator[str]:
    match reading.now["state"]:
        case RunState.RUNNING:
            yield "The run was under way when this page was made: it tells of that moment."
        case RunState.SILENT:
            yield (
                "Nothing was heard of the run lately when this page was made, and nothing proves "
                "that it is over: each process counts up to the moment at which it was heard last."
            )


def _of_size(reading: Reading, draws_each: bool) -> Iterator[str]:
    if not draws_each:
        calls = count_of(reading.n_calls, "call")
        yield (
            f"There are too many calls to draw each ({calls}). The timeline shows how busy each "
            "rank was, and names the slowest calls and the failed tasks alone."
        )


def _of_tasks(reading: Reading) -> Iterator[str]:
    now = reading.now
    if now["doubtful"]:
        tasks = count_of(now["doubtful"], "task has", "tasks have")
        yield f"{tasks} failed somewhere and may yet complete: no verdict so far."
    n_more = reading.view.ledger.duplicates
    if n_more:
        calls = count_of(n_more, "call")
        yield (
            f"{calls} completed a task that was complete already, as happens after a kill. Each "
            "task counts once."
        )
    if now["damage"]:
        found = count_of(len(now["damage"]), "thing", "things")
        yield (
            f"{found} in the spool could not be read, and may be missing here: "
            f"gpuspool verify {quoted_path(reading.named)}"
        )


def _of_clocks_set(reading: Reading, hosts: Sequence[str]) -> Iterator[str]:
    """Which clocks were set, in so far as it is seen: those of hosts, each once."""
    jumps: dict[str, float] = {}
    for attempt, host in zip(reading.attempts, hosts, strict=True):
        for _, seconds in attempt.calls.jumps:
            if abs(seconds) > abs(jumps.get(host, 0.0)):
                jumps[host] = seconds
    for host, seconds in sorted(jumps.items()):
        way = "back" if seconds < 0 else "forward"
        yield (
            f"The clock of {host or 'a host'} was set {way} by {abs(seconds):,.0f} s while tasks "
            "ran. What came before is drawn by the clock as it was afterwards."
        )


# Starts take their numbers one after the other, each where the one before is seen. So one that by
# its clock began before an earlier one, or before the run was made, has another clock.
def _of_clocks_apart(reading: Reading) -> Iterator[str]:
    """Which hosts have a clock that cannot be that of the others, each once."""
    latest = reading.view.run.created_at
    before = "the run was made"
    named: set[str] = set()
    for row in sorted(reading.now["parents"], key=lambda row: int(row["epoch"])):
        host, since = row["host"] or "a host", row["since"]
        if since is None:
            continue
        if since < latest - CLOCKS_APART_S:
            if host not in named:
                named.add(host)
                yield (
                    f"By the clock of {host} a start began {latest - since:,.0f} s before "
                    f"{before}, which came first. Clocks differ: what this host did is drawn by "
                    "its own, and may lie far from what it ran beside."
                )
            continue
        latest = since
        before = f"start {row['epoch']}, on {host}"
