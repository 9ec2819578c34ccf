"""Jobs that hang, stop, break their process, or leave others behind."""

import atexit
import ctypes
import errno
import inspect
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from plain import note

LONG_S = 1000
PATIENCE_S = 30


def hang(how):
    if how == "sleep":
        time.sleep(LONG_S)
    if how == "in C":
        # A PyDLL keeps the interpreter's lock in its calls.
        ctypes.PyDLL(None).sleep(LONG_S)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "with a child":
        subprocess.Popen(["sleep", str(LONG_S)])
        time.sleep(LONG_S)


def hangs(task, ctx):
    hang(task.payload)
    return task.payload


class HangsInBatches:
    batch_size = 4

    def __init__(self, ctx):
        pass

    def __call__(self, tasks, ctx):
        for task in tasks:
            hang(task.payload)
        return [task.payload for task in tasks]


class HangsWhileItLoads:
    """Hangs while it loads, once: the second attempt loads."""

    def __init__(self, ctx):
        gate = Path(ctx.args["gate"])
        if not gate.exists():
            gate.touch()
            time.sleep(LONG_S)

    def __call__(self, task, ctx):
        return task.payload


def raises_once(task, ctx):
    gate = Path(f"{ctx.args['gate']}.{task.index}")
    if not gate.exists():
        gate.touch()
        raise ValueError("not yet")
    return task.payload


class NeedsDevice:
    """Does not load on the bad device."""

    def __init__(self, ctx):
        if os.environ["CUDA_VISIBLE_DEVICES"] == ctx.args["bad"]:
            raise RuntimeError("no such device")

    def __call__(self, task, ctx):
        while not Path(ctx.args["gate"]).exists():
            time.sleep(0.004)
        return task.payload


def dies_on_device(task, ctx):
    """Kills its worker on the bad device; elsewhere it waits for the gate."""
    if os.environ["CUDA_VISIBLE_DEVICES"] == ctx.args["bad"]:
        note(f"{ctx.args['gate']}.died", task.index)
        os.kill(os.getpid(), signal.SIGKILL)
    while not Path(ctx.args["gate"]).exists():
        time.sleep(0.004)
    return task.payload


def raises_on_device(task, ctx):
    """Raises at once on the bad device; elsewhere it computes for a moment."""
    if os.environ["CUDA_VISIBLE_DEVICES"] == ctx.args["bad"]:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    time.sleep(0.05)
    return task.payload


def ends_its_worker(task, ctx):
    """The payload true makes the library that reads it end the process; others take a moment."""
    if task.payload:
        os._exit(5)
    time.sleep(0.02)
    return task.index


def out_of_descriptors(task, ctx):
    if task.payload == "bad":
        raise OSError(errno.EMFILE, "Too many open files")
    return task.payload


def breaks_its_device(task, ctx):
    """Raises what torch raises once a kernel went wrong: no call of this process works any more."""
    import torch

    def is_broken():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    if task.payload == "bad":
        torch.cuda.is_initialized = lambda: True
        torch.cuda.synchronize = is_broken
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    return task.payload


def leaves_a_daemon(task, ctx):
    """Leaves a child in a session of its own, which no process group reaches."""
    child = subprocess.Popen(["sleep", str(LONG_S)], start_new_session=True)
    note(ctx.args["children"], child.pid)
    if task.payload == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return task.payload


def leaves_a_bare_child(task, ctx):
    """Leaves a child in a session of its own, with nothing of gpuspool in its environment."""
    child = subprocess.Popen(["sleep", str(LONG_S)], start_new_session=True, env={})
    note(ctx.args["children"], child.pid)


def forks(task, ctx):
    """Forks a child that comes back from the job while its parent is still in it."""
    child = os.fork()
    if child == 0:
        if task.payload == "exits":
            sys.exit(7)
        if task.payload == "raises":
            raise ValueError("in the child")
        return "child"
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wraps_a_full_disk(task, ctx):
    """Does what a tidy library does on a full disk: it makes room and raises without an errno."""
    if not Path(ctx.args["gate"]).exists():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot save") from error
    return task.payload


