"""The recipe for accelerate, with the real library: a tiny model in memory, and partly on disk."""

import json
from pathlib import Path

import pytest
from example_runs import EXAMPLES, kill_and_go_on, needs, tiny_model
from helpers import Box, assert_sound

EXAMPLE = EXAMPLES / "accelerate"
# `make torture` runs these: what they import takes longer than what they test.
pytestmark = [pytest.mark.slow, needs("accelerate", "transformers")]


@pytest.fixture
def command(box: Box) -> list[str | Path]:
    model = tiny_model("llama", box / "tiny")
    prompts = [{"id": f"p/{i}", "prompt": "The sea" + " and" * (i % 5)} for i in range(64)]
    box.write("prompts.jsonl", "".join(json.dumps(prompt) + "\n" for prompt in prompts))
    command = ["run", f"{EXAMPLE}/generate.py:Generate", "--tasks", "prompts.jsonl"]
    command += ["--key-field", "id", "--ranks", "1", "--arg", f"model={model}"]
    return [*command, "--arg", "new_tokens=12"]


def test_a_model_that_does_not_fit_into_memory_writes_what_it_writes_in_memory(
    box: Box, command: list[str | Path]
) -> None:
    """What is on disk is brought by accelerate's hooks, layer by layer."""
    plain = kill_and_go_on(box, [*command, "--spool", "plain"], "plain", 64)
    box.run(*command, "--spool", "disk", "--arg", 'max_memory={"cpu": "400KB"}')
    disk = assert_sound(box, "disk", 64)
    assert "the model is on cpu, disk" in box.run("logs", "disk").out
    assert "the model is on cpu\n" in box.run("logs", "plain").out
    assert [one["result"] for one in disk] == [one["result"] for one in plain]
    assert [one["key"] for one in plain] == [f"p/{i}" for i in range(64)]
    assert {one["result"]["tokens"] for one in plain} <= set(range(13))


def test_the_prompts_of_the_example_have_keys() -> None:
    lines = (EXAMPLE / "prompts.jsonl").read_text().splitlines()
    assert all({"id", "prompt"} == set(json.loads(line)) for line in lines)
