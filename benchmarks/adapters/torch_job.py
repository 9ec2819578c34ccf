"""A trivial job that imports torch, as real ones do."""

import torch


def noop(_task, _ctx):
    return torch.__version__
