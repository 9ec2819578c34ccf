#!/usr/bin/env python3
"""Train the module, and write waves.ckpt, and 300 waves to predict: waves/KIND/NUMBER.npy."""

import sys
from pathlib import Path

import lightning
import numpy as np
import torch
from model import KINDS, LENGTH, Waves
from torch.utils.data import DataLoader, TensorDataset

SHAPES = (np.sin, lambda x: np.sign(np.sin(x)), lambda x: np.arcsin(np.sin(x)) * 2 / np.pi)


def make(chance: np.random.Generator, kind: int) -> np.ndarray:
    """A wave of this kind with some noise: float32 [64]."""
    phase, turns = chance.uniform(0, 7), chance.uniform(2, 4)
    wave = SHAPES[kind](phase + np.linspace(0, 2 * np.pi * turns, LENGTH))
    return (wave + chance.normal(0, 0.05, LENGTH)).astype(np.float32)


def main() -> None:
    """Write both below the folder that is named, default the current one."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    chance = np.random.default_rng(0)
    lightning.seed_everything(0)
    kinds = torch.arange(900) % len(KINDS)
    waves = torch.from_numpy(np.stack([make(chance, kind) for kind in kinds.tolist()]))
    trainer = lightning.Trainer(
        max_epochs=8, accelerator="cpu", logger=False, enable_progress_bar=False
    )
    trainer.fit(model := Waves(), DataLoader(TensorDataset(waves, kinds), 32, shuffle=True))
    trainer.save_checkpoint(folder / "waves.ckpt")
    for kind, name in enumerate(KINDS):
        (folder / "waves" / name).mkdir(parents=True, exist_ok=True)
        for number in range(100):
            np.save(folder / "waves" / name / f"{number:03}.npy", make(chance, kind))
    print(f"waves.ckpt: {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
