"""A stand-in for vLLM, which not every machine can install: the part of it that an example calls.

It has the names, the arguments and the answers of vLLM 0.32, and no model: it repeats the last
message, a token for each word. Whether vLLM itself works it cannot show; the test that takes the
real one, where it is installed, does.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise VLLMClientError(f"temperature must be non-negative, got {self.temperature}.")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    def __init__(
        self, model: str, *, tensor_parallel_size: int = 1, max_model_len: int = 8
    ) -> None:
        self.longest, self.calls = max_model_len, 0
        print(f"{model} on {tensor_parallel_size} of {os.environ['CUDA_VISIBLE_DEVICES']}")

    def chat(self, messages, sampling_params, *, use_tqdm: bool = True) -> list[RequestOutput]:
        assert not use_tqdm
        if not messages:
            raise ValueError("there is nothing to answer")
        asked = [chat[-1]["content"].split() for chat in messages]
        if any(len(words) > self.longest for words in asked):
            raise VLLMClientError(f"maximum context length is {self.longest} tokens")
        self.calls += 1
        # Once, in a call that is not the first of its process.
        if self.calls > 1 and any("die" in words for words in asked) and not Path("died").exists():
            Path("died").touch()
            raise EngineDeadError
        return [
            RequestOutput(list(range(len(words))), list(answers(words, params)))
            for words, params in zip(asked, sampling_params, strict=True)
        ]


def answers(words, params):
    part = words[: params.max_tokens]
    reason = "stop" if len(part) == len(words) else "length"
    for index in range(params.n):
        yield CompletionOutput(index, " ".join(part), list(range(len(part))), reason)
