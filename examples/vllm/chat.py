"""Answer the requests of an OpenAI batch file with vLLM, on as many GPUs as each rank has.

Task: a line of the file, {"custom_id": …, "url": "/v1/chat/completions", "body": {"messages": …}}.
Result: {"status_code": 200 or 400, "body": a `chat.completion`, or an error, as the API gives it}.
Arguments: model, as vLLM takes it; engine, an object of more arguments for `vllm.LLM`, such as
{"max_model_len": 8192}.
"""

import os
import time

from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

import gpuspool

URL = "/v1/chat/completions"
# What a request may ask of the sampling, by the names that vLLM has too.
SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "max_tokens"),
    *("presence_penalty", "frequency_penalty"),
)
# What else may stand in a body, and changes no answer.
OTHER = ("messages", "model", "max_completion_tokens", "stream", "user", "metadata")


def sampling(task):
    """How to answer a request. Raises ValueError for one that asks for more than is done here."""
    body = {"messages": None, **task.payload["body"]}
    unknown = sorted(set(body) - {*SAMPLING, *OTHER})
    url = task.payload.get("url", URL)
    if url != URL:
        raise ValueError(f"only {URL} is answered here, not {url}")
    if unknown:
        raise ValueError(f"no request is answered here that has {unknown}")
    if not isinstance(body["messages"], list):
        raise ValueError("a request has a list of messages")
    asked = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    # vLLM stops after 16 tokens if it is not told otherwise; the API at the end of the answer.
    asked.setdefault("max_tokens", body.get("max_completion_tokens"))
    # Another try of this task, on whatever rank, draws the same random numbers.
    asked.setdefault("seed", task.seed)
    return SamplingParams(**asked)


def completion(task, answer, model):
    """The answer of vLLM as the API writes it."""
    prompt = len(answer.prompt_token_ids)
    written = sum(len(choice.token_ids) for choice in answer.outputs)
    choices = [
        {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text},
            "logprobs": None,
            "finish_reason": choice.finish_reason,
        }
        for choice in answer.outputs
    ]
    usage = {"prompt_tokens": prompt, "completion_tokens": written}
    body = {
        "id": f"chatcmpl-{task.index}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {**usage, "total_tokens": prompt + written},
    }
    return {"status_code": 200, "body": body}


def refusal(error):
    """What the API says to a request that is wrong."""
    said = {"message": str(error), "type": "invalid_request_error", "param": None, "code": None}
    return {"status_code": 400, "body": {"error": said}}


class Chat:
    # vLLM makes its own batches, and is the faster the more requests it has to choose from. A kill
    # loses what is in hand, so this is also how much work may have to be done twice.
    batch_size = 256

    def __init__(self, ctx):
        self.model = ctx.args["model"]
        # This rank's own GPUs; `--gpus-per-rank` says how many they are.
        gpus = os.environ["CUDA_VISIBLE_DEVICES"].count(",") + 1
        engine = {"tensor_parallel_size": gpus, **ctx.args.get("engine", {})}
        self.llm = LLM(model=self.model, **engine)

    def __call__(self, tasks, ctx):
        results, good, asked = {}, [], []
        for task in tasks:
            try:
                asked.append(sampling(task))
                good.append(task)
            except (VLLMClientError, ValueError, LookupError, TypeError) as error:
                # A result that says so. A failure would be tried once more in a fresh process,
                # which loads the model for it.
                results[task.index] = refusal(error)
        try:
            chats = [task.payload["body"]["messages"] for task in good]
            # There may be none left to ask.
            answers = self.llm.chat(chats, asked, use_tqdm=False) if good else []
        except (VLLMClientError, ValueError) as error:
            # vLLM takes none of them if it cannot take one, such as a prompt that is too long. This
            # call is split until that request is alone.
            if len(tasks) > 1:
                raise
            return [refusal(error)]
        except EngineDeadError as dead:
            # vLLM runs in processes of its own. Without them this one is of no use any more.
            raise gpuspool.Restart("vLLM's engine has died") from dead
        for task, answer in zip(good, answers, strict=True):
            results[task.index] = completion(task, answer, self.model)
        return [results[task.index] for task in tasks]
