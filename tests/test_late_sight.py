"""Runs of several hosts on a file system through which each sees late what the others do.

A host here has a host name of its own, so that its pids mean nothing to the others, and a mount of
its own of the one folder, at the same path (`tests/lagging`). Its commands are forked from a warm
process of it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from helpers import JOBS, Box, assert_sound, journal_lines, names, wait_until
from lagging import clients
from lagging.clients import Lag, mounted
from torture import mounts
from torture.forked import Ended, Server

# As NFS does by default: what it saw of files counts for three seconds.
LAG = Lag(3, 3, 3)
# In front of a command: a host with this name, in which a folder is shown at another place too.
HOST = ("unshare", "--uts", "--mount", "sh", "-c")
SCRIPT = 'hostname "$0" && mount --bind "$1" "$2" && shift 2 && exec "$@"'


@pytest.fixture(autouse=True)
def _can_mount() -> None:
    why = mounts.why_not() or clients.why_not()
    if why:
        pytest.skip(why)


class Hosts:
    """Hosts that share a folder, each with a name, and starts of one run on them."""

    def __init__(self, box: Box, servers: dict[str, Server]) -> None:
        self.box = box
        self.servers = servers
        self.home = box / "shared"
        # The folder as it is, for the tests to look into.
        self.spool = box / "real" / "S"

    def start(self, host: str, *options: str) -> int:
        """Start the run on a host; returns what `end` takes."""
        words = ["run", f"{JOBS}/cluster.py:works", "--tasks", "tasks", "--spool", "S"]
        words += ["--arg", f"notes={self.box / 'notes'}", "--arg", "seconds=0.01", "--ranks", "1"]
        return self.servers[host].start(*words, *options, cwd=self.home)

    def attempts(self) -> set[str]:
        """The attempts that have begun a task."""
        path = self.box / "notes.calls"
        return (
            {line.split()[2] for line in path.read_text().splitlines()} if path.exists() else set()
        )

    def open(self) -> None:
        """Let the tasks pass that wait."""
        (self.box / "notes.gate").touch()

    def end(self, host: str, pid: int, code: int = 0) -> Ended:
        ended = self.servers[host].wait(pid)
        assert ended.code == code, f"exit code {ended.code}, expected {code}\n{ended.err}"
        return ended


@contextlib.contextmanager
def hosts(box: Box, lag: Lag, *host_names: str) -> Iterator[Hosts]:
    """So many hosts whose mounts of one folder have this lag."""
    for name in ("real", "shared"):
        (box / name).mkdir()
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in host_names:
            mount = stack.enter_context(mounted(box / "real", box / name, lag))
            within = (*HOST, SCRIPT, name, mount, box / "shared")
            servers[name] = stack.enter_context(Server(within=within))
        yield Hosts(box, servers)


def test_of_two_hosts_that_see_late_four_parents_share_a_run(box: Box) -> None:
    """They begin at the same moment, and none sees at first what the others do.

    The run is planned for the rank of whoever makes it; the three others only steal.
    """
    with hosts(box, LAG, "a", "b") as both:
        box.tasks(["wait"] * 500, "real/tasks")
        started = [(host, both.start(host)) for host in ("a", "b", "a", "b")]
        wait_until(lambda: len(both.attempts()) == 4)
        both.open()
        for host, pid in started:
            both.end(host, pid)
        assert_sound(box, "real/S", 500)
        shares = Counter(line["attempt"] for line in journal_lines(both.spool))
        assert shares.total() == 500, "each is counted once"
        assert len(shares) == 4
        assert names(both.spool / "claims") == ["rank-0000"]
        assert names(both.spool / "failed") == []


def test_a_spool_that_another_host_may_be_making_is_not_said_to_be_left(box: Box) -> None:
    """The pid in its hidden name means nothing here. A day later nobody can be at it any more."""
    with hosts(box, Lag(0, 0, 0), "a") as one:
        box.tasks([""], "real/tasks")
        being_made, left = (box / "real" / f".S.99999999{n}.0.00c0ffee" for n in (7, 8))
        for folder in (being_made, left):
            folder.mkdir()
        two_days_ago = time.time() - 2 * 86400
        os.utime(left, (two_days_ago, two_days_ago))
        told = one.end("a", one.start("a")).err
    assert f"{left.name} was left half made" in told
    assert being_made.name not in told
