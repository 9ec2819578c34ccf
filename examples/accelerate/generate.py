"""Continue texts with a model too large for one GPU: accelerate spreads it over a rank's GPUs.

Task: {"prompt": text}. Result: {"text": what the model wrote, "tokens": how many tokens}.
Arguments: model, a folder or a name as transformers takes it; new_tokens, at most so many (default
64); max_memory, an object as accelerate takes it, such as {"0": "70GiB", "cpu": "200GiB"}.
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Generate:
    # A batch that does not fit into memory is run in parts, and the batch size follows.
    batch_size = 16

    def __init__(self, ctx):
        model, limits = ctx.args["model"], ctx.args.get("max_memory")
        # Keys of JSON are texts, and accelerate knows GPUs by numbers. They count within what this
        # rank sees: 0 is the first GPU of each rank.
        if limits:
            limits = {int(name) if name.isdigit() else name: size for name, size in limits.items()}
        self.new_tokens = int(ctx.args.get("new_tokens", 64))
        # What is written is to follow the last token, so padding goes in front.
        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        # Layer by layer onto the GPUs of this rank, then into the host's memory, then left on disk.
        self.model = AutoModelForCausalLM.from_pretrained(
            model, device_map="auto", dtype="auto", max_memory=limits
        ).eval()
        # What is on one device has no map.
        places = getattr(self.model, "hf_device_map", {"": self.model.device}).values()
        print(f"the model is on {', '.join(sorted(set(map(str, places))))}", flush=True)

    @torch.inference_mode()
    def __call__(self, tasks, ctx):
        prompts = [task.payload["prompt"] for task in tasks]
        batch = self.tokenizer(prompts, padding=True, return_tensors="pt")
        # Its first layers are where the tokens have to be.
        batch = batch.to(self.model.device)
        written = self.model.generate(
            **batch,
            max_new_tokens=self.new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )[:, batch["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        counts = (written != self.tokenizer.pad_token_id).sum(1).tolist()
        return [{"text": text, "tokens": count} for text, count in zip(texts, counts, strict=True)]
