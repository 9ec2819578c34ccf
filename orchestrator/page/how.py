"""How a run was run: the command, the job, each start and each host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpuspool.orchestrator.page.lives import Attempt
from gpuspool.orchestrator.page.reading import Reading
from gpuspool.orchestrator.page.shown import (
    MESSAGE_LETTERS,
    as_json,
    command_text,
    job_text,
    told,
    without_secrets,
)
from gpuspool.spool.layout import rank_of
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.records import Options

# A command line, or the versions of all that was used, may be so long.
FACT_LETTERS = 8000


def how_it_was_run(reading: Reading, hosts: Sequence[str]) -> dict[str, Any]:
    """The last part of a page. hosts: of each attempt, as it is shown."""
    return {
        "facts": [
            [name, value if isinstance(value, float) else told(value, FACT_LETTERS)]
            for name, value in _facts(reading).items()
            if value not in ("", "{}")
        ],
        "starts": [_start(row) for row in reading.now["parents"]],
        "hosts": _host_rows(reading, hosts),
    }


def _facts(reading: Reading) -> dict[str, str | float]:
    view, run = reading.view, reading.view.run
    job = view.latest_job()
    options = msgspec.to_builtins(run.options)
    usual = msgspec.to_builtins(Options())
    versions = dict(run.versions)
    for attempt in reading.attempts:
        if attempt.closing is not None and attempt.closing.stats is not None:
            versions |= attempt.closing.stats.versions
    return {
        "command": command_text(run.argv),
        "job": f"{job_text(job)} ({job.file})" if job.file else job_text(job),
        "sha256 of the job": job.sha256,
        "arguments": as_json(without_secrets(run.args)) if run.args else "",
        "options": as_json({k: v for k, v in options.items() if v != usual.get(k)}),
        "folder": run.submit_dir,
        "spool": str(view.layout.root),
        "outputs": str(out_of(view.layout, run)),
        "made": run.created_at,
        "id of the run": run.id,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _start(row: Mapping[str, Any]) -> dict[str, Any]:
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


@dataclass
class _Host:
    """What one host had and did."""

    ranks: set[int] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    attempts: int = 0
    done: int = 0
    seconds: float = 0.0

    def take(self, attempt: Attempt, done: int) -> None:
        self.ranks.add(rank_of(attempt.name))
        self.attempts += 1
        self.done += done
        self.seconds += attempt.seconds
        stats = None if attempt.closing is None else attempt.closing.stats
        device = "" if attempt.intent is None else attempt.intent.device
        self.devices.add((stats.device_name if stats is not None else "") or device)


def _host_rows(reading: Reading, hosts: Sequence[str]) -> list[dict[str, Any]]:
    found: dict[str, _Host] = {}
    for attempt, host in zip(reading.attempts, hosts, strict=True):
        found.setdefault(host, _Host()).take(attempt, reading.view.completed(attempt.name))
    return [
        {
            "host": host,
            "ranks": len(one.ranks),
            "attempts": one.attempts,
            "devices": told(", ".join(sorted(filter(None, one.devices))), 200),
            "done": one.done,
            "seconds": one.seconds,
        }
        for host, one in sorted(found.items())
    ]


def _counted(names: Sequence[str]) -> str:
    """Names in their order, each once: "2 × 0, 2 × 1"."""
    counts = Counter(names)
    return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in counts.items())
