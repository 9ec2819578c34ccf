"""A job's `warmup`, in one process of each host, before any of that host makes its job.

Who links `warmup/<epoch>.<host>.0` runs it and links `….done`; the others of that host wait for
that, or for the proof that it died, and then the next one tries. No lock: the first link wins, and
the proof is the process table. After some tries the rest go on without: a warm-up saves work, no
task depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from msgspec.structs import asdict

from gpuspool.spool.codec import encode
from gpuspool.spool.identity import liveness, myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import publish, read_record
from gpuspool.spool.records import JournalHead
from gpuspool.spool.states import Life

TRIES = 3  # a warm-up that raised in one process may work in another, hardly in a fourth
POLL_S = (0.01, 0.25)  # between two looks at whether it is over: first, and at most


class Drained(Exception):
    """The attempt was told to stop while it waited.

    A private signal of this package: it never leaves the attempt and is no GpuspoolError.
    """


def warm_up(
    layout: Layout,
    epoch: int,
    attempt: str,
    warmup: Callable[[], Any],
    wait: Callable[[Callable[[], bool]], None],
) -> None:
    """Returns once the host is warm, or nobody will try again. Raises what `warmup` raises, if it
    is run here.

    `wait` returns once what it is given says so; it may raise instead.
    """
    me = myself()
    layout.warmups.mkdir(exist_ok=True)
    done = layout.warmup(epoch, me.host, me.boot_id + me.pid_ns, "done")
    word = encode(JournalHead(**asdict(me), attempt=attempt))
    for number in range(TRIES):
        path = layout.warmup(epoch, me.host, me.boot_id + me.pid_ns, str(number))
        if done.exists():
            return
        if publish(path, word, durable=False):
            warmup()
            publish(done, word, durable=False)
            return
        other = read_record(path, JournalHead)
        if other is not None:
            wait(lambda other=other: done.exists() or liveness(other) is not Life.ALIVE)  # type: ignore[misc]


def wait_until(is_over: Callable[[], bool], is_draining: Callable[[], bool]) -> None:
    """Raises Drained where the attempt is told to stop before."""
    pause_s = POLL_S[0]
    while not is_over():
        if is_draining():
            raise Drained
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, POLL_S[1])
