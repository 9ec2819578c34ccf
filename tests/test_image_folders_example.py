"""The example of images in folders, one for each class: real digits and a network trained here."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from example_runs import EXAMPLES, PYTHON, kill_and_go_on, needs
from helpers import Box

EXAMPLE = EXAMPLES / "image_folders"
DIGITS = EXAMPLE / "data" / "digits"
RUN = ["run", f"{EXAMPLE}/predict.py:Digits", "--ranks", "1", "--arg"]
# `make torture` runs these: what they import takes longer than what they test.
pytestmark = [pytest.mark.slow, needs("PIL")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network, of images that are downloaded if they are not there yet."""
    done = subprocess.run([*PYTHON, EXAMPLE / "fetch.py"], capture_output=True, text=True)
    if done.returncode != 0 and "could not download" in done.stderr:
        pytest.skip(f"the images cannot be downloaded here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    folder = tmp_path_factory.mktemp("weights")
    # Several threads for so little work would wait for each other on a busy machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*PYTHON, EXAMPLE / "train.py"], cwd=folder, env=environment, check=True)
    return folder / "digits.pt"


def test_outputs_have_the_folders_of_the_images_after_a_kill_half_way(
    box: Box, weights: Path
) -> None:
    images = sorted(DIGITS.rglob("*.png"))
    assert len(images) == 899
    results = kill_and_go_on(
        box, [*RUN, f"weights={weights}", f"{DIGITS}/**/*.png"], "spool-Digits", 899
    )
    out = box / "spool-Digits" / "outputs"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.npy")) == [
        f"{path.relative_to(DIGITS)}.npy" for path in images
    ]
    assert np.load(out / f"{results[0]['key']}.npy").shape == (64,)
    told = "".join(json.dumps(result) + "\n" for result in results)
    last = box.run(EXAMPLE / "compare.py", program=PYTHON, stdin=told).out.splitlines()[-1]
    agree = sum(one["key"].partition("/")[0] == one["result"]["label"] for one in results)
    assert last == f"{agree} of 899 images are predicted as the class of their folder"
    # What chance would do is 90.
    assert agree > 800


def test_one_folder_after_the_other_keeps_the_class_in_the_key(box: Box, weights: Path) -> None:
    bad = box.write("digits/3/bad.png", "no image")
    (box / "digits" / "3" / "good.png").write_bytes(next(DIGITS.glob("3/*.png")).read_bytes())
    command = [*RUN, f"weights={weights}", "--key-root", "digits", "digits/3/*.png"]
    box.run(*command, code=3)
    states = {one["key"]: one["state"] for one in box.results("spool-Digits")}
    assert states == {"3/bad.png": "failed", "3/good.png": "complete"}
    (box / "digits" / "7").mkdir()
    bad.write_bytes(next(DIGITS.glob("3/*.png")).read_bytes())
    (box / "digits" / "7" / "new.png").write_bytes(next(DIGITS.glob("7/*.png")).read_bytes())
    box.run("retry", "spool-Digits")
    box.run(*command, "digits/7/*.png", "--add")
    labels = {one["key"]: one["result"]["label"] for one in box.results("spool-Digits")}
    assert labels == {"3/bad.png": "3", "3/good.png": "3", "7/new.png": "7"}


def test_a_result_that_is_lost_is_no_prediction(box: Box) -> None:
    told = {"key": "3/a.png", "state": "complete", "result": None, "error": {"message": "lost"}}
    done = box.run(EXAMPLE / "compare.py", program=PYTHON, stdin=json.dumps(told), code=1)
    assert done.out.splitlines()[-1].startswith("0 of 1 images")
