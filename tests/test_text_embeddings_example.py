"""The example of text embeddings, with a tiny encoder that is made on the spot."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from example_runs import EXAMPLES, PYTHON, kill_and_go_on, needs, tiny_model
from helpers import Box

EXAMPLE = EXAMPLES / "text_embeddings"
# `make torture` runs these: what they import takes longer than what they test.
pytestmark = [pytest.mark.slow, needs("transformers")]

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
