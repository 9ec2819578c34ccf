"""Runs made by hand that took time: what the page, the trace and the list of jobs are tested on.

A test says when each attempt began, which calls it made and how it ended; the files are those that
such a run would have left. All moments are seconds after `T0`. Below are the ways to read them as a
page does.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from spooling import JOB, make_spool, seal_pretty, some_run, task

from gpuspool.orchestrator.page.calls import Calls, read_calls
from gpuspool.orchestrator.page.facts import facts_of
from gpuspool.orchestrator.page.lives import Attempt
from gpuspool.orchestrator.page.reading import read_run
from gpuspool.spool.closing import publish_closing
from gpuspool.spool.codec import encode, pretty
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, attempt_name, rank_of
from gpuspool.spool.publish import publish, replace
from gpuspool.spool.records import (
    Closing,
    Error,
    Heartbeat,
    Identity,
    Intent,
    Job,
    JournalLine,
    Options,
    Parent,
    ParentEnd,
    Place,
    Stats,
    TaskFailure,
    Usage,
)
from gpuspool.spool.states import AttemptState, Phase, Reason
from gpuspool.spool.view import View, open_view

T0 = 1_795_800_000.0


@dataclass
class Played:
    """A run in the making."""

    root: Path
    keys: Sequence[str]
    ranks: int = 1
    job: Job = JOB
    payloads: Sequence[Any] = ()
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        lines = []
        for index, key in enumerate(self.keys):
            payload = self.payloads[index] if self.payloads else index
            raw = msgspec.Raw(msgspec.json.encode(payload))
            lines.append(task(index, key=key, payload=raw, cost=1.0 + index))
        self.layout = make_spool(
            self.root, *(lines[rank :: self.ranks] for rank in range(self.ranks))
        )
        if self.job is not JOB:
            run = msgspec.structs.replace(some_run(len(lines), self.ranks), job=self.job)
            replace(self.layout.run, seal_pretty(run))
            replace(self.layout.run_copy, seal_pretty(run))

    def who(self, host: str, pid: int) -> Identity:
        """A process of a host that is not this one."""
        return Identity(host=host, boot_id=f"boot of {host}", pid_ns="", pid=pid, pid_start=7)

    def start(self, epoch: int, at: float, host: str = "n1", slots: int = 1) -> None:
        parent = Parent(
            **msgspec.structs.asdict(self.who(host, 1000 + epoch)),
            epoch=epoch,
            at=T0 + at,
            slots=[Place()] * slots,
            argv=["gpuspool", "run", "job.py:work"],
            command="run",
            lease_s=120.0,
        )
        assert publish(self.layout.parent(epoch), seal_pretty(parent))

    def end(self, epoch: int, at: float, how: str = "finished", code: int = 0) -> None:
        end = ParentEnd(how=how, exit_code=code, at=T0 + at, message=f"{how}.")
        assert publish(self.layout.parent_end(epoch), pretty(end))

    def attempt(
        self,
        rank: int,
        number: int,
        began: float,
        calls: Sequence[JournalLine],
        ended: float | None,
        *,
        epoch: int = 0,
        host: str = "n1",
        device: str = "0",
        usage: Sequence[Usage] = (),
        reason: Reason = Reason.FINISHED,
        state: AttemptState = AttemptState.COMPLETE,
        by: str = "",
        held: Sequence[TaskFailure] = (),
        lost: Sequence[TaskFailure] = (),
        idle_s: dict[str, float] | None = None,
        has_stats: bool = True,
        lived_s: float | None = None,
        options: Options | None = None,
        job_id: str = "",
    ) -> str:
        """An attempt with all its files; ended: None for one that nobody has closed."""
        name = attempt_name(rank, number)
        intent = Intent(
            attempt=name,
            epoch=epoch,
            device=device,
            world_size=self.ranks,
            local_rank=rank_of(name),
            argv=["python", "-m", "gpuspool.worker"],
            parent=self.who(host, 1000 + epoch),
            job=self.job,
            options=options or Options(),
            environment={},
            at=T0 + began,
            job_id=job_id,
        )
        assert publish(self.layout.intent(name), seal_pretty(intent))
        writer = start_journal(self.layout, name, self.who(host, 2000 + 10 * rank + number))
        assert writer is not None
        for line in calls:
            writer.append(line, may_wait=True)
        writer.sync()
        self.layout.usage(name).write_bytes(b"".join(map(encode, usage)))
        if ended is None:
            return name
        busy = sum(line.seconds for line in calls)
        seconds = ended - began if lived_s is None else lived_s
        told = idle_s if idle_s is not None else {"start": 0.1}
        rest = max(0.0, seconds - busy - sum(told.values()))
        stats = Stats(
            done=len(calls), seconds=seconds, busy_s=busy, idle_s={**told, "work": rest},
            ready=True, device_name="NVIDIA H100", peak_memory_bytes=1_500_000_000,
        )  # fmt: skip
        closing = Closing(
            attempt=name, state=state, reason=reason, by=by or name, at=T0 + ended,
            held=list(held), failures=list(lost), stats=stats if has_stats else None,
            journal_bytes=writer.n_bytes,
        )  # fmt: skip
        assert publish_closing(self.layout, closing, [])
        return name

    def heartbeat(self, name: str, task: int, since: float, at: float) -> None:
        """The last heartbeat of an attempt, which has this task in hand."""
        intent = open_view(self.root, reads_claims=False).intents[name]
        assert intent is not None
        who = msgspec.structs.asdict(self.who(intent.parent.host, 2000))
        beat = Heartbeat(
            **who, attempt=name, beat=1, parent="1", device=intent.device, state=Phase.RUNNING,
            at=T0 + at, task=task, task_since=T0 + since,
        )  # fmt: skip
        replace(self.layout.heartbeat(name), pretty(beat))

    def beat(self, name: str) -> None:
        """An attempt beats now."""
        self.layout.beats.mkdir(exist_ok=True)
        self.layout.beat(name, 1).touch()

    def view(self) -> View:
        return open_view(self.root, reads_claims=False)

    def calls(self) -> Calls:
        """Those of the only attempt."""
        (calls,) = read_calls(self.view())
        return calls

    def read(self) -> list[Attempt]:
        """The attempts, as a page has them."""
        return read_run(self.view(), "S").attempts

    def facts(self) -> Any:
        """The JSON of a page."""
        return decode(facts_of(read_run(self.view(), "S")))


def decode(data: bytes) -> Any:
    """The JSON in front of the columns."""
    (length,) = struct.unpack_from("<I", data)
    return json.loads(data[4 : 4 + length])


def call(
    index: int, start: float, seconds: float, state: str = "complete", **more: Any
) -> JournalLine:
    """The line of a call that began so long after T0."""
    return JournalLine(task=index, round=0, state=state, start=T0 + start, seconds=seconds, **more)


def batch(indices: Sequence[int], start: float, seconds: float) -> list[JournalLine]:
    """The lines of one call with several tasks, which took so long in all."""
    return [call(index, start, seconds / len(indices)) for index in indices]


def error(message: str, **more: Any) -> Error:
    fields: dict[str, Any] = {
        "kind": "exception", "type": "ValueError", "message": message, "where": "job.py:7",
        "traceback": f"Traceback:\n  File \"job.py\", line 7, in work\nValueError: {message}\n",
    }  # fmt: skip
    return Error(**{**fields, **more})
