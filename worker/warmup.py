"""A job's `warmup`: run by one process of each host, before any process of that host makes its job.

1. A process links `warmup/<epoch>.<host>.0`, which says who it is. The first link wins.
2. The winner runs `warmup` and links `warmup/<epoch>.<host>.done`.
3. The others of that host wait for `done`, or for the proof that the winner died. Then the next of
   them goes on with 1., under the next number.
4. After TRIES numbers the rest go on without: a warm-up saves work, and no task depends on it.

There is no lock: the first link wins, and the proof of death is the process table. Files are not
synced, since after a power cut nothing is warm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from gpuspool.spool.codec import encode
from gpuspool.spool.identity import liveness, myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import make_subfolder, publish, read_record
from gpuspool.spool.records import Identity, JournalHead
from gpuspool.spool.states import Life
from gpuspool.worker.drain import Drain

# How many processes of a host try in all. A warm-up that raised in one process may work in another,
# but hardly in a fourth.
TRIES = 3
# Who waits for another's warm-up looks again after so many seconds, then after twice as many each
# time, up to the second.
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.25


class Drained(Exception):
    """The attempt was told to drain while it waited for another's warm-up.

    A private signal of this package: it never leaves the attempt and is no GpuspoolError.
    """


def warm_up(
    layout: Layout,
    epoch: int,
    attempt: str,
    warmup: Callable[[], Any],
    wait: Callable[[Callable[[], bool]], None],
) -> None:
    """Return once this host is warm, or nobody will try any more.

    warmup: the job's; called here where it is this process's turn. wait: is given a condition and
    returns once it is true; what it raises ends the warm-up. Raises what `warmup` raises.
    """
    me = myself()
    kernel = me.boot_id + me.pid_ns
    make_subfolder(layout.warmups)
    done = layout.warmup(epoch, me.host, kernel, "done")
    who = encode(JournalHead(**asdict(me), attempt=attempt))
    for number in range(TRIES):
        if done.exists():
            return
        path = layout.warmup(epoch, me.host, kernel, str(number))
        if publish(path, who, durable=False):
            warmup()
            publish(done, who, durable=False)
            return
        other = read_record(path, JournalHead)
        if other is not None:
            wait(_is_over(done, other))


def _is_over(done: Path, other: Identity) -> Callable[[], bool]:
    """A condition: the warm-up of another process is done, or that process does not live."""
    return lambda: done.exists() or liveness(other) is not Life.ALIVE


def wait_until(is_over: Callable[[], bool], drain: Drain) -> None:
    """Return once `is_over` says so. Raises Drained where a drain is asked for before."""
    pause_s = FIRST_PAUSE_S
    while not is_over():
        if drain.is_requested:
            raise Drained
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
