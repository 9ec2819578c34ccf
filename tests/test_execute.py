"""One call of user code: whatever it returns or raises, every task of it gets exactly one line, and
the right one.
"""

import dataclasses
import gc
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from helpers import tree
from hypothesis import given, settings
from hypothesis import strategies as st
from spooling import A0, task

from gpuspool.spool.records import Error, JournalLine, TaskLine
from gpuspool.worker.call import LOG_FROM_S, Call
from gpuspool.worker.clocks import Span
from gpuspool.worker.context import Context, Task
from gpuspool.worker.doing import Doing
from gpuspool.worker.drain import Drain
from gpuspool.worker.execute import MOST_CALLS, STRETCH_S, Executor
from gpuspool.worker.job import LoadedJob
from gpuspool.worker.outputs import Outputs


class Kept:
    """Keeps what is settled, in the order in which that was known."""

    is_announcing = False
    is_at_end = False

    def may_restart(self, lines: list[TaskLine]) -> bool:
        return False

    def __init__(self) -> None:
        self.settled: list[tuple[TaskLine, JournalLine]] = []
        self.paused: list[int] = []
        self.announced: list[tuple[list[int], list[int]]] = []

    def announce(self, lines: list[TaskLine], loading: list[int]) -> None:
        self.announced.append(([line.task for line in lines], loading))

    def note_split(self, lines: list[TaskLine], error: Error, span: Span) -> None:
        pass

    def publishing(self) -> None:
        pass

    def pause(self, line: TaskLine, span: Span) -> None:
        self.paused.append(line.task)

    def settle(self, line: TaskLine, verdict: JournalLine) -> None:
        self.settled.append((line, verdict))

    def settle_call(self, ends: Sequence[tuple[TaskLine, JournalLine]]) -> None:
        self.settled.extend(ends)


class Settling(Executor):
    """An executor whose verdicts are kept."""

    def __init__(self, job: LoadedJob, context: Context, outputs: Outputs, seed: int) -> None:
        self.kept = Kept()
        self.drain = Drain()
        super().__init__(job, Call(job, context, outputs, seed, Doing(), self.kept), self.drain)

    @property
    def settled(self) -> list[tuple[TaskLine, JournalLine]]:
        return self.kept.settled

    def settle(self, tasks: list[TaskLine]) -> list[tuple[TaskLine, JournalLine]]:
        """Each of these tasks with its line, in the order in which that was known."""
        self.settled.clear()
        while tasks:
            tasks = tasks[self.run(tasks) :]
        return self.settled


def executor_of(
    out: Path, call: Callable[[Any, Context], Any], batch_size: int | None = None
) -> Settling:
    outputs = Outputs(out, A0)
    context = Context(0, 1, A0, "cpu", {}, outputs.path, lambda: False, pytest.fail)
    return Settling(LoadedJob(call=call, batch_size=batch_size), context, outputs, 7)


def run(executor: Settling, count: int, **more: Any) -> list[JournalLine]:
    """The lines of a batch of tasks 0, 1, … whose payloads are their indices, in order."""
    tasks = [task(index, **more) for index in range(count)]
    settled = executor.settle(tasks)
    assert all(
        line.task == verdict.task and line.round == verdict.round for line, verdict in settled
    )
    assert sorted(verdict.task for _, verdict in settled) == list(range(count))
    return sorted((verdict for _, verdict in settled), key=lambda verdict: verdict.task)


def states(lines: list[JournalLine]) -> str:
    return "".join(line.state[0] for line in lines)


def values(lines: list[JournalLine]) -> list[Any]:
    return [msgspec.json.decode(line.result) if bytes(line.result) else None for line in lines]


def kinds(lines: list[JournalLine]) -> list[str | None]:
    return [line.error.kind if line.error else None for line in lines]


def test_a_task_alone_gives_its_result(tmp_path: Path) -> None:
    [line] = run(
        executor_of(tmp_path, lambda task, ctx: {"twice": 2 * task.payload + task.index}),
        1,
        round=3,
    )
    assert (line.state, line.round, values([line])) == ("complete", 3, [{"twice": 0}])
    assert line.error is None
    assert line.start > 1.7e9
    assert line.seconds >= 0


