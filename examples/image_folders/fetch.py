#!/usr/bin/env python3
"""Fetch 1,797 handwritten digits as images: data/digits/CLASS/NUMBER.png, and data/train/.

Source: the table `digits.csv.gz` in the wheel `scikit-learn` 1.9.1 on PyPI (9.3 MB, BSD licence):
the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI, CC BY
4.0), 8 by 8 pixels of 17 greys, written by 13 people. The wheel is unpacked as data and never
installed. Needs pillow.
"""

import csv
import gzip
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from wheels import Wheel, main  # noqa: E402

SIDE = 8
WHITE = 16
WHEEL = Wheel(
    requirement="scikit-learn==1.9.1",
    megabytes=9.3,
    sha256="52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    members=("sklearn/datasets/data/digits.csv.gz", "scikit_learn-1.9.1.dist-info/licenses/"),
    folder=HERE / "data",
    # Any wheel of this version has the same table.
    pip=("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
)


def make_images(folder: Path) -> None:
    """Write the table's rows as images, every second one below train/, the others below digits/.

    A row is 64 greys from 0 to 16, then the class.
    """
    with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        for number, row in enumerate(csv.reader(file)):
            *greys, label = (int(float(value)) for value in row)
            path = folder / ("digits", "train")[number % 2] / str(label) / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = bytes(grey * 255 // WHITE for grey in greys)
            Image.frombytes("L", (SIDE, SIDE), pixels).save(path)


if __name__ == "__main__":
    sys.exit(main(WHEEL, make_images))
