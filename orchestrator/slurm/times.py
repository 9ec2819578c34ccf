"""Times as Slurm writes them: those that sbatch takes, and those that squeue tells.

The functions are pure. `script` writes a time limit with them, and `limits` reads how long a job
may yet last.
"""

from __future__ import annotations

import math
import re

# The units of durations that Slurm does not know, as gpuspool's own options have them.
_WITH_UNIT = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def slurm_time(text: str) -> str:
    """A time limit as sbatch takes it: 4h becomes 4:00:00, and all else stays as it is.

    Slurm takes a number alone for minutes.
    """
    match = _WITH_UNIT.fullmatch(text)
    if match is None:
        return text
    minutes, seconds = divmod(round(float(match[1]) * _UNITS_S[match[2]]), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def seconds_of(time: str) -> float | None:
    """The seconds of a time limit as sbatch takes it; None for none, and for what is no time.

    These are M, M:S, H:M:S, D-H, D-H:M and D-H:M:S.
    """
    days, dash, rest = time.rpartition("-")
    numbers = rest.split(":")
    if not all(number.isascii() and number.isdigit() for number in [*numbers, days or "0"]):
        return None
    if len(numbers) > 3 or (dash and not days):
        return None
    values = [int(number) for number in numbers]
    # Behind days the first number is that of hours. Without them it is minutes, unless there are
    # three.
    first = 1 if dash or len(values) == 3 else 2
    units_s = (86400, 3600, 60, 1)[first:]
    seconds = sum(value * unit for value, unit in zip(values, units_s, strict=False))
    return float(seconds + int(days or 0) * 86400)


def seconds_left(text: str) -> float | None:
    """The time that squeue tells, as M:S, H:M:S, D-H:M:S or D-H.

    Infinity for UNLIMITED; None for all that is no time, such as NOT_SET and INVALID.
    """
    if text == "UNLIMITED":
        return math.inf
    # A number alone, which sbatch would take for minutes, is nothing that squeue writes.
    if text.isdigit():
        return None
    return seconds_of(text)
