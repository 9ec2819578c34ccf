#!/usr/bin/env python3
"""Train a small network on data/train and save it as digits.pt: something to predict with."""

import sys
from pathlib import Path

import torch
from predict import Net, read

DATA = Path(__file__).resolve().parent / "data"
STEPS = 300


def main() -> None:
    """Train on images in a folder for each class; takes some seconds on one core."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "train"
    torch.manual_seed(0)
    paths = sorted(folder.glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    images = torch.stack([read(path) for path in paths])
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    net = Net(len(classes))
    optimizer = torch.optim.Adam(net.parameters(), 0.002)
    for _ in range(STEPS):
        part = torch.randint(len(paths), (128,))
        loss = torch.nn.functional.cross_entropy(net(images[part])[1], labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({"classes": classes, "net": net.state_dict()}, "digits.pt")
    print(f"digits.pt: {len(classes)} classes, {len(paths)} images, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