def test_a_batch_gives_each_task_its_own_result(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def call(tasks: list[Task], ctx: Context) -> Any:
        seen.append([task.index for task in tasks])
        return (task.payload * 10 for task in tasks)

    lines = run(executor_of(tmp_path, call, 4), 4)
    assert (states(lines), values(lines)) == ("cccc", [0, 10, 20, 30])
    assert seen == [[0, 1, 2, 3]]


def test_the_rows_of_an_array_are_the_results(tmp_path: Path) -> None:
    for array in (np.arange(6.0).reshape(3, 2), torch.arange(6.0).reshape(3, 2)):
        lines = run(executor_of(tmp_path, lambda tasks, ctx, array=array: array, 3), 3)
        assert values(lines) == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 17), bad=st.sets(st.integers(0, 16)))
def test_a_batch_that_raises_fails_exactly_the_bad_tasks(
    tmp_path_factory: pytest.TempPathFactory, count: int, bad: set[int]
) -> None:
    calls = 0

    def call(tasks: list[Task], ctx: Context) -> list[int]:
        nonlocal calls
        calls += 1
        for one in tasks:
            if one.index in bad:
                raise ValueError(f"task {one.index} is bad")
        return [one.index for one in tasks]

    lines = run(executor_of(tmp_path_factory.getbasetemp(), call, 17), count)
    assert {line.task for line in lines if line.state == "failed"} == {
        index for index in bad if index < count
    }
    for line in lines:
        if line.error is None:
            assert values([line]) == [line.task]
        else:
            assert (line.error.kind, line.error.message) == (
                "exception",
                f"task {line.task} is bad",
            )
    if len(bad & set(range(count))) == 1:
        assert calls <= 2 * count.bit_length() + 1, "a bad task is found by halving"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(0), GeneratorExit(), RecursionError("deep")]
)
def test_whatever_user_code_raises_fails_its_task_alone(
    tmp_path: Path, error: BaseException
) -> None:
    def call(tasks: list[Task], ctx: Context) -> list[int]:
        if any(one.index == 2 for one in tasks):
            raise error
        return [one.index for one in tasks]

    lines = run(executor_of(tmp_path, call, 4), 4)
    assert states(lines) == "ccfc"
    assert lines[2].error is not None
    assert lines[2].error.type == type(error).__name__


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """No attribute of it may be assigned, not even its traceback."""

    why: str


class OwnTraceback(Exception):
    """Its class has another meaning for the method that sets a traceback."""

    def with_traceback(self, tb: Any) -> Any:
        raise AssertionError("called by somebody who does not know this class")


@pytest.mark.parametrize("error", [Frozen("no"), OwnTraceback("no")])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_exception_that_lets_nobody_change_it_fails_its_task_alone(
    tmp_path: Path, error: Exception, batch_size: int | None
) -> None:
    def call(tasks: Any, ctx: Context) -> Any:
        several = [tasks] if batch_size is None else tasks
        if any(one.index == 1 for one in several):
            raise error
        return 7 if batch_size is None else [7] * len(several)

    lines = run(executor_of(tmp_path, call, batch_size), 2)
    assert states(lines) == "cf"
    assert lines[1].error is not None
    assert lines[1].error.where.startswith("test_execute.py:")


def test_a_task_whose_load_raised_has_its_verdict_when_its_batch_is_split(tmp_path: Path) -> None:
    """Task 1 cannot be loaded, and the call of the others raises because of task 2."""
    loads: list[int] = []

    def load(one: Task) -> int:
        loads.append(one.index)
        if one.index == 1:
            raise OSError("cannot read it")
        return one.index

    def call(tasks: list[Task], ctx: Context) -> list[int]:
        if any(one.index == 2 for one in tasks):
            raise ValueError("no")
        return [one.loaded for one in tasks]

    outputs = Outputs(tmp_path, A0)
    context = Context(0, 1, A0, "cpu", {}, outputs.path, lambda: False, pytest.fail)
    job = LoadedJob(call=call, batch_size=4, load=load, prefetch=0)
    lines = run(Settling(job, context, outputs, 7), 4)
    assert states(lines) == "cffc"
    assert [line.error.type for line in lines if line.error] == ["OSError", "ValueError"]
    assert loads.count(1) == 1, "it is not tried again by the back door"


