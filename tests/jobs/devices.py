"""A job that keeps each rank at its first task until all ranks have one."""

import os

from gates import pass_gate


def meet(task, ctx):
    gate = f"{ctx.args['gate']}."
    open(f"{gate}{ctx.rank}", "w").close()
    for rank in range(ctx.world_size):
        pass_gate(f"{gate}{rank}")
    names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS")
    return [*map(os.environ.get, names), ctx.device]
