#!/usr/bin/env python3
"""Fetch the weights, the contigs and the expected labels of Tiara 1.0.2 into data/.

Source: the wheel `tiara` 1.0.2 on PyPI (102.7 MB, MIT licence). It is unpacked as data and
never installed, since its requirements pin PyTorch 1.7. 79 MB of it are kept.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from wheels import Wheel, main  # noqa: E402

TIARA = HERE / "data" / "tiara-1.0.2"
# Smallest file first, so that the first contigs already pass through both networks.
SETS = ("plast", "mitochondria", "archaea", "bacteria", "eukarya")
WHEEL = Wheel(
    requirement="tiara==1.0.2",
    megabytes=102.7,
    sha256="27ee174b6f2a80a56619ead44a0525e5e69852097b75983a1eb89523023fc760",
    members=(
        "tiara/models/nnet-models/first_nnet_kmer_6.pkl",
        "tiara/models/nnet-models/second_nnet_kmer_7.pkl",
        "tiara/models/tfidf-models/k6-first-stage/model.npy",
        "tiara/models/tfidf-models/k7-second-stage/model.npy",
        *(f"tiara/test/test_data/{name}_fr.fasta" for name in SETS),
        *(f"tiara/test/test_data/{name}_out.txt" for name in SETS),
        "tiara-1.0.2.dist-info/LICENSE",
    ),
    folder=TIARA,
)

if __name__ == "__main__":
    sys.exit(main(WHEEL))