def test_an_exception_among_the_results_fails_that_task_alone_and_once(tmp_path: Path) -> None:
    calls = 0

    def call(tasks: list[Task], ctx: Context) -> list[Any]:
        nonlocal calls
        calls += 1
        return [ValueError(f"no {one.index}") if one.index % 2 else one.index for one in tasks]

    lines = run(executor_of(tmp_path, call, 5), 5)
    assert (states(lines), values(lines)) == ("cfcfc", [0, None, 2, None, 4])
    assert lines[3].error is not None
    assert (lines[3].error.type, lines[3].error.message) == ("ValueError", "no 3")
    assert calls == 1, "the others need not run again"


def test_a_result_that_is_no_json_fails_that_task_alone_and_once(tmp_path: Path) -> None:
    results = [1, {2}, float("inf"), "x" * 2**20, float("nan"), None]
    calls = 0

    def call(tasks: list[Task], ctx: Context) -> list[Any]:
        nonlocal calls
        calls += 1
        return results

    lines = run(executor_of(tmp_path, call, 6), 6)
    assert (states(lines), values(lines)) == ("cfffcc", [1, None, None, None, None, None])
    assert kinds(lines) == [None, "result", "result", "result", None, None]
    assert calls == 1


@pytest.mark.parametrize("results", [[], [1] * 4, [1] * 5])
def test_another_number_of_results_than_tasks_fails_them(
    tmp_path: Path, results: list[int]
) -> None:
    lines = run(executor_of(tmp_path, lambda tasks, ctx: results, 3), 3)
    assert states(lines) == "fff"
    assert kinds(lines) == ["result"] * 3
    assert lines[0].error is not None
    assert f"{len(results)} results for 3 tasks" in lines[0].error.message


def test_a_batch_that_drops_one_result_fails_whole(tmp_path: Path) -> None:
    """A job that skips its bad tasks does so in every batch: run one by one, it would seem to be
    right, and take as many calls as there are tasks.
    """
    lines = run(
        executor_of(tmp_path, lambda tasks, ctx: [one.index for one in tasks if one.index != 2], 4),
        4,
    )
    assert (states(lines), values(lines)) == ("ffff", [None] * 4)


@pytest.mark.parametrize("results", [{0, 1, 2}, {0: "a", 1: "b", 2: "c"}, "abc", b"abc"], ids=type)
def test_a_batch_whose_results_have_no_order_fails(tmp_path: Path, results: Any) -> None:
    """It may have as many as there are tasks; which is whose, nobody knows."""
    lines = run(executor_of(tmp_path, lambda tasks, ctx: results, batch_size=3), 3)
    assert kinds(lines) == ["result"] * 3


@pytest.mark.parametrize("results", [None, 5])
def test_a_batch_without_a_list_of_results_fails(tmp_path: Path, results: Any) -> None:
    lines = run(executor_of(tmp_path, lambda tasks, ctx: results, 2), 2)
    assert (states(lines), kinds(lines)) == ("ff", ["exception", "exception"])


def out_of_memory_above(limit: int, sizes: list[int]) -> Callable[[list[Task], Context], list[int]]:
    def call(tasks: list[Task], ctx: Context) -> list[int]:
        sizes.append(len(tasks))
        if len(tasks) > limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory with {len(tasks)}")
        return [one.index for one in tasks]

    return call


