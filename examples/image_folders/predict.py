"""Predict the class of images that lie in a folder for each class.

Input: an image. Result: {"label": class, "probability": 0..1}. Output: OUT/<key>.npy, float32 [64],
what the network's last layer sees, so OUT has the folders that the images have.
Argument: weights, the file that train.py wrote.
"""

import numpy as np
import torch
from PIL import Image
from torch import nn

SIDE = 8


def read(path):
    """An image as the network takes it: float32 [1, 8, 8], from 0 to 1. Raises OSError."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L").resize((SIDE, SIDE)), np.float32)
    return torch.from_numpy(pixels / 255)[None]


class Net(nn.Module):
    """Images [batch, 1, 8, 8] to features [batch, 64] and a score for each class."""

    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 9, 64), nn.ReLU()),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, images):
        features = self.body(images)
        return features, self.head(features)


class Digits:
    # A call gets up to so many images; one that does not fit into memory is run in parts.
    batch_size = 64

    def __init__(self, ctx):
        saved = torch.load(ctx.args["weights"], map_location="cpu", weights_only=True)
        self.classes = saved["classes"]
        self.net = Net(len(self.classes))
        self.net.load_state_dict(saved["net"])
        self.net.to(ctx.device).eval()
        self.device = ctx.device

    def load(self, task):
        """Runs in threads, for the images of the next batches. What cannot be read fails alone."""
        return read(task.path)

    @torch.inference_mode()
    def __call__(self, tasks, ctx):
        images = torch.stack([task.loaded for task in tasks]).to(self.device)
        features, scores = self.net(images)
        best = scores.softmax(1).max(1)
        for task, row in zip(tasks, features.cpu().numpy(), strict=True):
            np.save(ctx.output(task, ".npy"), row)
        return [
            {"label": self.classes[index], "probability": round(probability, 4)}
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
