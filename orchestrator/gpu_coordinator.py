"""The seed API: one independent process for each GPU, on the same spool as everything else.

Used by programs that had a coordinator of multiprocessing queues; docs/seed-api.md tells how to
move over. What it guarantees:

- Each worker is a fresh interpreter that sees its own device alone.
- A worker that fails lets the others finish. Nothing is restarted, and nobody takes another rank's
  call.
- A report is on disk when `put` returns, and is collected once: also from a worker that died, and
  also by a new coordinator after the old one was killed.
- Looking changes nothing. `exitcode` and `is_alive` tell how a worker stands. Its attempt is
  closed, and its end logged, where the program waits for it, collects, or ends it: by `settle`.
"""

from __future__ import annotations

import contextlib
import logging
import math
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

from gpuspool.orchestrator.plan.create import create
from gpuspool.orchestrator.plan.devices import CPU, find_pool
from gpuspool.orchestrator.plan.inputs import TaskList, seal_tasks
from gpuspool.orchestrator.plan.jobs import parse_call
from gpuspool.orchestrator.plan.request import Request
from gpuspool.orchestrator.plan.slots import Slot, make_slots
from gpuspool.orchestrator.supervise.bell import BLIND_S
from gpuspool.orchestrator.supervise.launch import Child, Orders, launch
from gpuspool.orchestrator.supervise.opinions import PATIENCE
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
from gpuspool.spool.records import Error, JournalLine, Options, QueuedReport, TaskLine
from gpuspool.spool.signals import keep_exit_statuses
from gpuspool.spool.states import BY_PARENT
from gpuspool.spool.timeouts import read_stacks
from gpuspool.spool.values import decode_value, encode_value
from gpuspool.spool.view import View, open_view

# In `terminate_all`, from SIGTERM to SIGKILL: enough for a worker to write a last report.
GRACE_S = 5.0

# How long `terminate_all` waits for the kernel to end what it killed. A process that hangs in a
# driver may take longer, and then the log says so.
KILL_S = 10.0

# The longest single sleep while waiting: poll(2) takes no unbounded number.
WAIT_S = 60.0

# The variables that name devices. Where neither is set and no driver tells of a device, the tokens
# are made up, and no worker can check what it sees.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
UNCHECKED = {"GPUSPOOL_DEVICE_CHECK": "off"}

logger = logging.getLogger(__name__)


class Worker:
    """One rank's process, with the attributes of a multiprocessing.Process that people use."""

    def __init__(self, rank: int, child: Child, view: View) -> None:
        self.rank = rank
        self.pid = child.pid
        self.attempt = child.attempt
        self.name = f"gpu_worker_{rank}"
        self._child = child
        self._view = view
        self._was_told = False
        self._is_settled = False

    @property
    def exitcode(self) -> int | None:
        """None while it runs; 0, 1 after an exception, n after sys.exit(n), -n after signal n.

        Reading it changes nothing, neither in the spool nor among the processes.
        """
        return self._child.peek_exit_code()

    def is_alive(self) -> bool:
        """Whether it runs. Asking changes nothing."""
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most `timeout` seconds, and settle it."""
        wait_for([self], timeout)

    def terminate(self) -> None:
        """SIGTERM to it and its children."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it and its children."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.is_alive():
            self._was_told = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def settle(self) -> bool:
        """Draw the consequences of its end: reap it, close its attempt, log what became of it.

        Whatever else of its process group runs is killed. False while it runs itself; once it was
        settled, calling again does nothing.
        """
        # It is noted as settled before its attempt is closed. If that fails it is not tried again
        # at each later look: the exit code is known all the same, and the program must be able to
        # go on. What is not closed here counts as a dead attempt to whoever opens the spool.
        if self._is_settled:
            return True
        code = self._child.exit_code()
        if code is None:
            return False
        self._is_settled = True
        try:
            self._view.refresh()
            _close(self._view, self.attempt, code, self._was_told)
            why = _why(self._view, self.attempt)
        except OSError as error:
            why = f"and its end cannot be written: {error}"
        self._log_end(code, why)
        return True

    def _log_end(self, code: int, why: str) -> None:
        if code == 0:
            logger.info("Worker %d completed", self.rank)
        elif self._was_told:
            logger.warning("Worker %d terminated (%s)", self.rank, describe_exit(code))
        else:
            log = self._view.layout.log(self.attempt)
            text = "Worker %d failed with exit code %d (log %s): %s"
            logger.error(text, self.rank, code, log, why)