def test_an_out_of_memory_error_halves_the_batch_size_for_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes: list[int] = []
    executor = executor_of(tmp_path, out_of_memory_above(5, sizes), 16)
    lines = run(executor, 16)
    assert (states(lines), values(lines)) == ("c" * 16, list(range(16)))
    assert sizes[:3] == [16, 8, 4]
    assert (executor.batch_size, executor.oom_halvings >= 2) == (4, True)
    assert "out of memory with 16 tasks" in capfd.readouterr().out
    sizes.clear()
    run(executor, executor.batch_size)
    assert sizes == [4]


def test_batches_that_are_not_full_do_not_make_the_batch_size_grow(tmp_path: Path) -> None:
    sizes: list[int] = []
    executor = executor_of(tmp_path, out_of_memory_above(2, sizes), 8)
    for count in (3, 8, *[1] * 20):
        assert states(run(executor, count)) == "c" * count
        assert executor.batch_size == 2


def test_a_part_of_a_batch_that_fits_better_does_not_raise_the_batch_size(tmp_path: Path) -> None:
    def call(tasks: list[Task], ctx: Context) -> list[int]:
        if len(tasks) > (1 if tasks[0].index < 4 else 3):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [one.index for one in tasks]

    executor = executor_of(tmp_path, call, 8)
    assert states(run(executor, 8)) == "c" * 8
    assert executor.batch_size == 1


def test_a_task_that_does_not_fit_alone_fails_as_gpu_oom(tmp_path: Path) -> None:
    sizes: list[int] = []
    executor = executor_of(tmp_path, out_of_memory_above(0, sizes), 4)
    lines = run(executor, 4)
    assert (states(lines), kinds(lines)) == ("ffff", ["gpu_oom"] * 4)
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert executor.batch_size < 4
    alone = executor_of(tmp_path, lambda task, ctx: out_of_memory_above(0, [])([task], ctx))
    assert kinds(run(alone, 1)) == ["gpu_oom"]


def test_one_task_too_large_costs_no_other(tmp_path: Path) -> None:
    def call(tasks: list[Task], ctx: Context) -> list[int]:
        if any(one.index == 5 for one in tasks):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [one.index for one in tasks]

    lines = run(executor_of(tmp_path, call, 8), 8)
    assert states(lines) == "cccccfcc"
    assert kinds(lines)[5] == "gpu_oom"


def test_an_error_that_only_reads_like_out_of_memory_halves_nothing(tmp_path: Path) -> None:
    def call(tasks: list[Task], ctx: Context) -> list[int]:
        raise RuntimeError("CUDA out of memory")

    executor = executor_of(tmp_path, call, 4)
    assert kinds(run(executor, 4)) == ["exception"] * 4
    assert (executor.batch_size, executor.oom_halvings) == (4, 0)


def test_outputs_of_what_completed_are_published_and_of_what_failed_are_not(tmp_path: Path) -> None:
    def call(tasks: list[Task], ctx: Context) -> list[Any]:
        for one in tasks:
            path = ctx.output(one, ".txt")
            if one.index != 1:
                path.write_text(f"{len(tasks)} at once")
        if len(tasks) > 4:
            raise ValueError("too many at once")
        return [
            float("inf") if one.index == 2 else ValueError("no") if one.index == 3 else None
            for one in tasks
        ]

    lines = run(executor_of(tmp_path, call, 8), 8)
    assert states(lines) == "cfffcccc"
    assert kinds(lines) == [None, "output", "result", "exception", *[None] * 4]
    assert [line.outputs for line in lines] == [
        [("t0.txt", 9)],
        [],
        [],
        [],
        *([(f"t{index}.txt", 9)] for index in range(4, 8)),
    ]
    assert tree(tmp_path) == {f"t{index}.txt": b"4 at once" for index in (0, 4, 5, 6, 7)}


def test_a_single_task_that_raises_leaves_no_output(tmp_path: Path) -> None:
    def call(task: Task, ctx: Context) -> None:
        ctx.output(task, ".txt").write_text("half")
        raise ValueError("after all")

    assert states(run(executor_of(tmp_path, call), 1)) == "f"
    assert tree(tmp_path) == {}


