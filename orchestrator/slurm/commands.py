"""Asking Slurm: its commands are run here, and nowhere else.

A command may be missing, may take long, and may fail after it has done what it was asked to do.
So what comes back is a value that says what it printed and what was wrong, never an exception, and
whoever asks decides what an answer that did not come means. Error messages decide nothing: they are
only passed on to people. Called by the modules of this folder.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

import msgspec

from gpuspool.spool.signals import children_can_be_awaited

# How long a question may take. A controller that is busy answers within seconds, and one that is
# down lets its commands fail by themselves after four to twenty.
ASK_S = 10.0

# Variables with these beginnings change what Slurm's commands do or print. Inside a job they also
# describe that job, and sbatch would hand them down to the one that it submits. Whoever calls
# sbatch says which of its own are meant after all.
_CHANGING = ("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_")

# These say which Slurm is meant, and who asks.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


class Answer(msgspec.Struct, frozen=True):
    """What a command of Slurm's printed, and what was wrong with it; "" if it succeeded.

    err: what a command that succeeded had to say on stderr.
    """

    out: str
    trouble: str = ""
    err: str = ""


def ask(
    words: Sequence[str], timeout_s: float = ASK_S, variables: Mapping[str, str] | None = None
) -> Answer:
    """Run a command of Slurm's with nothing on its stdin. It is killed after `timeout_s` seconds.

    words: the command and its arguments; the first is looked up on PATH. variables: are set for it
    beside those of `outside_any_job`.
    """
    name = words[0]
    try:
        # Where SIGCHLD is ignored, every command would seem to have succeeded.
        with children_can_be_awaited():
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                env={**outside_any_job(os.environ), **(variables or {})},
                check=False,
            )
    except subprocess.TimeoutExpired as late:
        out = (late.stdout or b"").decode(errors="replace")
        return Answer(out, f"{name} did not answer within {timeout_s:.0f} s")
    except FileNotFoundError:
        return Answer("", f"there is no {name} on PATH")
    except OSError as error:
        return Answer("", f"{name} cannot be started: {error.strerror}")
    out = done.stdout.decode(errors="replace")
    err = done.stderr.decode(errors="replace").strip()
    if done.returncode == 0:
        return Answer(out, err=err)
    return Answer(out, err or out.strip() or f"{name} ended with exit code {done.returncode}")


def configured_number(name: str) -> int | None:
    """A number in Slurm's own configuration; None where Slurm does not tell it."""
    config = ask(["scontrol", "show", "config"]).out
    match = re.search(rf"^{re.escape(name)}\s*=\s*(\d+)", config, re.MULTILINE)
    return None if match is None else int(match[1])


def outside_any_job(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what describes a job of Slurm's or changes what its commands do."""
    return {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not name.startswith(_CHANGING)
    }
