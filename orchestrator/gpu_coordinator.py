"""The seed API: one independent process for each GPU, on the same spool as everything else.

Guarantees: each worker is a fresh interpreter that sees its own device alone; a worker that fails
lets the others finish; a report is on disk when `put` returns, and is collected once, also from a
worker that died and also by a new coordinator after the old one was killed. Nothing is restarted,
and nobody takes another rank's call. Used by programs that had a coordinator of multiprocessing
queues; docs/seed-api.md tells how to move over.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.orchestrator.plan.create import Request, create
from gpuspool.orchestrator.plan.devices import CPU, find_pool
from gpuspool.orchestrator.plan.inputs import Inputs, sealed
from gpuspool.orchestrator.plan.jobs import parse_call
from gpuspool.orchestrator.supervise.bell import BLIND_S
from gpuspool.orchestrator.supervise.launch import Child, launch
from gpuspool.spool.closing import close_attempts
from gpuspool.spool.death import Evidence, classify
from gpuspool.spool.errors import UsageError
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.journal import JournalReader
from gpuspool.spool.layout import (
    Layout,
    generation_name,
    parse_attempt,
    parse_generation,
    rank_name,
)
from gpuspool.spool.manifest import Damage
from gpuspool.spool.publish import listdir
from gpuspool.spool.records import JournalLine, Options, QueuedReport, TaskLine
from gpuspool.spool.timeouts import read_stacks
from gpuspool.spool.values import decode_value, encode_value
from gpuspool.spool.view import View, open_view

GRACE_S = 5.0  # from SIGTERM to SIGKILL in terminate_all: enough to write a last report
KILL_S = (
    10.0  # for the kernel to end what was killed; a process that hangs in a driver may take longer
)
WAIT_S = 60.0  # the longest single sleep: poll(2) takes no unbounded number
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
UNCHECKED = {"GPUSPOOL_DEVICE_CHECK": "off"}

logger = logging.getLogger(__name__)


class Worker:
    """One rank's process, with the attributes of a multiprocessing.Process that people use.

    exitcode: None while it runs; 0, 1 after an exception, n after sys.exit(n), -n after signal n.
    """

    def __init__(self, rank: int, child: Child, ended: Callable[[Worker, int], None]) -> None:
        self.rank, self.pid, self.attempt = rank, child.pid, child.attempt
        self.name = f"gpu_worker_{rank}"
        self.was_told = False
        self._child, self._ended = child, ended
        self._exitcode: int | None = None

    @property
    def exitcode(self) -> int | None:
        if self._exitcode is None:
            self._exitcode = self._child.exit_code()
            if self._exitcode is not None:
                self._ended(self, self._exitcode)
        return self._exitcode

    def is_alive(self) -> bool:
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most `timeout` seconds."""
        wait_for([self], timeout)

    def terminate(self) -> None:
        """SIGTERM to it and its children."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it and its children."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.is_alive():
            self.was_told = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def wait_for(workers: Iterable[Worker], timeout: float | None) -> list[Worker]:
    """Wait until all have ended or the time is over; returns those that still run."""
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    while alive := [worker for worker in workers if worker.is_alive()]:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        _sleep_until_one_ends([worker.pid for worker in alive], min(left, WAIT_S))
    return alive


def _sleep_until_one_ends(pids: list[int], timeout_s: float) -> None:
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except (OSError, AttributeError):
                timeout_s = min(timeout_s, BLIND_S)
                continue
            stack.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
        poll.poll(timeout_s * 1000)


class ResultsQueue:
    """The parent's end of the reports: of all generations that were added, else of the newest there
    is; each once.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._generations: list[Layout] = []
        self._readers: dict[Path, JournalReader] = {}
        self._found: deque[Any] = deque()

    def add(self, generation: Layout) -> None:
        self._generations.append(generation)

    def empty(self) -> bool:
        """Whether no report is there that was not taken yet."""
        if not self._found:
            self._read()
        return not self._found

    def get_nowait(self) -> Any:
        """The next report. Raises queue.Empty."""
        if self.empty():
            raise queue.Empty
        return self._found.popleft()

    def drain(self) -> list[Any]:
        """All reports that are there, in the order of rank and put."""
        self._read()
        found = list(self._found)
        self._found.clear()
        return found

    def _read(self) -> None:
        for layout in self._generations or generations(self._root)[-1:]:
            for filename in listdir(layout.reports):
                attempt = filename.removesuffix(".jsonl")
                if attempt != filename and parse_attempt(attempt) is not None:
                    self._follow(layout, attempt)

    def _follow(self, layout: Layout, attempt: str) -> None:
        path = layout.report(attempt)
        if path not in self._readers:
            self._readers[path] = JournalReader(layout, attempt, _warn, path)
        for _, record in self._readers[path].read(QueuedReport):
            self._found.append(decode_value(msgspec.json.decode(record.report)))


