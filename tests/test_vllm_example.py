"""The recipe for vLLM: a batch file of the OpenAI API in, one out.

Most tests take a stand-in for vLLM (jobs/vllm_stand_in): they are about what the job makes of
requests and answers. The last one takes vLLM itself, where it is installed, and a tiny model.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from example_runs import EXAMPLES, PYTHON, kill_and_go_on, run_and_kill, tiny_model
from helpers import JOBS, Box, journal_lines, names

EXAMPLE = EXAMPLES / "vllm"
RUN: list[str | Path] = ["run", f"{EXAMPLE}/chat.py:Chat", "--key-field", "custom_id"]
RUN += ["--ranks", "1", "--tasks", "requests.jsonl", "--arg"]


@pytest.fixture
def stand_in(box: Box) -> Box:
    box.environment["PYTHONPATH"] = str(JOBS / "vllm_stand_in")
    return box


def request(name: str, text: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions"}
    return {**line, "body": {"model": "any", "messages": messages, **body}}


def write(box: Box, *requests: Any) -> None:
    box.write("requests.jsonl", "".join(json.dumps(one) + "\n" for one in requests))


def answer(box: Box, code: int = 0) -> dict[str, Any]:
    """The lines of the batch's output file by their ids."""
    told = box.run("results", "spool-Chat").out
    out = box.run(EXAMPLE / "to_batch.py", program=PYTHON, stdin=told, code=code).records()
    return {line["custom_id"]: line for line in out}


def choices(line: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (choice["message"]["content"], choice["finish_reason"])
        for choice in line["response"]["body"]["choices"]
    ]


def test_each_request_has_its_answer_in_the_form_of_the_api(stand_in: Box) -> None:
    write(
        stand_in,
        request("a", "one two three", max_tokens=2),
        request("b/c", "four five", n=2, temperature=0.5, stream=False),
        request("d", "six", max_completion_tokens=4, user="me", top_p=None),
    )
    stand_in.run(*RUN, "model=m")
    lines = answer(stand_in)
    assert list(lines) == ["a", "b/c", "d"]
    assert choices(lines["a"]) == [("one two", "length")]
    assert choices(lines["b/c"]) == [("four five", "stop")] * 2
    assert choices(lines["d"]) == [("six", "stop")]
    assert lines["a"]["error"] is None
    assert lines["a"]["response"]["status_code"] == 200
    body = lines["a"]["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_request_that_is_wrong_is_answered_so_and_the_others_as_ever(stand_in: Box) -> None:
    write(
        stand_in,
        request("good", "one"),
        request("tools", "two", tools=[]),
        request("long", "word " * 20),
        request("cold", "three", temperature=-1),
        {**request("embedding", "four"), "url": "/v1/embeddings"},
        {**request("empty", "five"), "body": {"model": "any"}},
        request("also good", "six"),
    )
    stand_in.run(*RUN, "model=m")
    lines = answer(stand_in)
    codes = {name: line["response"]["status_code"] for name, line in lines.items()}
    assert {name for name, code in codes.items() if code == 200} == {"good", "also good"}
    assert set(codes.values()) == {200, 400}
    said = {
        name: line["response"]["body"]["error"]["message"]
        for name, line in lines.items()
        if codes[name] == 400
    }
    assert "'tools'" in said["tools"]
    assert "maximum context length is 8" in said["long"]
    assert "non-negative" in said["cold"]
    # Nothing failed, so no second process had to load the model.
    assert names(stand_in / "spool-Chat" / "attempts") == ["rank-0000.a00.json"]


def test_a_wrong_request_alone_is_told_what_is_wrong(stand_in: Box) -> None:
    write(stand_in, request("tools", "two", tools=[]))
    stand_in.run(*RUN, "model=m")
    (line,) = answer(stand_in).values()
    assert "'tools'" in line["response"]["body"]["error"]["message"]


def test_a_wrong_address_is_told_as_that(stand_in: Box) -> None:
    write(stand_in, {**request("embedding", "four"), "url": "/v1/embeddings"})
    stand_in.run(*RUN, "model=m")
    (line,) = answer(stand_in).values()
    assert "not /v1/embeddings" in line["response"]["body"]["error"]["message"]


def test_a_result_that_is_lost_is_an_error_of_its_request(box: Box) -> None:
    error = {"kind": "unreadable", "message": "the journal line cannot be read"}
    told = {"index": 3, "key": "a", "state": "complete", "result": None, "error": error}
    done = box.run(EXAMPLE / "to_batch.py", program=PYTHON, stdin=json.dumps(told))
    (line,) = done.records()
    assert (line["response"], line["error"]["code"]) == (None, "unreadable")


def test_an_engine_that_dies_fails_no_request(stand_in: Box) -> None:
    write(stand_in, *(request(f"r{i}", "die") for i in range(600)))
    stand_in.run(*RUN, "model=m")
    assert {line["response"]["status_code"] for line in answer(stand_in).values()} == {200}
    assert (stand_in / "died").exists()
    assert len(names(stand_in / "spool-Chat" / "attempts")) == 2


def test_requests_that_are_not_finished_are_left_out_and_told(stand_in: Box) -> None:
    write(stand_in, *(request(f"r{i}", "hello") for i in range(1000)))
    done = run_and_kill(stand_in, [*RUN, "model=m"], "spool-Chat", 256)
    lines = answer(stand_in, code=0 if len(done) == 1000 else 3)
    assert len(lines) == len(done) == len(journal_lines(stand_in / "spool-Chat"))


def test_each_rank_has_as_many_gpus_as_it_is_told(stand_in: Box) -> None:
    write(stand_in, request("a", "one"))
    run = ["model=m", "--devices", "4,5,6,7", "--gpus-per-rank", "4", "--quiet"]
    stand_in.run(*RUN, *run, env={"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
    assert "m on 4 of 4,5,6,7" in stand_in.run("logs", "spool-Chat").out


def test_the_requests_of_the_example_are_a_batch(stand_in: Box) -> None:
    stand_in.write("requests.jsonl", (EXAMPLE / "requests.jsonl").read_text())
    stand_in.run(*RUN, "model=m", "--arg", 'engine={"max_model_len": 100}')
    codes = [line["response"]["status_code"] for line in answer(stand_in).values()]
    assert codes == [200, 200, 200, 200, 400]


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed; examples/vllm/README.md tells how to try it without a GPU",
)
def test_vllm_itself_answers_after_a_kill_half_way(box: Box) -> None:
    model = tiny_model("llama", box / "tiny")
    box.environment.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    write(box, *(request(f"r{i}", "hello", max_tokens=32) for i in range(400)))
    engine = 'engine={"max_model_len": 128, "enforce_eager": true}'
    run = [*RUN, f"model={model}", "--arg", engine]
    kill_and_go_on(box, run, "spool-Chat", 400)
    for line in answer(box).values():
        body = line["response"]["body"]
        assert line["response"]["status_code"] == 200
        assert 1 <= body["usage"]["completion_tokens"] <= 32
