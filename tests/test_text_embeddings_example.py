"""The example of text embeddings, with a tiny encoder that is made on the spot."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from example_runs import EXAMPLES, PYTHON, kill_and_go_on, needs, tiny_model
from helpers import Box

EXAMPLE = EXAMPLES / "text_embeddings"
# `make torture` runs these with the model: what they import takes longer than what they test.
needs_transformers = needs("transformers")

# Each line alone, with another padding and another order than the job has.
ALONE = """
import json, sys
from pathlib import Path
import numpy as np, torch
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1]).eval()
for path in sorted(Path("texts").rglob("*.txt")):
    for line in path.read_text().splitlines():
        batch = tokenizer([line], truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            row = model(**batch).last_hidden_state[0].mean(0)
        print(json.dumps([str(path), (row / row.norm()).tolist()]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("bert", tmp_path_factory.mktemp("model") / "bert")


@pytest.mark.slow
@needs_transformers
def test_each_line_has_its_row_after_a_kill_half_way(box: Box, model: Path) -> None:
    box.run(EXAMPLE / "make_texts.py", program=PYTHON)
    files = sorted(box.home.glob("texts/*/*.txt"))
    assert len(files) > 30
    # As many as are embedded in a second or so.
    for path in files[8:]:
        path.unlink()
    del files[8:]
    # A file without a line has no row.
    files[0].write_text("")
    job = f"{EXAMPLE}/embed.py:Embed"
    command = ["run", job, "texts/**/*.txt", "--arg", f"model={model}", "--arg", "tokens=1000"]
    results = kill_and_go_on(box, [*command, "--ranks", "1"], "spool-Embed", len(files))
    expected: dict[str, list[list[float]]] = {str(files[0].relative_to(box.home)): []}
    said = box.python(ALONE.replace("sys.argv[1]", repr(str(model)))).out
    for path, row in map(json.loads, said.splitlines()):
        expected.setdefault(path, []).append(row)
    for result in results:
        rows = np.load(box / "spool-Embed" / "outputs" / f"{result['key']}.npy")
        alone = np.array(expected[f"texts/{result['key']}"], np.float32).reshape(-1, 32)
        assert rows.dtype == np.float32
        assert result["result"]["texts"] == len(rows)
        np.testing.assert_allclose(rows, alone, atol=1e-5)


@pytest.mark.slow
@needs_transformers
def test_the_nearest_line_to_a_line_is_itself(box: Box, model: Path) -> None:
    box.write("texts/a.txt", "a stone in the river\nthe moon\n")
    box.write("texts/b.txt", "seven wooden chairs\n")
    job = f"{EXAMPLE}/embed.py:Embed"
    box.run("run", job, "texts/*.txt", "--arg", f"model={model}", "--ranks", "1")
    search = f"import sys; sys.path.insert(0, {str(EXAMPLE)!r}); import search\n"
    search += f"search.MODEL = {str(model)!r}\n"
    search += "sys.argv[1:] = ['spool-Embed', 'texts', 'seven wooden chairs']\nsearch.main()\n"
    said = box.run("-c", search, program=(sys.executable,)).out.splitlines()
    assert said[0] == "1.00  b.txt: seven wooden chairs"
    assert len(said) == 3


# A job that knows "stone" from all other words, and a stand-in for the model of the same kind.
STONES = """
import numpy as np


def read_lines(path):
    return path.read_text().splitlines()


class Encoder:
    def __init__(self, *_):
        pass

    def tokens(self, texts):
        return texts

    def rows(self, texts):
        return np.array([[1.0, 0.0] if "stone" in text else [0.0, 1.0] for text in texts])


def embed(task, ctx):
    lines = read_lines(task.path)
    if "broken" in lines:
        raise ValueError("this file is broken")
    np.save(ctx.output(task, ".npy"), Encoder().rows(lines))
"""


def test_a_file_that_failed_is_not_searched_and_moves_no_other_line(box: Box) -> None:
    box.write("embed.py", STONES)
    box.write("texts/a.txt", "broken\nthe moon\n")
    box.write("texts/b.txt", "seven chairs\na stone\n")
    box.run("run", "embed.py:embed", "texts/*.txt", "--spool", "S", code=3)
    search = f"import sys; sys.path[:0] = ['.', {str(EXAMPLE)!r}]; import search\n"
    search += "search.SHOWN = 1\nsys.argv[1:] = ['S', 'texts', 'stone']\nsearch.main()\n"
    done = box.run("-c", search, program=(sys.executable,))
    assert done.out.splitlines() == ["1.00  b.txt: a stone"]
    assert "not searched: a.txt" in done.err
    box.write("texts/b.txt", "seven chairs\n")
    assert "b.txt has changed" in box.run("-c", search, program=(sys.executable,), code=1).err