def _warn(damage: Damage) -> None:
    logger.warning("Damaged: %s; going on without it", damage)


def generations(root: Path) -> list[Layout]:
    """The spools of earlier calls of spawn_workers, oldest first."""
    numbers = sorted(
        number for number in map(parse_generation, listdir(root)) if number is not None
    )
    return [Layout(root / generation_name(number)) for number in numbers]


def device_tokens(world_size: int) -> tuple[list[str], dict[str, str]]:
    """The device of each rank, and what else must stand in its environment. Raises UsageError.

    Where nothing tells of any device the tokens are the ranks, as the old coordinator had it;
    nobody can check them.
    """
    pool = find_pool(None, os.environ)
    if not pool and not any(name in os.environ for name in VARIABLES):
        return [str(rank) for rank in range(world_size)], UNCHECKED
    if not pool:
        return [CPU] * world_size, {}
    if world_size > len(pool):
        raise UsageError(
            f"world_size {world_size}, but there are {len(pool)} device(s): {','.join(pool)}. "
            "Ask for one worker for each, or show more with CUDA_VISIBLE_DEVICES."
        )
    return pool[:world_size], {}


class GPUProcessCoordinator:
    """Starts `world_size` workers, one for each GPU, waits for them and collects what they report.

    workers: {rank: Worker} of the last spawn_workers. results_queue: the parent's end of the
    reports.
    """

    def __init__(self, world_size: int, output_dir: str | os.PathLike[str]) -> None:
        if world_size < 1:
            raise UsageError(f"world_size {world_size}; it must be at least 1.")
        self.world_size = world_size
        self.output_dir = Path(output_dir)
        self.ctx = multiprocessing.get_context("spawn")
        self.workers: dict[int, Worker] = {}
        self._root = Path(os.path.abspath(output_dir))
        self.results_queue = ResultsQueue(self._root)

    def spawn_workers(self, worker_fn: Callable[..., Any], worker_args: Sequence[Any] = ()) -> None:
        """Start a new generation: `worker_fn(rank, world_size, results_queue, *worker_args)` once
        for each rank.

        Raises TypeError for a function or an argument that cannot be passed on, UsageError and
        OSError where the workers cannot be started; then none runs.
        """
        alive = [str(rank) for rank, worker in self.workers.items() if worker.is_alive()]
        if alive:
            raise UsageError(
                f"workers {', '.join(alive)} still run. Wait for them, or end them with terminate_all()."
            )
        if not isinstance(worker_args, (tuple, list)):
            raise TypeError(
                f"worker_args is a {type(worker_args).__name__}; it must be a tuple of arguments"
            )
        args = [
            encode_value(value, f"worker_args[{place}]") for place, value in enumerate(worker_args)
        ]
        job, source = parse_call(worker_fn)
        tokens, variables = device_tokens(self.world_size)
        request = Request(
            job, source, {"worker_args": args}, self._calls(), Options(), None, sys.argv
        )
        while create(layout := self._next_generation(), request, self.world_size) is None:
            continue  # another coordinator took that number just now
        view = open_view(layout.root)
        self.results_queue.add(layout)
        self.workers = {}
        try:
            for rank, token in enumerate(tokens):
                child = launch(
                    view, rank, 0, token, job, request.options, self.world_size, **variables
                )
                self.workers[rank] = Worker(
                    rank, child, lambda worker, code: _settle(view, worker, code)
                )
                logger.info("Spawned worker %d (CUDA_VISIBLE_DEVICES=%s)", rank, token)
        except OSError:
            self.terminate_all()
            raise

    def _calls(self) -> Inputs:
        """One careful task for each rank: its journal says that it began, so a death in it is known
        to be its own.
        """
        call = TaskLine(task=0, key="", payload=msgspec.Raw(b"null"), cost=1.0, careful=True)
        ranks = range(self.world_size)
        return sealed(
            msgspec.structs.replace(call, task=rank, key=rank_name(rank)) for rank in ranks
        )

    def _next_generation(self) -> Layout:
        earlier = generations(self._root)
        number = (parse_generation(earlier[-1].root.name) or 0) + 1 if earlier else 0
        return Layout(self._root / generation_name(number))

    def wait_for_completion(self, timeout: float | None = None) -> dict[int, bool]:
        """For each rank whether it completed; one deadline for all, `timeout` seconds from now.

        Who still runs then is False and goes on running. Ctrl-C ends the workers, as it would in
        one process group.
        """
        try:
            alive = wait_for(self.workers.values(), timeout)
        except KeyboardInterrupt:
            self.terminate_all()
            raise
        for worker in alive:
            logger.warning(
                "Worker %d timed out after %g s (pid %d); it goes on",
                worker.rank,
                timeout,
                worker.pid,
            )
        return {rank: worker.exitcode == 0 for rank, worker in self.workers.items()}

    def collect_results(self) -> list[dict[str, Any]]:
        """The reports that this object has not given yet, in the order of rank and put."""
        return self.results_queue.drain()

    def terminate_all(self) -> None:
        """End every worker and its children: SIGTERM, then SIGKILL for who is still there after
        GRACE_S.
        """
        alive = [worker for worker in self.workers.values() if worker.is_alive()]
        for worker in alive:
            logger.warning("Terminating worker %d (pid %d)", worker.rank, worker.pid)
            worker.terminate()
        alive = wait_for(alive, GRACE_S)
        for worker in alive:
            logger.warning("Terminating worker %d (pid %d) with SIGKILL", worker.rank, worker.pid)
            worker.kill()
        for worker in wait_for(alive, KILL_S):
            logger.error(
                "Worker %d (pid %d) does not end; look at the driver", worker.rank, worker.pid
            )


