"""All that a run is asked to do, put together before anything is on disk.

A request is made from what the user named, and then either makes a spool (plan/create.py) or is
compared with the spool that is there (plan/differences.py). Its fingerprint says whether two
requests ask for the same.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.orchestrator.plan.options import options_of_new_run
from gpuspool.spool.codec import refuse_depth
from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import Fingerprint, Job, Options


class Request(msgspec.Struct, frozen=True, dict=True):
    """All that a run is asked to do.

    source: of the job; empty for a command. options: as run.json will record them. out: the
    absolute path of the output folder, None for the one inside of the spool. argv: the command
    line, for people who read run.json.
    """

    job: Job
    source: bytes
    args: dict[str, Any]
    tasks: TaskList
    options: Options
    out: str | None
    argv: list[str]

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """Equal for two requests that would compute the same."""
        hashed = hashlib.sha256()
        for line in self.tasks.lines:
            hashed.update(line)
        args = msgspec.json.encode(self.args, order="sorted")
        return Fingerprint(
            job_sha256=self.job.sha256,
            args_sha256=hashlib.sha256(args).hexdigest(),
            tasks_sha256=hashed.hexdigest(),
            seed=self.options.seed,
            out=self.out or "",
            root=self.tasks.root,
        )


def make_request(
    job: Job,
    source: bytes,
    tasks: TaskList,
    *,
    args: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Request:
    """The request for a run of a job over these tasks.

    job, source: as `parse_job` returns them. args: what becomes `ctx.args`. options: those that
    were given, without None. Raises UsageError.
    """
    return Request(
        job=job,
        source=source,
        args=_plain(args or {}),
        tasks=tasks,
        options=options_of_new_run(options or {}),
        out=None if out is None else os.path.abspath(at_home(out)),
        argv=sys.argv,
    )


def _plain(args: Mapping[str, Any]) -> dict[str, Any]:
    """The args, once it is known that JSON can hold them. Raises UsageError."""
    if not isinstance(args, Mapping) or not all(isinstance(key, str) for key in args):
        raise UsageError(
            f"args={args!r:.80} cannot be passed to the job. Give a dict with texts as keys."
        )
    plain = dict(args)
    try:
        refuse_depth(msgspec.json.encode(plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"args cannot be passed to the job: {error}. Use JSON values.") from None
    return plain
