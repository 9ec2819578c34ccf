"""A batched transformer with random weights: as a gpuspool job, and as the bare loop that it is
held against.

Both call the same `Model`; each batch leaves a trace once its results are on the host.
"""

import json
import os
import sys
import time

import torch
import work

SIZES = {
    "full": {"width": 1024, "heads": 16, "layers": 12, "length": 256, "batch": 64},
    "tiny": {"width": 32, "heads": 4, "layers": 1, "length": 8, "batch": 4},
}


class Model:
    def __init__(self, device, size):
        self.device, self.size = device, SIZES[size]
        if device == "cpu":
            # Ranks on one machine would wait for each other's threads.
            torch.set_num_threads(1)
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(
            self.size["width"],
            self.size["heads"],
            4 * self.size["width"],
            batch_first=True,
            norm_first=True,
        )
        encoder = torch.nn.TransformerEncoder(
            layer, self.size["layers"], enable_nested_tensor=False
        )
        self.dtype = torch.bfloat16 if device != "cpu" else torch.float32
        self.encoder = encoder.eval().to(device, self.dtype)

    @torch.inference_mode()
    def __call__(self, seeds):
        """One number for each seed; the list is on the host, so the device has done its work."""
        start = time.time()
        shape = (len(seeds), self.size["length"], self.size["width"])
        generator = torch.Generator(self.device).manual_seed(int(seeds[0]))
        inputs = torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)
        values = self.encoder(inputs).float().mean(dim=(1, 2)).tolist()
        work.note(seeds[0], start)
        return values


class Encoder:
    """The job."""

    def __init__(self, ctx):
        # The tiny one is for machines without a GPU, whatever this worker was given.
        device = "cpu" if ctx.args["size"] == "tiny" else ctx.device
        self.model = Model(device, ctx.args["size"])
        self.batch_size = self.model.size["batch"]

    def __call__(self, tasks, _ctx):
        return self.model([task.payload for task in tasks])


def bare(device, size, seconds):
    """Batch after batch, as long as asked for (after the first, which warms the device up); returns
    how many tasks.
    """
    model, done = Model(device, size), 0
    batch, until = model.size["batch"], None
    while until is None or time.time() < until:
        model([str(seed) for seed in range(done, done + batch)])
        done += batch
        until = until or time.time() + float(seconds)
    return done


if __name__ == "__main__":
    os.makedirs(f"{os.environ['BENCH_FOLDER']}/trace", exist_ok=True)
    print(json.dumps({"done": bare(*sys.argv[1:])}))
