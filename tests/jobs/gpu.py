"""Jobs for real GPUs: one that behaves, and several that do what only a real card can show."""

import os
import signal
import time
from pathlib import Path

import torch


class Matrix:
    """A careless job: it takes the CPU where it finds no GPU."""

    batch_size = 4

    def __init__(self, ctx):
        self.device = ctx.device if torch.cuda.is_available() else "cpu"
        self.eye = torch.eye(256, device=self.device)

    def __call__(self, tasks, ctx):
        torch.manual_seed(tasks[0].seed)
        matrix = torch.randn(256, 256, device=self.device)
        return [float((matrix @ self.eye - matrix).abs().max()) for _ in tasks]


class Seen:
    """What a rank sees of the cards; a call takes a moment, so that every rank has some."""

    def __init__(self, ctx):
        self.count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        self.uuids = [str(torch.cuda.get_device_properties(i).uuid) for i in range(self.count)]

    def __call__(self, task, ctx):
        time.sleep(0.05)
        return {"given": os.environ["CUDA_VISIBLE_DEVICES"], "count": self.count,
                "uuids": [f"GPU-{uuid}" for uuid in self.uuids]}  # fmt: skip


class Filling:
    """Each task takes a share of the card's whole memory, as its payload says."""

    batch_size = 16

    def __init__(self, ctx):
        self.total = torch.cuda.get_device_properties(0).total_memory

    def __call__(self, tasks, ctx):
        held = [
            torch.ones(int(float(task.payload) * self.total), dtype=torch.uint8, device=ctx.device)
            for task in tasks
        ]
        return [int(one[-1]) for one in held]


class Asserting:
    """An index that is out of range, which a kernel finds: the context is spoiled by that."""

    batch_size = 4

    def __init__(self, ctx):
        self.table = torch.arange(8.0, device=ctx.device)

    def __call__(self, tasks, ctx):
        places = torch.tensor([int(task.payload) for task in tasks], device=ctx.device)
        return self.table[places].tolist()


# Compiled by NVRTC when first called. Of the values 0, 1, 2 and 3 each does something else.
KERNEL = """
template <typename T> T harm(T x) {
    if (x == T(1)) return *reinterpret_cast<T*>(16);
    if (x == T(2)) asm volatile("trap;");
    while (x == T(3)) { asm volatile(""); }
    return x;
}
"""


class Harming:
    """A faulty kernel: "1" makes it read where nothing is, "2" trap, and "3" run for ever."""

    def __init__(self, ctx):
        self.kernel = torch.cuda.jiterator._create_jit_fn(KERNEL)
        self.kernel(torch.zeros(1, device=ctx.device)).tolist()

    def __call__(self, task, ctx):
        return self.kernel(torch.full((1,), float(task.payload), device=ctx.device)).tolist()[0]


class Greedy:
    """Holds most of the card from its load on, and is killed in its third task, once."""

    def __init__(self, ctx):
        share = 0.6 * torch.cuda.get_device_properties(0).total_memory
        self.held = torch.ones(int(share), dtype=torch.uint8, device=ctx.device)

    def __call__(self, task, ctx):
        if task.payload == "3":
            try:
                Path("killed").touch(exist_ok=False)
            except FileExistsError:
                return int(self.held[-1])
            os.kill(os.getpid(), signal.SIGKILL)
        return int(self.held[-1])
