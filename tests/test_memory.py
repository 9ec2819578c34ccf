"""Memory: what a call that failed held is let go, and out of memory is a task's fault only alone.

No collector runs where references are counted: what only it could free is as good as kept.
"""

import gc
import logging
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Box, assert_sound
from spooling import A0, task
from test_execute import Settling, kinds, run, states

from gpuspool.worker.context import Context, Task
from gpuspool.worker.job import LoadedJob
from gpuspool.worker.memory import is_device_oom, is_host_oom
from gpuspool.worker.outputs import Outputs
from gpuspool.worker.results import to_error


class Tensor:
    """Something that needs memory."""


class Watched:
    """Makes tensors, and knows which of them are still there."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[Tensor]] = []

    def make(self) -> Tensor:
        tensor = Tensor()
        self._made.append(weakref.ref(tensor))
        return tensor

    def alive(self) -> int:
        return sum(ref() is not None for ref in self._made)


@pytest.fixture
def watched() -> Iterator[Watched]:
    gc.collect()
    gc.disable()
    yield Watched()
    gc.enable()


def executor_of(out: Path, **job: Any) -> Settling:
    outputs = Outputs(out, A0)
    context = Context(0, 1, A0, "cpu", {}, outputs.path, lambda: False, pytest.fail)
    return Settling(LoadedJob(**job), context, outputs, 7)


def plain() -> None:
    raise ValueError("no")


def chained() -> None:
    try:
        raise KeyError("first")
    except KeyError as first:
        held = first
        raise ValueError(str(held)) from first


def in_context() -> None:
    try:
        raise KeyError("first")
    except KeyError:
        raise ValueError("second")  # noqa: B904 - the context is the point


def grouped() -> None:
    errors: list[Exception] = []
    for raises in (plain, chained):
        tensor = Tensor()
        try:
            raises()
        except ValueError as error:
            kept = (error, tensor)
            errors.append(kept[0])
    raise ExceptionGroup("several", errors)


def remembered() -> None:
    """Its own frame knows the exception: a ring."""
    error = ValueError("I know myself")
    raise error


def noted() -> None:
    error = ValueError("no")
    error.add_note("a note")
    raise error


RAISES = [plain, chained, in_context, grouped, remembered, noted]


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("raises", RAISES)
def test_nothing_of_a_call_that_raised_is_there_in_the_next(
    tmp_path: Path, watched: Watched, raises: Callable[[], None], batch_size: int | None
) -> None:
    alive: list[int] = []

    def call(tasks: Any, ctx: Context) -> Any:
        alive.append(watched.alive())
        tensor = watched.make()
        raises()
        return tensor

    lines = run(executor_of(tmp_path, call=call, batch_size=batch_size), 4)
    assert states(lines) == "ffff"
    assert alive == [0] * len(alive)
    assert watched.alive() == 0


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("raises", RAISES)
def test_nothing_of_a_load_that_raised_is_there_afterwards(
    tmp_path: Path, watched: Watched, raises: Callable[[], None], prefetch: int
) -> None:
    def load(task: Task) -> Tensor:
        tensor = watched.make()
        if task.index % 2:
            raises()
        return tensor

    def call(tasks: list[Task], ctx: Context) -> list[None]:
        # Those of the tasks in hand are alive, and of an odd one none.
        assert watched.alive() == len(tasks)
        return [None] * len(tasks)

    executor = executor_of(tmp_path, call=call, batch_size=4, load=load, prefetch=prefetch)
    if prefetch:
        executor.look_ahead([task(index) for index in range(4)])
    lines = run(executor, 4)
    executor.close()
    assert states(lines) == "cfcf"
    assert watched.alive() == 0


def test_an_input_that_was_taken_is_kept_by_no_queue(tmp_path: Path, watched: Watched) -> None:
    """All threads are busy, so that the main thread loads the input itself."""
    may_end = threading.Event()

    def load(one: Task) -> Tensor | None:
        if one.index >= 90:
            may_end.wait()
            return None
        return watched.make()

    def call(tasks: list[Task], ctx: Context) -> list[None]:
        assert watched.alive() == 1
        return [None]

    executor = executor_of(tmp_path, call=call, batch_size=1, load=load, prefetch=2)
    executor.look_ahead([task(index) for index in range(90, 99)])
    for index in range(4):
        executor.look_ahead([task(index)])
        executor.run([task(index)])
    may_end.set()
    executor.close()
    assert [verdict.state for _, verdict in executor.settled] == ["complete"] * 4


def test_nothing_of_a_result_that_was_refused_is_there_afterwards(
    tmp_path: Path, watched: Watched
) -> None:
    def refused(task: Task, ctx: Context) -> Tensor:
        assert watched.alive() == 0
        return watched.make()

    lines = run(executor_of(tmp_path, call=refused), 3)
    assert kinds(lines) == ["result"] * 3
    assert watched.alive() == 0


@pytest.mark.parametrize("raises", RAISES)
def test_nothing_of_an_exception_in_the_place_of_a_result_is_there_afterwards(
    tmp_path: Path, watched: Watched, raises: Callable[[], None]
) -> None:
    def caught() -> BaseException | None:
        tensor = watched.make()
        try:
            raises()
        except Exception as error:  # noqa: BLE001 - the job keeps whatever it was
            return error
        raise AssertionError(tensor)

    def call(tasks: list[Task], ctx: Context) -> list[Any]:
        assert watched.alive() == 0
        return [caught() for _ in tasks]

    executor = executor_of(tmp_path, call=call, batch_size=2)
    assert kinds(run(executor, 2)) == ["exception"] * 2
    assert watched.alive() == 0


def test_a_batch_that_dropped_a_result_keeps_nothing(tmp_path: Path, watched: Watched) -> None:
    def call(tasks: list[Task], ctx: Context) -> list[Any]:
        assert watched.alive() == 0
        return [watched.make() for _ in tasks[1:]]

    assert kinds(run(executor_of(tmp_path, call=call, batch_size=4), 4)) == ["result"] * 4
    assert watched.alive() == 0


def test_what_a_log_or_a_debugger_keeps_of_an_exception_holds_nothing(
    tmp_path: Path, watched: Watched
) -> None:
    """Handlers keep records, and records keep tracebacks: error services and test tools do that."""
    kept: list[Any] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    log = logging.getLogger("a job's own")
    log.addHandler(Keeps())
    log.propagate = False

    def call(task: Task, ctx: Context) -> None:
        assert watched.alive() == 0
        tensor = watched.make()
        try:
            raise ValueError(f"no {type(tensor)}")
        except ValueError as error:
            log.exception("it failed")
            sys.last_value = error
            kept.append(sys.exc_info())
            raise

    assert states(run(executor_of(tmp_path, call=call), 3)) == "fff"
    assert watched.alive() == 0
    assert len(kept) == 6


def test_a_generator_of_the_job_that_met_an_exception_goes_on(tmp_path: Path) -> None:
    """Clearing a frame that sleeps would end it."""

    def counting() -> Iterator[BaseException | int]:
        for number in range(10):
            try:
                raise ValueError("caught within")
            except ValueError as error:
                yield error
            yield number

    numbers = counting()

    def call(task: Task, ctx: Context) -> int:
        cause = next(numbers)
        assert isinstance(cause, BaseException)
        number = next(numbers)
        if task.index == 1:
            raise RuntimeError("no") from cause
        assert isinstance(number, int)
        return number

    lines = run(executor_of(tmp_path, call=call), 4)
    assert states(lines) == "cfcc"
    assert [bytes(line.result) for line in lines if line.error is None] == [b"0", b"2", b"3"]


def test_the_last_good_result_and_input_are_gone_while_the_next_call_runs(
    tmp_path: Path, watched: Watched
) -> None:
    def load(task: Task) -> Tensor:
        return watched.make()

    def call(tasks: list[Task], ctx: Context) -> list[None]:
        assert watched.alive() == len(tasks)
        return [None] * len(tasks)

    executor = executor_of(tmp_path, call=call, batch_size=2, load=load, prefetch=0)
    for _ in range(3):
        assert states(run(executor, 2)) == "cc"
    assert watched.alive() == 0


def test_a_job_that_could_not_be_made_lets_go_of_what_it_made(box: Box) -> None:
    """Its process lives on for a while: it closes its attempt, and children end."""
    box.write(
        "job.py",
        "import atexit, gc, weakref\n"
        "gc.disable()\n"
        "class Model: pass\n"
        "class Job:\n"
        "    def __init__(self, ctx):\n"
        "        model = Model()\n"
        "        ref = weakref.ref(model)\n"
        "        atexit.register(lambda: open('seen', 'w').write(str(ref() is None)))\n"
        "        raise ValueError('no weights')\n"
        "    def __call__(self, task, ctx): return 1\n",
    )
    box.run("run", "job.py:Job", "--lines", box.lines(1), "--spool", "S", "--ranks", "1", code=4)
    assert (box / "seen").read_text() == "True"


def test_what_only_the_collector_frees_is_freed_before_a_smaller_batch_is_tried(
    tmp_path: Path, watched: Watched
) -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self
            self.tensor = watched.make()

    def call(tasks: list[Task], ctx: Context) -> list[None]:
        assert watched.alive() == 0
        Ring()
        if len(tasks) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        gc.collect()
        return [None] * len(tasks)

    assert states(run(executor_of(tmp_path, call=call, batch_size=8), 8)) == "c" * 8


def test_a_batch_that_does_not_fit_costs_the_memory_of_one_batch(box: Box) -> None:
    """Of its own, and of many such batches: a job that needs 60 MB for a call."""
    box.write(
        "job.py",
        "import resource\n"
        "OutOfMemory = type('OutOfMemoryError', (RuntimeError,), {'__module__': 'torch'})\n"
        "class Job:\n"
        "    batch_size = 8\n"
        "    def __init__(self, ctx):\n"
        "        self.errors = []\n"
        "        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    def __call__(self, tasks, ctx):\n"
        "        data = bytearray(60_000_000)\n"
        "        if len(tasks) > 1:\n"
        "            try:\n"
        "                raise OutOfMemory('CUDA out of memory')\n"
        "            except RuntimeError as error:\n"
        "                self.errors.append(error)\n"
        "                raise\n"
        "        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before\n"
        "        assert used < 150_000, used\n"
        "        return [len(data)]\n",
    )
    box.run("run", "job.py:Job", "--lines", box.lines(16), "--spool", "S", "--ranks", "1")
    assert_sound(box, "S", 16)


def fits_alone(calls: list[int], raises: Callable[[], BaseException]) -> Callable[..., Any]:
    """A call that meets out of memory the first time that it gets a task."""

    def call(one: Task, ctx: Context) -> int:
        calls.append(one.index)
        if calls.count(one.index) == 1:
            ctx.output(one, ".txt").write_text("half")
            raise raises()
        ctx.output(one, ".txt").write_text("whole")
        return one.index

    return call


@pytest.mark.parametrize(
    "raises", [lambda: torch.OutOfMemoryError("CUDA out of memory"), MemoryError]
)
def test_a_task_that_met_out_of_memory_is_run_once_more_alone(
    tmp_path: Path, raises: Callable[[], BaseException]
) -> None:
    calls: list[int] = []
    lines = run(executor_of(tmp_path, call=fits_alone(calls, raises)), 3)
    assert states(lines) == "ccc"
    assert calls == [0, 0, 1, 1, 2, 2]
    assert [(tmp_path / f"t{index}.txt").read_text() for index in range(3)] == ["whole"] * 3


def test_out_of_memory_in_the_place_of_a_result_is_no_verdict_in_a_batch(tmp_path: Path) -> None:
    calls: list[list[int]] = []

    def call(tasks: list[Task], ctx: Context) -> list[Any]:
        calls.append([one.index for one in tasks])
        return [
            torch.OutOfMemoryError("no") if one.index == 1 and len(tasks) > 1 else one.index
            for one in tasks
        ]

    lines = run(executor_of(tmp_path, call=call, batch_size=4), 4)
    assert states(lines) == "cccc"
    assert calls == [[0, 1, 2, 3], [1]], "the others have their verdicts"


def test_out_of_memory_in_a_load_is_no_verdict_while_others_load(tmp_path: Path) -> None:
    loads: list[int] = []

    def load(one: Task) -> int:
        loads.append(one.index)
        if one.index == 2 and loads.count(2) == 1:
            raise MemoryError
        if one.index == 3:
            raise MemoryError
        return one.index

    def call(tasks: list[Task], ctx: Context) -> list[int]:
        return [one.loaded for one in tasks]

    executor = executor_of(tmp_path, call=call, batch_size=4, load=load, prefetch=2)
    executor.look_ahead([task(index) for index in range(4)])
    lines = run(executor, 4)
    executor.close()
    assert states(lines) == "cccf"
    assert kinds(lines)[3] == "host_oom"
    assert loads.count(3) == 2


def test_nothing_is_loaded_or_kept_for_others_beside_a_task_that_runs_alone(
    tmp_path: Path, watched: Watched
) -> None:
    def load(one: Task) -> Tensor:
        return watched.make()

    def call(tasks: list[Task], ctx: Context) -> list[int]:
        if tasks[0].index == 0 and watched.alive() > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [one.index for one in tasks]

    executor = executor_of(tmp_path, call=call, batch_size=1, load=load, prefetch=3)
    executor.look_ahead([task(index) for index in range(4)])
    assert executor.run([task(0)]) == 1
    assert [verdict.state for _, verdict in executor.settled] == ["complete"]
    assert states(run(executor, 1)) == "c"
    executor.close()


def of_library(module: str, name: str, base: type[Exception] = RuntimeError) -> Any:
    """A class as a library of this name has it."""
    return type(name, (base,), {"__module__": module})


def with_attribute(error: BaseException, name: str, value: int) -> BaseException:
    setattr(error, name, value)
    return error


def behind(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


CUDA_TWO = "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
DEVICE = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError(CUDA_TWO),
    with_attribute(torch.AcceleratorError("whatever"), "error_code", 2),
    RuntimeError(CUDA_TWO),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.86 GB)"),
    of_library("cupy.cuda.memory", "OutOfMemoryError", MemoryError)("Out of memory allocating"),
    with_attribute(of_library("cupy_backends.cuda.api.runtime", "CUDARuntimeError")(), "status", 2),
    of_library("jaxlib.xla_extension", "XlaRuntimeError")("RESOURCE_EXHAUSTED: Out of memory"),
    of_library("jax.errors", "JaxRuntimeError")("RESOURCE_EXHAUSTED: Failed to allocate request"),
    of_library("tensorflow.python.framework.errors_impl", "ResourceExhaustedError", Exception)(
        None, None, "OOM when allocating tensor"
    ),
    of_library("pycuda._driver", "MemoryError", Exception)("cuMemAlloc failed: out of memory"),
    with_attribute(of_library("numba.cuda.cudadrv.driver", "CudaAPIError")(2, "no"), "code", 2),
    MemoryError("std::bad_alloc: out_of_memory: CUDA error at: /rmm/cuda_memory_resource.hpp"),
    behind(RuntimeError("cannot embed"), torch.OutOfMemoryError("CUDA out of memory")),
    ExceptionGroup("several", [ValueError(), torch.OutOfMemoryError("CUDA out of memory")]),
]
HOST = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"),
    OSError(12, "Cannot allocate memory"),
    behind(ValueError("cannot read it"), MemoryError()),
]
NEITHER = [
    torch.AcceleratorError("CUDA error: invalid device ordinal"),
    with_attribute(torch.AcceleratorError("CUDA error: out of memory"), "error_code", 101),
    RuntimeError("my cache is out of memory of last year"),
    ValueError(CUDA_TWO),
    of_library("jaxlib.xla_extension", "XlaRuntimeError")("INVALID_ARGUMENT: not 'OOM'"),
    of_library("my_own", "OutOfMemoryError", Exception)("a pun"),
    OSError(28, "No space left on device"),
]


@pytest.mark.parametrize("error", DEVICE, ids=repr)
def test_the_ways_to_say_that_the_devices_memory_ran_out(error: BaseException) -> None:
    assert is_device_oom(error)
    assert to_error(error).kind == "gpu_oom"


@pytest.mark.parametrize("error", HOST, ids=repr)
def test_the_ways_to_say_that_the_hosts_memory_ran_out(error: BaseException) -> None:
    assert is_host_oom(error)
    assert not is_device_oom(error)
    assert to_error(error).kind == "host_oom"


@pytest.mark.parametrize("error", NEITHER, ids=repr)
def test_what_only_reads_like_out_of_memory_is_an_exception(error: BaseException) -> None:
    assert to_error(error).kind == "exception"


def test_numpys_own_type_is_out_of_memory_of_the_host() -> None:
    import numpy as np

    with pytest.raises(MemoryError) as caught:
        np.zeros(10**18)
    assert to_error(caught.value).kind == "host_oom"


def test_an_error_of_cuda_that_spoils_nothing_fails_its_task_alone(box: Box) -> None:
    """An ordinal that is not there, say: the device takes work as before."""
    box.write(
        "job.py",
        "import torch\n"
        "torch.cuda.is_initialized = lambda: True\n"
        "torch.cuda.synchronize = lambda: None\n"
        "torch.cuda.empty_cache = lambda: None\n"
        "torch.cuda.max_memory_allocated = lambda: 0\n"
        "def f(task, ctx):\n"
        "    if task.index % 3 == 1:\n"
        "        raise torch.AcceleratorError('CUDA error: invalid device ordinal')\n"
        "    return 1\n",
    )
    box.run("run", "job.py:f", "--lines", box.lines(12), "--spool", "S", "--keep-going", code=3)
    failed = [result for result in box.results("S") if result["state"] == "failed"]
    assert [result["index"] for result in failed] == [1, 4, 7, 10]
    assert {result["error"]["kind"] for result in failed} == {"exception"}
    assert len(list((box / "S" / "attempts").iterdir())) == 1, "no restart"


DRIVER = """
static int code = 0;
static int context;
int cuCtxGetCurrent(void **current) { *current = &context; return 0; }
int cuCtxSynchronize(void) { return code; }
int cuGetErrorName(int error, const char **name) {
    *name = error == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : 0;
    return error == 719 ? 0 : 1;
}
int cuGetErrorString(int error, const char **text) {
    *text = error == 719 ? "unspecified launch failure" : 0;
    return error == 719 ? 0 : 1;
}
void set_code(int new_code) { code = new_code; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (700, "CUDA error 700"),
        (719, "CUDA error 719: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"),
    ],
)
def test_a_device_that_takes_no_more_work_ends_its_process_whatever_was_raised(
    box: Box, number: int, words: str
) -> None:
    """A made-up driver. The error that the job raises says nothing of CUDA; the driver does."""
    box.write("driver.c", DRIVER)
    library = box / "libcuda.so.1"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, box / "driver.c"],
        check=True,
    )
    box.write(
        "job.py",
        "import ctypes\n"
        f"driver = ctypes.CDLL({str(library)!r})\n"
        "def f(task, ctx):\n"
        "    driver.set_code(int(task.payload))\n"
        "    if task.payload != '0':\n"
        "        raise ValueError('cannot embed')\n"
        "    return 1\n",
    )
    # In the second place a graph is being captured: nothing may wait then, and nothing is spoiled.
    tasks = box.tasks(["0", "900", "0", str(number), "0", "0"])
    done = box.run("run", "job.py:f", "--tasks", tasks, "--spool", "S", "--ranks", "1", code=3)
    failed = {r["index"]: r["error"] for r in box.results("S") if r["state"] == "failed"}
    assert {index: error["type"] for index, error in failed.items()} == {
        1: "ValueError",
        3: "WorkerLost",
    }
    why = f"it could run nothing more: its device accepts no more work: {words}"
    assert why in failed[3]["message"]
    assert why in done.err
    assert "ValueError: cannot embed" in failed[3]["log_tail"]
