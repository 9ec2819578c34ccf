"""Sentence embeddings of text files with a transformer: one text a line in, one row a line out.

Input: a text file; each line is a text. Output: OUT/<key>.npy, float32 [lines, width]; row i
belongs to line i and has length 1, so the product of two rows is the cosine of their angle.
Result: {"texts": lines, "tokens": tokens}.
Arguments: model, a folder with a BERT-like encoder and its tokenizer as `transformers` saves them;
tokens, how many tokens go through the model at once, padding included (default 8,192).
"""

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

# all-MiniLM-L6-v2 was trained with texts of up to so many tokens; what is longer is cut.
LONGEST = 256


def read_lines(path):
    """The lines of a file. A newline at its end has no empty line behind it."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


class Encoder:
    """The model and its tokenizer, from a folder: nothing is looked for on the network."""

    def __init__(self, model, device="cpu"):
        self.tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        self.model = AutoModel.from_pretrained(model, local_files_only=True).to(device).eval()

    def tokens(self, texts):
        """The numbers of the tokens of each text."""
        if not texts:
            return []
        return self.tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]

    @torch.inference_mode()
    def rows(self, lines):
        """Means of the last layer over the tokens of each line, of length 1: [lines, width]."""
        batch = self.tokenizer.pad({"input_ids": lines}, return_tensors="pt").to(self.model.device)
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean).float().cpu().numpy()


class Embed:
    def __init__(self, ctx):
        self.encoder = Encoder(ctx.args["model"], ctx.device)
        self.most = int(ctx.args.get("tokens", 8192))

    def load(self, task):
        """Runs in threads while the model is busy with the files before."""
        return self.encoder.tokens(read_lines(task.path))

    def __call__(self, task, ctx):
        lines = task.loaded
        rows = np.empty((len(lines), self.encoder.model.config.hidden_size), np.float32)
        for part in self.parts(lines):
            rows[part] = self.encoder.rows([lines[i] for i in part])
        # np.save adds .npy to a path without it, so the suffix is said here.
        np.save(ctx.output(task, ".npy"), rows)
        return {"texts": len(lines), "tokens": sum(map(len, lines))}

    def parts(self, lines):
        """Which lines go through the model together: alike in length, so that little is padding."""
        part = []
        for i in sorted(range(len(lines)), key=lambda i: len(lines[i])):
            if part and (len(part) + 1) * len(lines[i]) > self.most:
                yield part
                part = []
            part.append(i)
        if part:
            yield part
