"""Another host, played by namespaces: its host name, pids and file locks mean nothing here.

`OtherHost` starts a command there. The spool is shared, as on a cluster's file system, but the
orchestrator's lock is a file of that host alone (a bind mount), as on Lustre mounted with
`localflock`: nothing keeps two orchestrators apart. `freeze` and `thaw` stop and wake the whole
host, as a hypervisor does, or a laptop's lid.

`REAPER` is for another odd environment: a parent of orphans that never reaps them.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from helpers import GPUSPOOL, Box, Started, kill, wait_until

NAMESPACES = (
    "unshare",
    "--uts",
    "--pid",
    "--mount",
    "--propagation",
    "private",
    "--fork",
    "--mount-proc",
)
SCRIPT = (sys.executable, "-P", str(Path(__file__).with_name("elsewhere.py")))
# As `program` of a command: its orphans are never reaped.
REAPER = (*SCRIPT, "reaper", GPUSPOOL)


class OtherHost:
    """One run's host; everything on it is found by the mark of a box of its own."""

    def __init__(self, box: Box) -> None:
        self.box = box

    def start(self, spool: Path, *args: str) -> Started:
        """Run gpuspool over there; what is returned ends with its exit code."""
        lock = self.box / "orchestrator.lock"
        lock.touch()
        return self.box.start(
            *args, program=(*NAMESPACES, *SCRIPT, "host", str(spool), str(lock), GPUSPOOL)
        )

    def workers(self) -> list[tuple[str, int]]:
        """(attempt, its pid as seen from here) of every worker over there."""
        found = []
        for pid in self.box.processes():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "gpuspool.worker" in words[:4] and "--rank" in words:
                rank, attempt = (
                    int(words[words.index(name) + 1]) for name in ("--rank", "--attempt")
                )
                found.append((f"rank-{rank:04d}.a{attempt:02d}", pid))
        return sorted(found)

    def freeze(self) -> None:
        """Stop every process; returns once all stand still, even those that have just started."""
        wait_until(self._stop_more)

    def _stop_more(self) -> bool:
        moving = [pid for pid in self.box.processes() if state_of(pid) not in "TZX"]
        freeze(moving)
        return not moving

    def thaw(self) -> None:
        for pid in self.box.processes():
            kill(pid, signal.SIGCONT)


def state_of(pid: int) -> str:
    """The state letter of a process; X if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return "X"


def freeze(pids: list[int]) -> None:
    """Stop these processes with SIGSTOP; returns once all of them stand still."""
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(state_of(pid) in "TZX" for pid in pids))