def test_a_verdict_comes_as_soon_as_its_part_of_the_batch_is_done(tmp_path: Path) -> None:
    """So a crash later in a batch that is being split costs nothing that was done before."""
    known: list[int] = []

    def call(tasks: list[Task], ctx: Context) -> list[int]:
        known.append(len(executor.settled))
        if len(tasks) == 4:
            raise ValueError("as a whole")
        return [one.index for one in tasks]

    executor = executor_of(tmp_path, call, 4)
    assert states(run(executor, 4)) == "cccc"
    assert known == [0, 0, 2]


def test_of_a_job_without_batches_each_verdict_comes_before_the_next_call(tmp_path: Path) -> None:
    known: list[int] = []

    def call(task: Task, ctx: Context) -> None:
        known.append(len(executor.settled))
        if task.index == 1:
            raise ValueError("bad")

    executor = executor_of(tmp_path, call)
    assert states(run(executor, 4)) == "cfcc"
    assert known == [0, 1, 2, 3]


def test_nothing_of_a_call_is_kept_while_the_next_one_runs(tmp_path: Path) -> None:
    kept: list[weakref.ref[Any]] = []

    class Tensor:
        def tolist(self) -> list[int]:
            return [1]

    def call(task: Task, ctx: Context) -> Tensor:
        assert [ref() for ref in kept] == [None] * len(kept)
        tensor = Tensor()
        kept.extend([weakref.ref(tensor), weakref.ref(task)])
        if task.index == 1:
            raise ValueError("with a frame that holds the tensor")
        return tensor

    assert states(run(executor_of(tmp_path, call), 4)) == "cfcc"


def odd_results(task: Task, ctx: Context) -> Any:
    """What a job may come to, by the task's index."""
    results = [None, 3, {"a": [1, None]}, float("nan"), float("inf"), {2}, KeyError("returned")]
    if task.index < len(results):
        return results[task.index]
    path = ctx.output(task, ".txt")
    match task.index - len(results):
        case 0:
            path.write_text("kept")
        case 1:
            path.write_text("dropped")
            raise ValueError("after writing")
        case 2:
            return "and nothing written"
        case 3:
            path.write_text("late")
            print("some words", flush=True)
            time.sleep(2 * LOG_FROM_S)
    return "written"


def test_a_single_call_comes_to_the_same_verdict_as_a_batch_of_one(tmp_path: Path) -> None:
    """A job without batches is called by a way of its own, for speed."""

    def batch(tasks: list[Task], ctx: Context) -> list[Any]:
        return [odd_results(tasks[0], ctx)]

    (tmp_path / "single").mkdir()
    (tmp_path / "batch").mkdir()
    singly = run(executor_of(tmp_path / "single", odd_results), 11)
    batches = executor_of(tmp_path / "batch", batch, 1)
    for index, line in enumerate(singly):
        [(_, other)] = batches.settle([task(index)])
        assert (line.state, line.outputs) == (other.state, other.outputs), index
        assert bytes(line.result) == bytes(other.result), index
        # A long call gets a range of the log, and on a busy machine any call may be long.
        if (line.seconds >= LOG_FROM_S) == (other.seconds >= LOG_FROM_S):
            assert (line.log is None) == (other.log is None), index
        assert kinds([line]) == kinds([other]), index
        if line.error is not None and other.error is not None:
            assert (line.error.type, line.error.message) == (other.error.type, other.error.message)
    assert states(singly) == "ccccfffcffc"
    assert tree(tmp_path / "single") == tree(tmp_path / "batch")


def test_a_batch_that_does_not_fit_is_let_go_before_its_half_is_tried(tmp_path: Path) -> None:
    """The memory that its inputs and its frames hold is what the half needs. No collector runs."""
    kept: list[weakref.ref[Any]] = []

    class Tensor:
        pass

    def call(tasks: list[Task], ctx: Context) -> list[int]:
        assert [ref() for ref in kept] == [None] * len(kept)
        tensor = Tensor()
        kept.extend([weakref.ref(tensor), *map(weakref.ref, tasks)])
        if len(tasks) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [one.index for one in tasks]

    gc.disable()
    try:
        assert states(run(executor_of(tmp_path, call, 8), 8)) == "c" * 8
    finally:
        gc.enable()