def ends_a_forked_process(task, ctx):
    """Ends a process that it forked, as a pool does when it closes."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(LONG_S,))
    process.start()
    process.terminate()
    process.join(PATIENCE_S)
    return process.exitcode


class KeepsAPool:
    """Keeps a pool, which ends as Python ends it: when the interpreter exits."""

    def __init__(self, ctx):
        atexit.register(note, ctx.args["exits"], "exited")
        self.pool = multiprocessing.get_context("fork").Pool(2)

    def __call__(self, task, ctx):
        return self.pool.map(abs, [-1, -2])


class Tee:
    """A part of what people put in the place of stdout."""

    def __init__(self, stream):
        self.write = stream.write


def replaces_stdout(task, ctx):
    sys.stdout = Tee(sys.__stdout__)
    raise ValueError(task.payload)


def changes_its_file(task, ctx):
    Path(__file__).write_text("changed while it runs\n")
    raise ValueError(inspect.getsource(changes_its_file).splitlines()[0])


class LeavesWaiters:
    """Leaves a process, and a thread that waits for it, for which the interpreter waits at exit."""

    def __init__(self, ctx):
        child = subprocess.Popen(["sleep", str(LONG_S)])
        threading.Thread(target=child.wait).start()
        atexit.register(note, ctx.args["exits"], "exited")

    def __call__(self, task, ctx):
        return 1


class PublishesMany:
    """Its outputs are folders of very many files, made before the first call."""

    def __init__(self, ctx):
        self.folder = Path(ctx.args["folder"])
        self.folder.mkdir()
        for number in range(int(ctx.args["files"])):
            (self.folder / str(number)).touch()

    def __call__(self, task, ctx):
        if task.index == 0:
            self.folder.rename(ctx.output(task, ""))
        return task.payload


def keeps_the_lock_for(task, ctx):
    """Keeps the interpreter's lock in C until the gate is open, which it looks for in between."""
    if task.payload == "wait":
        note(f"{ctx.args['gate']}.waiting", os.getpid())
    while task.payload == "wait" and not Path(ctx.args["gate"]).exists():
        ctypes.PyDLL(None).usleep(50_000)
    return task.payload


class StoppedAtOnce:
    """A stranger stops every worker while it loads: by the signals of `stop`, one after the other.

    With a `gate` the first worker that finds it there is left alone.
    """

    def __init__(self, ctx):
        note(ctx.args["starts"], os.getpid())
        if not Path(ctx.args["gate"]).exists():
            os.kill(os.getpid(), getattr(signal, ctx.args["stop"]))

    def __call__(self, task, ctx):
        return task.payload


class LetsNotGo:
    """Leaves something that keeps its process from ending, made in its first call."""

    def __init__(self, ctx):
        self.is_done = False

    def __call__(self, task, ctx):
        if not self.is_done:
            self.is_done = True
            getattr(self, ctx.args["what"])()
        if "fill" in ctx.args:
            with open(ctx.args["fill"], "ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        return task.payload

    def thread(self):
        threading.Thread(target=time.sleep, args=(LONG_S,), name="uploads").start()

    def handler(self):
        atexit.register(time.sleep, LONG_S)

    def object_in_c(self):
        """Hangs while the interpreter is taken apart, as a driver may."""
        self.keeps = KeepsTheLock()


class KeepsTheLock:
    sleep = ctypes.PyDLL(None).sleep

    def __del__(self, sleep=sleep):
        sleep(LONG_S)


def leaves_orphans(task, ctx):
    """Leaves a child to process 1, or ("count") waits until process 1 has no zombies any more.

    Returns how many zombies there are.
    """
    if task.payload == "leave":
        return subprocess.run(["sh", "-c", "sleep 0.01 & exit 0"], check=True).returncode
    deadline = time.monotonic() + PATIENCE_S
    while zombies_of_1() and time.monotonic() < deadline:
        time.sleep(0.004)
    return zombies_of_1()


def zombies_of_1():
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        count += state == "Z" and parent == "1"
    return count


def prints_much(task, ctx):
    print("x" * 20_000, flush=True)
    return task.payload


def burns(task, ctx):
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    return task.payload


HELD = []


def keeps_memory(task, ctx):
    """Keeps 40 MB of each task, and asks for far too much if the payload says so."""
    HELD.append(bytearray(40_000_000))
    if task.payload == "bad":
        HELD.append(bytearray(4_000_000_000))
    return task.payload


def keeps_files(task, ctx):
    HELD.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(5))
    return task.payload


def closes_files_of_others(task, ctx):
    """Closes what it did not open, then opens a file of its own and keeps it."""
    if task.payload == "bad":
        os.closerange(3, 4096)
        HELD.append(os.open(ctx.args["mine"], os.O_WRONLY | os.O_CREAT))
    return task.payload


def closes_low_files(task, ctx):
    os.closerange(3, 256)
    HELD.append(os.open(ctx.args["mine"], os.O_WRONLY | os.O_CREAT))
    return task.payload
