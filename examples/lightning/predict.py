"""Predict with a LightningModule: `Trainer.predict` over the tasks of each call.

Input: a wave, .npy of float32 [64]. Result: {"kind": name, "probability": 0..1}.
Argument: checkpoint, as `Trainer.save_checkpoint` wrote it.
"""

import logging
import warnings

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from model import KINDS, Waves
from torch.utils.data import DataLoader

# Each call makes a loader without processes of its own, which Lightning would warn of each time.
warnings.filterwarnings("ignore", ".*does not have many workers.*")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class Predict:
    # What one `Trainer.predict` gets. It costs some milliseconds beside its batches, so let a call
    # have many of these.
    batch_size = 256

    def __init__(self, ctx):
        self.model = Waves.load_from_checkpoint(ctx.args["checkpoint"], map_location="cpu")
        self.trainer = lightning.Trainer(
            accelerator="cpu" if ctx.device == "cpu" else "gpu",
            # The rank sees its own GPU alone; other GPUs have other ranks.
            devices=1,
            # Whatever this runs in (Slurm, MPI, torchrun), Lightning is not to join its processes.
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def load(self, task):
        """Runs in threads for the tasks of the next calls, in the place of a loader's processes."""
        return torch.from_numpy(np.load(task.path))

    def __call__(self, tasks, ctx):
        loader = DataLoader([task.loaded for task in tasks], batch_size=64)
        # A list with what `predict_step` returned for each batch.
        scores = torch.cat(self.trainer.predict(self.model, loader))
        best = scores.max(1)
        return [
            {"kind": KINDS[index], "probability": round(probability, 4)}
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
