"""A small job for real GPUs, and a careless one that takes the CPU if it finds none."""

import torch


class Matrix:
    batch_size = 4

    def __init__(self, ctx):
        self.device = ctx.device if torch.cuda.is_available() else "cpu"
        self.eye = torch.eye(256, device=self.device)

    def __call__(self, tasks, ctx):
        torch.manual_seed(tasks[0].seed)
        matrix = torch.randn(256, 256, device=self.device)
        return [float((matrix @ self.eye - matrix).abs().max()) for _ in tasks]