def _settle(view: View, worker: Worker, code: int) -> None:
    """Close the attempt of a worker that ended, unless it did so itself, and say what became of it."""
    try:
        _close(view.refresh(), worker, code)
        why = _why(view, worker.attempt)
    except OSError as error:
        why = f"and its end cannot be written: {error}"
    if code == 0:
        logger.info("Worker %d completed", worker.rank)
    elif worker.was_told:
        logger.warning("Worker %d terminated (%s)", worker.rank, describe_exit(code))
    else:
        log = view.layout.log(worker.attempt)
        logger.error("Worker %d failed with exit code %d (log %s): %s", worker.rank, code, log, why)


def _close(view: View, worker: Worker, code: int) -> None:
    if worker.attempt in view.closed:
        return
    evidence = Evidence(
        stacks=read_stacks(view.layout, worker.attempt),
        was_told=worker.was_told,
        exit_code=code,
        max_crashes=1,
        max_kills=1,
    )
    close_attempts(view, {worker.attempt: classify(evidence)}, by="parent")


def _why(view: View, attempt: str) -> str:
    """What the worker's function raised, or how else it ended."""
    closing = view.closed.get(attempt)
    errors = [] if closing is None else [closing.error, *(lost.error for lost in closing.failures)]
    reader = JournalReader(view.layout, attempt, view.report)
    errors += [line.error for _, line in reader.read(JournalLine)]
    return next((error.traceback or error.message for error in errors if error is not None), "")
