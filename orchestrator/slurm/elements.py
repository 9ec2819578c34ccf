"""What Slurm has of one run: its elements in the queue, as squeue shows them.

An element is one job of an array that was submitted for the run; all of them have the run's name.
What is counted here decides how many are submitted, and whether a run of which nothing lives is
over or waits for its turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from gpuspool.orchestrator.slurm.commands import ASK_S, ask

# The id of the array, the state, and why it is in that state.
_FORMAT = "%F|%T|%r"

# An element that has this state does nothing more. But one that is queued again has it too, until
# its node is clean; then it is pending.
_ENDING = "COMPLETING"

# What squeue calls a job that does nothing more and is not started again. All else may run yet.
_OVER = frozenset(
    (
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "REVOKED", "TIMEOUT",
    )
)  # fmt: skip

# An element with these states is in the queue and on no node.
_PENDING = frozenset(
    ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
)

# With these reasons Slurm starts no element, however long it is waited for, unless somebody does
# something about it. Some versions write blanks where others write underscores.
_NEVER = frozenset(
    (
        "AccountNotAllowed", "AssocMaxWallDurationPerJobLimit", "BadConstraints",
        "DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS", "JobHeldAdmin", "JobHeldUser",
        "JobHoldMaxRequeue", "PartitionDown", "PartitionInactive", "PartitionNodeLimit",
        "PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit", "QOSNotAllowed", "QOSTimeLimit",
        "ReservationDeleted", "job_requeued_in_held_state", "launch_failed_requeued_held",
    )
)  # fmt: skip

# What squeue says where there is no reason, or none yet.
_NO_REASON = ("None", "(null)", "")


class Element(msgspec.Struct, frozen=True):
    """One element, as squeue shows it. array: the id of its array. reason: "" for none."""

    array: str
    state: str
    reason: str

    @property
    def is_alive(self) -> bool:
        """Whether it is pending or running."""
        return self.state not in _OVER and not self.is_ending

    @property
    def is_pending(self) -> bool:
        return self.state in _PENDING

    @property
    def is_ending(self) -> bool:
        """Whether it was running. It may have been queued again, which is not seen yet."""
        return self.state == _ENDING


class Queued(msgspec.Struct, frozen=True):
    """How many elements of a run Slurm has.

    ending: those that were running, and that may be pending next. reasons: of those that are
    pending, how many are for which reason, the most frequent one first; some have none yet. stuck:
    those of the reasons for which Slurm starts no element, unless somebody does something about it.
    """

    pending: int = 0
    running: int = 0
    ending: int = 0
    reasons: dict[str, int] = {}
    stuck: list[str] = []

    @property
    def alive(self) -> int:
        """How many are pending or running."""
        return self.pending + self.running


def elements_of(name: str, timeout_s: float = ASK_S) -> list[Element] | str:
    """The elements of a run that squeue shows, or why that is not known.

    name: of the run's jobs. timeout_s: seconds after which squeue is killed.
    """
    answer = ask(["squeue", "--me", "-h", "-r", "-n", name, "-o", _FORMAT], timeout_s)
    return answer.trouble or elements_in(answer.out)


def elements_in(out: str) -> list[Element]:
    """The elements in squeue's rows."""
    rows = [line.strip().split("|", 2) for line in out.splitlines()]
    return [
        Element(array, state, "" if reason in _NO_REASON else reason)
        for array, state, reason in (row for row in rows if len(row) == 3)
    ]


def counted(elements: Iterable[Element]) -> Queued:
    """How many elements there are of each kind."""
    there = list(elements)
    pending = [element for element in there if element.is_pending]
    counts = Counter(element.reason for element in pending if element.reason)
    reasons = dict(counts.most_common())
    n_alive = sum(element.is_alive for element in there)
    return Queued(
        pending=len(pending),
        running=n_alive - len(pending),
        ending=sum(element.is_ending for element in there),
        reasons=reasons,
        stuck=[reason for reason in reasons if reason.replace(" ", "_") in _NEVER],
    )
