"""Contigs: a job for gpuspool that classifies contigs and embeds them, with Tiara's weights.

The method is that of Tiara 1.0.2 (https://github.com/ibe-uw/tiara, MIT), rewritten for today's
PyTorch. A contig of at least 3,000 bp is cut into whole fragments of 5,000 bp (a shorter one is
a single fragment). A fragment becomes a vector of k-mer counts, weighted by TF-IDF and scaled to
length 1. A network turns it into class probabilities, which are averaged over the contig's
fragments. The first stage (k = 6) tells the domains of life and organelles apart, the second
(k = 7) the kinds of organelle.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import linear

MODELS = Path(__file__).resolve().parent / "data" / "tiara-1.0.2" / "models"
# Tiara leaves out contigs that are shorter than this, in bp.
MIN_LENGTH = 3000
# Tiara classifies fragments of this length, in bp, and averages over those of a contig.
FRAGMENT = 5000
CUTOFF = 0.65
FIRST = ("organelle", "bacteria", "unknown", "archaea", "eukarya")
SECOND = ("plastid", "unknown", "mitochondrion")
# The networks only ever see this many fragments at once: with one shape, a fragment's result
# does not depend on what else is in the batch.
BLOCK = 64
# So far below zero that each k-mer with such a base gets a negative number.
MASKED = -(4**8)

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def read_contigs(fasta: str, offset: int, contigs: int) -> list[tuple[str, bytes]]:
    """Return (name, bases) of so many contigs of a FASTA file, from a header's byte offset on.

    The name is the header's first word. Raises ValueError when no header is at the offset or
    fewer contigs follow, OSError when the file cannot be read.
    """
    found: list[tuple[str, list[bytes]]] = []
    with open(fasta, "rb") as file:
        file.seek(offset)
        for line in file:
            if line.startswith(b">"):
                if len(found) == contigs:
                    break
                found.append((line[1:].split()[0].decode(), []))
            elif found:
                found[-1][1].append(line.strip())
            else:
                raise ValueError(f"{fasta}: no header at byte {offset}")
    if len(found) < contigs:
        raise ValueError(f"{fasta}: {len(found)} contigs from byte {offset} on, not {contigs}")
    return [(name, b"".join(lines)) for name, lines in found]


def cut(bases: bytes) -> Bytes:
    """Return a contig's fragments, [fragments, 5000] letters; a short one is filled with N."""
    count = max(len(bases) // FRAGMENT, 1)
    letters = np.full(count * FRAGMENT, ord("N"), np.uint8)
    part = np.frombuffer(bases[: letters.size], np.uint8)
    letters[: part.size] = part
    return letters.reshape(count, FRAGMENT)


def count_kmers(codes: torch.Tensor, k: int) -> torch.Tensor:
    """Return how often each k-mer occurs, [fragments, 4**k] float32, in the order AA.. to TT..

    codes: [fragments, 5000] int64, A C G T as 0 to 3 and any other letter as MASKED; k-mers
    with such a letter do not count.
    """
    rows, width = codes.shape[0], codes.shape[1] - k + 1
    kmers = codes[:, :width]
    for i in range(1, k):
        kmers = kmers * 4 + codes[:, i : i + width]
    # K-mers with a masked base are counted in one more column, which is then dropped.
    kmers = torch.where(kmers < 0, 4**k, kmers)
    columns = 4**k + 1
    kmers = kmers + torch.arange(rows, device=codes.device)[:, None] * columns
    counts = torch.bincount(kmers.flatten(), minlength=rows * columns)
    return counts.view(rows, columns)[:, :-1].float()


class Stage:
    """One of Tiara's two networks, with the TF-IDF weights of its k-mers.

    models: the folder of the wheel with nnet-models and tfidf-models; name: "first" or "second".
    Raises OSError when a file is missing.
    """

    def __init__(self, models: Path, name: str, k: int, device: str) -> None:
        self.k = k
        self.net: dict[str, torch.Tensor] = torch.load(
            models / "nnet-models" / f"{name}_nnet_kmer_{k}.pkl",
            map_location=device,
            weights_only=True,
        )
        tfidf = np.load(models / "tfidf-models" / f"k{k}-{name}-stage" / "model.npy")
        self.tfidf = torch.from_numpy(tfidf).to(device)
        self.codes = torch.full((256,), MASKED, device=device)
        # Lower case marks masked repeats, which Tiara does not count.
        self.codes[list(b"ACGT")] = torch.arange(4, device=device)

    def __call__(self, contigs: list[Bytes]) -> tuple[Floats, Floats]:
        """Return the contigs' hidden activations and class probabilities, means over fragments.

        contigs: for each, its fragments [fragments, 5000] as cut() gives them. Returns float32
        [contigs, units] and [contigs, classes]; units is 1024 in the first stage, 64 in the
        second.
        """
        letters = np.concatenate([np.empty((0, FRAGMENT), np.uint8), *contigs])
        starts = range(0, max(len(letters), 1), BLOCK)
        hidden, probs = zip(*(self.run(letters[i : i + BLOCK]) for i in starts), strict=True)
        sizes = np.array([len(contig) for contig in contigs], np.intp)
        return mean_by_contig(hidden, sizes), mean_by_contig(probs, sizes)

    @torch.inference_mode()
    def run(self, letters: Bytes) -> tuple[Floats, Floats]:
        """Return hidden activations and class probabilities of at most BLOCK fragments."""
        block = np.full((BLOCK, FRAGMENT), ord("N"), np.uint8)
        block[: len(letters)] = letters
        codes = self.codes[torch.from_numpy(block).to(self.tfidf.device).int()]
        x = count_kmers(codes, self.k) * self.tfidf
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        # A fragment in which no k-mer can be counted stays at zeros and has no say.
        countable = norm > 0
        x = x / norm.clamp_min(1e-12)
        x = linear(x, self.net["0.weight"], self.net["0.bias"]).relu()
        x = linear(x, self.net["3.weight"], self.net["3.bias"]).relu()
        probs = linear(x, self.net["6.weight"], self.net["6.bias"]).softmax(1)
        hidden, probs = (x * countable)[: len(letters)], (probs * countable)[: len(letters)]
        return hidden.cpu().numpy(), probs.cpu().numpy()


def mean_by_contig(blocks: tuple[Floats, ...], sizes: npt.NDArray[np.intp]) -> Floats:
    """Return the mean row of each contig, [contigs, columns]; sizes: its number of rows."""
    sums = np.add.reduceat(np.concatenate(blocks), np.cumsum(sizes) - sizes, axis=0)
    means: Floats = (sums / sizes[:, None]).astype(np.float32)
    return means


def domain(probs: Floats) -> str:
    """Return the first stage's class for mean probabilities in the order of FIRST."""
    best = int(probs.argmax())
    if probs[best] > CUTOFF:
        return FIRST[best]
    prokarya = probs[FIRST.index("bacteria")] + probs[FIRST.index("archaea")]
    return "prokarya" if prokarya > CUTOFF else "unknown"


def organelle(probs: Floats) -> str:
    """Return the second stage's class for mean probabilities in the order of SECOND."""
    best = int(probs.argmax())
    return SECOND[best] if probs[best] > CUTOFF else "unknown"


class Contigs:
    """Classify and embed the contigs of each task.

    payload: {"fasta": path, "offset": bytes, "contigs": how many}, as make_tasks.py writes it.
    Result: {"contigs": [[name, label], ...]}, in the file's order; labels are the authors':
    "archaea", "bacteria", "eukarya", "prokarya", "unknown", and for organelles, with the second
    stage, "organelle/plastid", "organelle/mitochondrion", "organelle/unknown". As in Tiara,
    contigs under 3,000 bp are left out. A fragment without any k-mer to count (all N or lower
    case) enters the means as zeros, so a contig of such fragments is "unknown".
    Output: OUT/<key>.npy, float32 [contigs in the result, 1024]: a contig's embedding is what
    the first network's second hidden layer (its last, 1,024 units) gives after the ReLU,
    averaged over the contig's fragments; no unit, never negative.
    Argument: models, the folder with nnet-models and tfidf-models (default: what fetch_data.py
    fetched). Raises OSError when a file is missing, ValueError when a payload does not fit its
    FASTA file.
    """

    batch_size = 4

    def __init__(self, ctx: Any) -> None:
        models = Path(ctx.args.get("models", MODELS))
        self.first = Stage(models, "first", 6, ctx.device)
        self.second = Stage(models, "second", 7, ctx.device)

    def __call__(self, tasks: list[Any], ctx: Any) -> list[dict[str, Any]]:
        """Return one result for each task and write its embeddings."""
        contigs: list[tuple[str, bytes]] = []
        ends = []
        for task in tasks:
            found = read_contigs(**task.payload)
            contigs += [(name, bases) for name, bases in found if len(bases) >= MIN_LENGTH]
            ends.append(len(contigs))
        labels, embeddings = self.classify([cut(bases) for _, bases in contigs])
        pairs = [[name, label] for (name, _), label in zip(contigs, labels, strict=True)]
        results = []
        for task, start, end in zip(tasks, [0, *ends[:-1]], ends, strict=True):
            np.save(ctx.output(task, ".npy"), embeddings[start:end])
            results.append({"contigs": pairs[start:end]})
        return results

    def classify(self, contigs: list[Bytes]) -> tuple[list[str], Floats]:
        """Return the labels of contigs cut into fragments, and embeddings [contigs, 1024]."""
        embeddings, probs = self.first(contigs)
        labels = [domain(row) for row in probs]
        organelles = [i for i, label in enumerate(labels) if label == "organelle"]
        if organelles:
            _, kinds = self.second([contigs[i] for i in organelles])
            for i, row in zip(organelles, kinds, strict=True):
                labels[i] = f"organelle/{organelle(row)}"
        return labels, embeddings
