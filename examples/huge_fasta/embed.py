"""Embed: a job that turns records of a FASTA file into rows of numbers whose bits never vary.

The network is small and untrained (random weights from a fixed seed), since this example is about
how it is run. A record is cut into windows of 128 residues. Windows go through the network in
blocks of one fixed shape, filled up with padding, on one thread. So the same kernels do the same
sums for a window, whatever stands beside it in the block. A record's windows are then added up in
their own order, in float64. So a record's row is the same, bit for bit, in whatever range, on
whatever rank and however often it is computed, on one kind of device with one version of PyTorch.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fasta import Record, read_range
from torch.nn.functional import conv1d

SEED = 20240229
# A record is cut into windows of so many residues.
WINDOW = 128
# The network always sees so many windows at once. They are few, so that even a record alone is
# quick on a CPU. A GPU and a real network need some hundred.
BLOCK = 8
# The shape of the network: values for each letter, width of the convolution, values in a row.
LETTER = 16
KERNEL = 7
WIDTH = 128
# Codes of bytes that are no letters: padding, the symbols `*` `-` `.`, and everything else.
PAD = 0
SYMBOL = 27
REFUSED = 255

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def make_codes() -> Bytes:
    """Return the code of each byte, [256].

    Letters have the codes 1 to 26 in either case, `*` `-` `.` are SYMBOL, all others REFUSED.
    """
    codes = np.full(256, REFUSED, np.uint8)
    codes[list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")] = np.arange(1, 27)
    codes[list(b"abcdefghijklmnopqrstuvwxyz")] = np.arange(1, 27)
    codes[list(b"*-.")] = SYMBOL
    return codes


CODES = make_codes()


def encode(sequence: bytes) -> Bytes:
    """Return the codes of a sequence, [residues]. Raises ValueError for a byte that is none."""
    codes = CODES[np.frombuffer(sequence, np.uint8)]
    if codes.size and codes.max() == REFUSED:
        place = int(codes.argmax())
        raise ValueError(
            f"residue {place} is {sequence[place : place + 1]!r}; letters and * - . are allowed"
        )
    return codes


def cut(sequences: Iterable[Bytes]) -> Iterator[tuple[int, Bytes]]:
    """Yield (place of the sequence, codes of a window) for all windows in order.

    The last window of a sequence may be short.
    """
    for place, codes in enumerate(sequences):
        for start in range(0, len(codes), WINDOW):
            yield place, codes[start : start + WINDOW]


class Network:
    """A convolution over embedded residues, with its ReLU summed over each window.

    device: "cpu" or "cuda:0".
    """

    def __init__(self, device: str) -> None:
        # A CPU rank gets its share of the cores, so without this the number of threads would
        # depend on the world size.
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        generator = torch.Generator().manual_seed(SEED)
        self.device = device
        self.letters = torch.randn(SYMBOL + 1, LETTER, generator=generator).to(device)
        self.letters[PAD] = 0
        self.kernels = (
            torch.randn(WIDTH, LETTER, KERNEL, generator=generator) / (LETTER * KERNEL) ** 0.5
        ).to(device)

    @torch.inference_mode()
    def block(self, codes: Bytes) -> Floats:
        """Return the sums over each window of a block: [BLOCK, WINDOW] codes to [BLOCK, WIDTH]."""
        letters = torch.from_numpy(codes).to(self.device).long()
        x = conv1d(self.letters[letters].transpose(1, 2), self.kernels, padding=KERNEL // 2).relu()
        sums: Floats = (x * (letters != PAD)[:, None]).sum(2).cpu().numpy()
        return sums

    def rows(self, sequences: list[Bytes]) -> Floats:
        """Return the rows of encoded sequences, [sequences, WIDTH].

        A row is the mean over the residues; without any, it is zeros.
        """
        sums = np.zeros((len(sequences), WIDTH))
        windows = cut(sequences)
        while part := list(islice(windows, BLOCK)):
            codes = np.full((BLOCK, WINDOW), PAD, np.uint8)
            for row, (_, window) in enumerate(part):
                codes[row, : len(window)] = window
            for (place, _), row_sums in zip(part, self.block(codes), strict=False):
                sums[place] += row_sums
        residues = np.array([len(codes) for codes in sequences], np.float64)
        return (sums / np.maximum(residues, 1)[:, None]).astype(np.float32)


class Embed:
    """Embed the records of each task.

    payload: as index.py writes it. Result: {"records": how many, "residues": how many}. Output:
    OUT/<key>.npz with `rows`, float32 [records, 128], and `ids`, uint8 [bytes]: the ids as text, a
    line feed after each. Both are in the file's order and published as one file, so there are never
    rows without their ids. Raises FastaError if the file is not the one that was indexed, and
    ValueError, which names the record, for a byte that is no residue.
    """

    def __init__(self, ctx: Any) -> None:
        self.network = Network(ctx.device)

    def __call__(self, task: Any, ctx: Any) -> dict[str, int]:
        records = read_range(**task.payload)
        first = task.payload["first"]
        rows = self.network.rows(
            [encode_record(first + i, record) for i, record in enumerate(records)]
        )
        ids = b"".join(record.id + b"\n" for record in records)
        np.savez(ctx.output(task, ".npz"), rows=rows, ids=np.frombuffer(ids, np.uint8))
        return {"records": len(records), "residues": sum(record.residues for record in records)}


def encode_record(number: int, record: Record) -> Bytes:
    """Return encode() of a record; the ValueError names its number in the file and its id."""
    try:
        return encode(record.sequence)
    except ValueError as error:
        raise ValueError(f"record {number} ({record.id!r}): {error}") from None
