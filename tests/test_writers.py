"""Outputs by writers that people use: they choose by the suffix, add one, or make folders."""

import wave

import numpy as np
import torch
from helpers import Box

# Writes the six outputs of each task. np.save appends .npy to any other suffix, and wave opens its
# file by name, as PIL's save does.
JOB = """
import shutil, wave
import numpy as np
import torch

def write(task, ctx):
    values = np.arange(task.index + 1, dtype=np.float32)
    np.save(ctx.output(task, ".npy"), values)
    np.savez(ctx.output(task, "_all.npz"), values=values)
    torch.save({"values": torch.from_numpy(values)}, ctx.output(task, ".pt"))
    with wave.open(str(ctx.output(task, ".wav")), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(2 * (task.index + 1)))
    folder = ctx.output(task, ".model")
    folder.mkdir()
    np.save(folder / "weights.npy", values)
    archive = ctx.output(task, ".tar.gz")
    shutil.move(shutil.make_archive(str(archive).removesuffix(".tar.gz"), "gztar", folder), archive)
    mean = torch.from_numpy(values).mean()
    return {"sum": values.sum(), "mean": mean, "values": values, "nan": float("nan")}
"""

SUFFIXES = [".npy", "_all.npz", ".pt", ".wav", ".model", ".tar.gz"]


def test_each_writer_finds_the_suffix_it_chooses_by_and_every_output_is_whole(box: Box) -> None:
    box.write("job.py", JOB)
    box.run("run", "job.py:write", "--lines", box.lines(3), "--spool", "s", code=0)
    out = box / "s" / "outputs"
    for result in box.results("s"):
        index = result["index"]
        key = result["key"]
        values = np.arange(index + 1, dtype=np.float32)
        assert result["outputs"] == [f"{key}{suffix}" for suffix in SUFFIXES]
        assert result["result"] == {
            "sum": values.sum(),
            "mean": values.mean(),
            "values": values.tolist(),
            "nan": None,
        }
        assert np.load(out / f"{key}.npy").tolist() == values.tolist()
        with np.load(out / f"{key}_all.npz") as archive:
            assert archive["values"].tolist() == values.tolist()
        loaded = torch.load(out / f"{key}.pt", weights_only=True)
        assert loaded["values"].tolist() == values.tolist()
        with wave.open(str(out / f"{key}.wav")) as sound:
            assert sound.getnframes() == index + 1
        assert np.load(out / f"{key}.model" / "weights.npy").tolist() == values.tolist()
        assert (out / f"{key}.tar.gz").stat().st_size > 0
    assert not list(out.rglob(".gpuspool-*")), "nothing unfinished is left"