def _close(view: View, attempt: str, code: int, was_told: bool) -> None:
    """Close the attempt of a worker that ended, unless it did so itself. Raises OSError."""
    if attempt in view.closed:
        return
    # A call is never run again, so its first crash, or its first kill, is what fails it.
    evidence = Evidence(
        stacks=read_stacks(view.layout, attempt),
        was_told=was_told,
        exit_code=code,
        max_crashes=1,
        max_kills=1,
    )
    death = classify(evidence)
    close_attempts(view, {attempt: death}, BY_PARENT)


def _why(view: View, attempt: str) -> str:
    """What the worker's function raised, or how else it ended; "" where nothing is known."""
    for error in _errors(view, attempt):
        return error.traceback or error.message
    return ""


def _errors(view: View, attempt: str) -> list[Error]:
    """What is recorded of an attempt's failure: by its closing, then by its own journal."""
    errors: list[Error | None] = []
    closing = view.closed.get(attempt)
    if closing is not None:
        errors.append(closing.error)
        errors += [failure.error for failure in closing.failures]
    reader = JournalReader(view.layout, attempt, view.report)
    errors += [line.error for _, line in reader.read(JournalLine)]
    return [error for error in errors if error is not None]


def wait_for(workers: Iterable[Worker], timeout: float | None) -> list[Worker]:
    """Wait until all have ended or `timeout` seconds are over; returns those that still run.

    Each is settled as soon as it has ended.
    """
    deadline = math.inf
    if timeout is not None:
        deadline = time.monotonic() + timeout
    alive = list(workers)
    while True:
        alive = _still_running(alive)
        left_s = deadline - time.monotonic()
        if not alive or left_s <= 0:
            return alive
        pids = [worker.pid for worker in alive]
        _sleep_until_one_ends(pids, min(left_s, WAIT_S))


def _still_running(workers: Iterable[Worker]) -> list[Worker]:
    """Those that run. All others are settled."""
    return [worker for worker in workers if not worker.settle()]


def _sleep_until_one_ends(pids: list[int], timeout_s: float) -> None:
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except (OSError, AttributeError):
                # Its end is then seen only by looking again.
                timeout_s = min(timeout_s, BLIND_S)
                continue
            stack.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
        poll.poll(timeout_s * 1000)


