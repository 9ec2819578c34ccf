"""A LightningModule as one may have it from training: it tells three kinds of waves apart."""

import lightning
import torch
from torch import nn

KINDS = ("sine", "square", "triangle")
LENGTH = 64


class Waves(lightning.LightningModule):
    """Waves [batch, 64] to scores [batch, 3]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            *(nn.Conv1d(1, width, 7, padding=3), nn.ReLU(), nn.AdaptiveMaxPool1d(4)),
            *(nn.Flatten(), nn.Linear(width * 4, len(KINDS))),
        )

    def forward(self, waves):
        return self.net(waves[:, None])

    def training_step(self, batch, number):
        waves, kinds = batch
        return nn.functional.cross_entropy(self(waves), kinds)

    def predict_step(self, waves, number):
        return self(waves).softmax(1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)
