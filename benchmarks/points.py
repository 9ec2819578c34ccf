"""One measured figure, and how a peer is started: what all benches share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import timed
from benchmarks.peers import HERE, Peer
from benchmarks.sizes import Sizes
from benchmarks.timed import Ended, Running


@dataclass(frozen=True)
class Point:
    """One figure. value is None where there is none; then the note says why."""

    bench: str
    peer: str
    case: str
    metric: str
    unit: str
    value: float | None
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """One repetition of one bench for one peer. `sizes` as chosen, `home` where folders may be
    made.
    """

    bench: str
    peer: Peer
    sizes: Sizes
    home: Path

    def point(
        self, case: str, metric: str, unit: str, value: float | None, note: str = ""
    ) -> Point:
        return Point(self.bench, self.peer.name, case, metric, unit, value, note)

    def folder(self) -> Path:
        return self.home / f"{self.bench}-{self.peer.slug}"

    # Systems keep things in HOME that they make when they are first used: GNU parallel asks its
    # machine for the longest command line, which takes as long as all else that it does at a start.
    # Nobody has that more than once.
    def surroundings(self) -> dict[str, str]:
        """The variables of the peer's environment that last over all of its runs."""
        home = self.home / "homes" / self.peer.slug
        home.mkdir(parents=True, exist_ok=True)
        return {"HOME": str(home)}


def command(
    setting: Setting, n: int, workers: int, folder: Path, bench: str = ""
) -> tuple[list[str], dict[str, object]]:
    """What is to be timed, and the adapter's answer where it is a command of its own. Raises
    OSError, ValueError.
    """
    peer = setting.peer
    bench = (bench or setting.bench) + peer.variant
    script = [
        peer.python,
        str(HERE / "adapters" / peer.adapter),
        bench,
        str(n),
        str(workers),
        str(folder),
    ]
    if not peer.has_command:
        return script, {}
    asked = timed.run(script, folder, patience_s=60, **setting.surroundings())
    if asked is None or asked.code:
        raise ValueError(f"{peer.adapter} did not answer: {asked and asked.complaint()}")
    answer: dict[str, object] = json.loads(asked.last_line)
    argv = answer["argv"]
    assert isinstance(argv, list)
    return argv, answer


def start(setting: Setting, n: int, workers: int, folder: Path) -> Running:
    """Start the peer on the tasks that FOLDER/lines holds."""
    argv, _ = command(setting, n, workers, folder)
    return Running(argv, folder, **setting.surroundings())


def whole(
    setting: Setting, n: int, workers: int, folder: Path, patience_s: float, bench: str = ""
) -> tuple[Ended | None, str]:
    """(the whole command, what is wrong with its end: "" if it did every task and said so)."""
    argv, answer = command(setting, n, workers, folder, bench)
    ended = timed.run(argv, folder, patience_s, **setting.surroundings())
    if ended is None:
        return None, f"not over after {patience_s:.0f} s"
    if ended.code:
        return ended, f"exit code {ended.code}: {ended.complaint()}"
    done = _done(ended, answer)
    return ended, "" if done == n else f"{done} of {n} tasks done"


def _done(ended: Ended, answer: dict[str, object]) -> int:
    """How many tasks the peer says are done: in the file that the adapter named, else in its last
    line.
    """
    if "lines" in answer:
        less = answer["less"]
        assert isinstance(less, int)
        return Path(str(answer["lines"])).read_bytes().count(b"\n") - less
    said = json.loads(ended.last_line)
    return int(said["tasks"]["complete"] if "tasks" in said else said["done"])


def growing(sizes: tuple[int, ...], limit_s: float) -> Iterator[tuple[int, list[float]]]:
    """Each size, with a list to which the caller adds the seconds that it took.

    It ends after a size for which the caller added none. It also ends before a size that would take
    longer than the limit, by a line through the two sizes before it.
    """
    took: list[float] = []
    for at, n in enumerate(sizes):
        if at > 1:
            slope = (took[-1] - took[-2]) / (sizes[at - 1] - sizes[at - 2])
            if took[-1] + slope * (n - sizes[at - 1]) > limit_s:
                return
        yield n, took
        if len(took) == at:
            return