class ResultsQueue:
    """The parent's end of the reports, each of which it gives once.

    It reads those of all generations that were added, or where none was, of the newest there is.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._generations: list[Layout] = []
        self._readers: dict[Path, JournalReader] = {}
        self._found: deque[Any] = deque()

    def add(self, generation: Layout) -> None:
        """Read the reports of this generation too."""
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
        # A reader for each file remembers how far it has read, and nothing else does. So a report
        # is given once by this object, and a new coordinator after a crash of the old one, which
        # begins with no readers, gives all of them again.
        layouts = self._generations
        if not layouts:
            layouts = generations(self._root)[-1:]
        for layout in layouts:
            for filename in listdir(layout.reports):
                attempt = filename.removesuffix(".jsonl")
                if attempt != filename and parse_attempt(attempt) is not None:
                    self._follow(layout, attempt)

    def _follow(self, layout: Layout, attempt: str) -> None:
        path = layout.report(attempt)
        if path not in self._readers:
            self._readers[path] = JournalReader(layout, attempt, _warn, path)
        for _, record in self._readers[path].read(QueuedReport):
            encoded = msgspec.json.decode(record.report)
            self._found.append(decode_value(encoded))


def _warn(damage: Damage) -> None:
    logger.warning("Damaged: %s; going on without it", damage)


def generations(root: Path) -> list[Layout]:
    """The spools of earlier calls of spawn_workers below `root`, oldest first."""
    numbers = []
    for name in listdir(root):
        number = parse_generation(name)
        if number is not None:
            numbers.append(number)
    return [Layout(root / generation_name(number)) for number in sorted(numbers)]


def slots_of_host(world_size: int) -> tuple[list[Slot], dict[str, str]]:
    """The slot of each rank, and what else must stand in its environment. Raises UsageError.

    Where nothing tells of any device the tokens are the ranks, as the old coordinator had it;
    nobody can check them.
    """
    pool = find_pool(None)
    is_told = any(name in os.environ for name in VARIABLES)
    tokens = pool.tokens
    if not tokens and not is_told:
        return make_slots([str(rank) for rank in range(world_size)], pool), UNCHECKED
    if not tokens:
        return make_slots([CPU] * world_size, pool), {}
    if world_size > len(tokens):
        raise UsageError(
            f"world_size {world_size}, but there are {len(tokens)} device(s): {','.join(tokens)}. "
            "Ask for one worker for each, or show more with CUDA_VISIBLE_DEVICES."
        )
    logger.info("%s", pool)
    return make_slots(tokens[:world_size], pool), {}


class GPUProcessCoordinator:
    """Starts `world_size` workers, one for each GPU, waits for them and collects what they report.

    workers: {rank: Worker} of the last spawn_workers. results_queue: the parent's end of the
    reports. Raises UsageError for a world_size below 1.
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
        self._refuse_while_any_runs()
        keep_exit_statuses()
        args = _encode_args(worker_args)
        job, source = parse_call(worker_fn)
        slots, variables = slots_of_host(self.world_size)
        options = Options()
        request = Request(
            job=job,
            source=source,
            args={"worker_args": args},
            tasks=self._calls(),
            options=options,
            out=None,
            argv=sys.argv,
        )
        # Where another coordinator took a generation's number just now, the next one is tried.
        while create(layout := self._next_generation(), request, self.world_size) is None:
            continue
        view = open_view(layout.root)
        self.results_queue.add(layout)
        self.workers = {}
        orders = Orders(epoch=0, job=job, options=options, world_size=self.world_size)
        try:
            for slot in slots:
                child = launch(view, slot, slot.number, orders, PATIENCE, False, **variables)
                assert child is not None, "nobody else knows this spool"
                self.workers[slot.number] = Worker(slot.number, child, view)
                text = "Spawned worker %d (CUDA_VISIBLE_DEVICES=%s)"
                logger.info(text, slot.number, slot.device)
        except OSError:
            self.terminate_all()
            raise

    def _refuse_while_any_runs(self) -> None:
        """Settle the last generation's workers. Raises UsageError while one of them runs."""
        alive = _still_running(self.workers.values())
        if alive:
            ranks = ", ".join(str(worker.rank) for worker in alive)
            raise UsageError(
                f"workers {ranks} still run. Wait for them, or end them with terminate_all()."
            )

    def _calls(self) -> TaskList:
        """One careful task for each rank: its journal says that the call began, so a death in it is
        known to be its own.
        """
        call = TaskLine(task=0, key="", payload=msgspec.Raw(b"null"), cost=1.0, careful=True)
        return seal_tasks(
            msgspec.structs.replace(call, task=rank, key=rank_name(rank))
            for rank in range(self.world_size)
        )

    def _next_generation(self) -> Layout:
        earlier = generations(self._root)
        number = 0
        if earlier:
            number = (parse_generation(earlier[-1].root.name) or 0) + 1
        return Layout(self._root / generation_name(number))

    def wait_for_completion(self, timeout: float | None = None) -> dict[int, bool]:
        """For each rank whether it completed; one deadline for all, `timeout` seconds from now.

        Whoever still runs then is False and goes on running. Ctrl-C ends the workers, as it would
        in one process group.
        """
        try:
            alive = wait_for(self.workers.values(), timeout)
        except KeyboardInterrupt:
            self.terminate_all()
            raise
        for worker in alive:
            text = "Worker %d timed out after %g s (pid %d); it goes on"
            logger.warning(text, worker.rank, timeout, worker.pid)
        # The exit code alone will not do: a worker may end between the deadline and this line, and
        # would be False in the log and True in the answer.
        has_completed: dict[int, bool] = {}
        for rank, worker in self.workers.items():
            has_completed[rank] = worker not in alive and worker.exitcode == 0
        return has_completed

    def collect_results(self) -> list[dict[str, Any]]:
        """The reports that this object has not given yet, in the order of rank and put.

        Workers that have ended are settled.
        """
        for worker in self.workers.values():
            worker.settle()
        return self.results_queue.drain()

    def terminate_all(self) -> None:
        """End every worker and its children: SIGTERM, then SIGKILL for whoever is still there after
        GRACE_S.
        """
        alive = _still_running(self.workers.values())
        for worker in alive:
            logger.warning("Terminating worker %d (pid %d)", worker.rank, worker.pid)
            worker.terminate()
        alive = wait_for(alive, GRACE_S)
        for worker in alive:
            logger.warning("Terminating worker %d (pid %d) with SIGKILL", worker.rank, worker.pid)
            worker.kill()
        for worker in wait_for(alive, KILL_S):
            text = "Worker %d (pid %d) does not end; look at the driver"
            logger.error(text, worker.rank, worker.pid)


def _encode_args(worker_args: Sequence[Any]) -> list[Any]:
    """The arguments as JSON that keeps their types. Raises TypeError, naming what has none."""
    if not isinstance(worker_args, (tuple, list)):
        kind = type(worker_args).__name__
        raise TypeError(f"worker_args is a {kind}; it must be a tuple of arguments")
    encoded: list[Any] = []
    for place, value in enumerate(worker_args):
        where = f"worker_args[{place}]"
        encoded.append(encode_value(value, where))
    return encoded