def test_only_calls_of_careful_tasks_are_announced_unless_all_are(tmp_path: Path) -> None:
    single = executor_of(tmp_path, lambda task, ctx: None)
    single.settle([task(0), task(1, careful=True), task(2)])
    assert single.kept.announced == [([1], [])]
    single.kept.is_announcing = True
    single.settle([task(3), task(4)])
    assert single.kept.announced[1:] == [([3], []), ([4], [])]
    batch = executor_of(tmp_path, lambda tasks, ctx: [None] * len(tasks), 3)
    batch.kept.is_announcing = True
    batch.settle([task(0), task(1), task(2)])
    assert batch.kept.announced == [([0, 1, 2], [])]


def test_no_call_begins_once_a_drain_is_asked_for(tmp_path: Path) -> None:
    def call(task: Task, ctx: Context) -> None:
        if task.index == 1:
            executor.drain.request()

    executor = executor_of(tmp_path, call)
    tasks = [task(index) for index in range(4)]
    ran = executor.run(tasks)
    # On a busy machine the first call alone may take as long as a stretch may.
    if ran == 1:
        ran += executor.run(tasks[1:])
    assert ran == 2
    assert [line.task for line, _ in executor.settled] == [0, 1]


def test_after_a_long_call_the_caller_looks_around_before_the_next(tmp_path: Path) -> None:
    executor = executor_of(tmp_path, lambda task, ctx: time.sleep(2 * STRETCH_S))
    assert executor.run([task(index) for index in range(4)]) == 1


def test_as_many_single_tasks_are_asked_for_as_fit_between_two_looks(tmp_path: Path) -> None:
    executor = executor_of(tmp_path, lambda task, ctx: time.sleep(task.payload))
    assert executor.wanted == 1
    wanted = []
    for _ in range(10):
        executor.run([task(0, payload=msgspec.Raw(b"0"))])
        wanted.append(executor.wanted)
    assert 1 < max(wanted) <= MOST_CALLS
    executor.run([task(0, payload=msgspec.Raw(b"%g" % (2 * STRETCH_S)))])
    assert executor.wanted == 1


def test_a_seed_depends_on_the_run_and_the_index_alone(tmp_path: Path) -> None:
    alone = run(executor_of(tmp_path, lambda task, ctx: task.seed), 1)
    batch = run(executor_of(tmp_path, lambda tasks, ctx: [one.seed for one in tasks], 3), 3)
    assert values(alone)[0] == values(batch)[0]
    assert len(set(values(batch))) == 3
    assert all(0 <= seed < 2**63 for seed in values(batch))


def test_a_task_shows_what_its_line_says(tmp_path: Path) -> None:
    def call(task: Task, ctx: Context) -> Any:
        return [
            task.key,
            str(task.path),
            task.cost,
            task.payload["n"],
            ctx.rank,
            ctx.attempt,
            ctx.is_draining(),
        ]

    executor = executor_of(tmp_path, call)
    line = task(
        5, key="cat/1.jpg", payload=msgspec.Raw(b'{"path":"/data/cat/1.jpg","n":[1]}'), cost=2.5
    )
    [(_, verdict)] = executor.settle([line])
    assert values([verdict]) == [["cat/1.jpg", "/data/cat/1.jpg", 2.5, [1], 0, A0, False]]


def test_the_seconds_of_a_batch_are_shared_and_its_log_is_told_for_failures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def call(tasks: list[Task], ctx: Context) -> list[Any]:
        print("some words", flush=True)
        return [None, ValueError("no")]

    good, bad = run(executor_of(tmp_path, call, 2), 2)
    assert good.seconds == bad.seconds
    assert bad.log is not None
    assert bad.log[1] - bad.log[0] == len("some words\n")
    assert capfd.readouterr().out == "some words\n"
