"""What is told of a run that waits in Slurm's queue, in words.

Who asks Slurm puts what it answered into a status, as its field `queued`; docs/options.md lists
what that holds. It is None where nobody asked or nobody answered. The functions are pure.
"""

from __future__ import annotations

from typing import Any

from gpuspool.orchestrator.text.words import count_of, quoted_path

# What goes on with a run that has stopped.
RESUME = "gpuspool resume"


def is_queued(now: dict[str, Any]) -> bool:
    """Whether a run may go on, by what Slurm has of it, although nothing of it lives.

    An element that is ending counts, since it may be pending next.
    """
    queued = now.get("queued")
    return queued is not None and queued["pending"] + queued["running"] + queued["ending"] > 0


def with_queue(now: dict[str, Any], queued: dict[str, Any] | None, spool: str) -> dict[str, Any]:
    """A status with what Slurm has of the run. spool: as the user named it."""
    told = {**now, "queued": queued}
    if _to_come(told) is not None:
        told["says"] = "queued"
        told["next"] = f"gpuspool wait {quoted_path(spool)}"
    elif queued is not None and not is_queued(told) and now.get("next", "").startswith(RESUME):
        told["next"] = f"{RESUME} {quoted_path(spool)} --slurm"
    return told


def queued_lines(now: dict[str, Any]) -> list[str]:
    """What a status tells of the queue: at most one line."""
    queued = _to_come(now)
    if queued is None:
        return []
    stuck = stuck_words(queued)
    return [f"in Slurm's queue: {queue_words(queued)}" + (f"; {stuck}" if stuck else "")]


def _to_come(now: dict[str, Any]) -> dict[str, Any] | None:
    """What Slurm has of a run; None where it has no element that is pending or running."""
    queued: dict[str, Any] | None = now.get("queued")
    if queued is None or queued["pending"] + queued["running"] == 0:
        return None
    return queued


def queue_words(queued: dict[str, Any]) -> str:
    """How many elements are pending and why, and how many are running."""
    words = []
    if queued["pending"]:
        words.append(f"{count_of(queued['pending'], 'element')} pending{_reasons_words(queued)}")
    if queued["running"]:
        words.append(f"{count_of(queued['running'], 'element')} running")
    return ", ".join(words)


def _reasons_words(queued: dict[str, Any]) -> str:
    """The reasons in brackets, each with its count unless it is that of all."""
    reasons = queued["reasons"]
    if not reasons:
        return ""
    if [*reasons.values()] == [queued["pending"]]:
        return f" ({', '.join(reasons)})"
    return f" ({', '.join(f'{count} {reason}' for reason, count in reasons.items())})"


def stuck_words(queued: dict[str, Any]) -> str:
    """That Slurm does not start some of the elements by itself; "" where it starts all."""
    stuck = queued["stuck"]
    if not stuck:
        return ""
    count = sum(queued["reasons"][reason] for reason in stuck)
    verb = "does" if count == 1 else "do"
    return f"{count} {verb} not start unless something is done about it: {', '.join(stuck)}"
