"""Options and arguments of the command line that several verbs share, and how words are read."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from gpuspool.orchestrator.cli import completion
from gpuspool.spool import placeholders
from gpuspool.spool.errors import UsageError

# The seconds that the units of durations stand for; a number alone is seconds.
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# Longer durations are refused: sums of such times must stay within what system calls take.
LONGEST_S = 3650 * UNITS["d"]


# The groups in which a verb with many options shows them.
JOB = "Job"
INPUTS = "Inputs"
FOLDERS = "Folders"
DEVICES = "Workers and devices"
FAILURES = "When tasks fail"
TIME = "Limits of time"
GOING_ON = "Going on with a run"
SLURM = "Slurm"
TELLING = "What is shown"
GROUPS = (JOB, INPUTS, FOLDERS, SLURM, GOING_ON, DEVICES, FAILURES, TIME, TELLING)


class Option(click.Option):
    """An option that the help shows in a group."""

    def __init__(self, *args: Any, group: str = TELLING, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


class PipeBroken(Exception):
    """An OSError with EPIPE, which click must not see: it would end the process without a word."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Verbs(click.Group):
    """All verbs. A pipe whose reader went away is an error like any other."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            raise PipeBroken(error) from error


class GroupedVerb(click.Command):
    """A verb whose help shows its options in groups, and its epilogue as it is written."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in GROUPS:
            rows = [row for param in self.get_params(ctx) if (row := _help_in(param, group, ctx))]
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows)

    def format_epilog(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\n{self.epilog}")


def _help_in(param: click.Parameter, group: str, ctx: click.Context) -> tuple[str, str] | None:
    """The option and its help, if it belongs to this group. click's own are among the last."""
    is_other = isinstance(param, click.Argument) or getattr(param, "group", TELLING) != group
    return None if is_other else param.get_help_record(ctx)


class CommandVerb(GroupedVerb):
    """A verb that keeps what follows `--` apart: it is a command, not more inputs.

    The words of the command are left in `ctx.meta["command"]`, an empty list if there are none.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["command"] = args[at + 1 :]
            args = args[:at]
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            # Options of a command are none of ours.
            refuse_without_dashes(args)
            raise


def refuse_without_dashes(words: Sequence[str]) -> None:
    """Raise UsageError where a command was given without `--`: a word has a placeholder."""
    for word in words:
        names = [piece.name for piece in placeholders.parse(word)]
        known = [name for name in names if name in placeholders.PLACEHOLDERS]
        if known:
            raise UsageError(
                f"{{{known[0]}}} belongs to a command. Put `--` before the command: "
                "gpuspool run INPUT... -- COMMAND ARG..."
            )


def duration(value: Any) -> float:
    """The type of options in seconds: 90, 90s, 15m, 2h or 1d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a duration; write 90, 90s, 15m, 2h or 1d")
    seconds = float(match[1]) * UNITS[match[2]]
    if seconds > LONGEST_S:
        raise click.BadParameter(f"{value!r} is longer than {LONGEST_S / UNITS['d']:.0f} days")
    return seconds


def pair(text: str) -> tuple[str, Any]:
    """KEY=VALUE of --arg, with the value as JSON if it parses, else as the string that it is.

    NaN and Infinity, which Python's parser would take, are not JSON, so they stay strings. Raises
    UsageError.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--arg {text}: write KEY=VALUE.")
    try:
        return key, json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return key, value


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def option(*names: str, verb: str = "", **settings: Any) -> Callable[[Any], Any]:
    """An option of click with its environment variable: --max-crashes is GPUSPOOL_MAX_CRASHES.

    A switch has one variable for both of its names: --keep-going/--no-keep-going is
    GPUSPOOL_KEEP_GOING. verb: where an option is something else with another verb, the one that has
    it so; its variable is GPUSPOOL_VERB_NAME.
    """
    long = next(name for name in names if name.startswith("--"))
    long = long.partition("/")[0].lstrip("-")
    name = f"{verb}-{long}" if verb else long
    variable = "GPUSPOOL_" + name.replace("-", "_").upper()
    return click.option(*names, cls=Option, envvar=variable, show_envvar=True, **settings)


def all_of(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One decorator for several, so that the help lists the options in the order given here."""

    def decorate(function: Any) -> Any:
        for one in reversed(decorators):
            function = one(function)
        return function

    return decorate


spool_argument = click.argument(
    "spool", metavar="[SPOOL]", required=False, shell_complete=completion.spools
)
as_json = option("--json", "as_json", is_flag=True, help="Print JSON.")

# `main` looks for this option and its variable itself, before click parses anything, because an
# error may come before that; it stands here so that click knows it and the help shows it.
debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    envvar="GPUSPOOL_DEBUG",
    help="Show tracebacks of gpuspool's own errors.",
)

# Of all verbs that write to a spool.
trusting = option(
    "--trust-owner",
    group=FOLDERS,
    multiple=True,
    metavar="NAME",
    help="Accept a spool, or parts of it, that this user owns. Can be repeated.",
)

# How inputs are named.
naming_inputs = all_of(
    option(
        "--files-from",
        group=INPUTS,
        shell_complete=completion.files,
        metavar="FILE|-",
        help="Input paths, one a line.",
    ),
    option(
        "-0",
        "--null",
        "null",
        group=INPUTS,
        is_flag=True,
        help="The paths of --files-from end with zero bytes, as find -print0 writes them.",
    ),
    option(
        "--lines",
        group=INPUTS,
        shell_complete=completion.files,
        metavar="FILE|-",
        help="One task for each line; the payload is the line.",
    ),
    option(
        "--tasks",
        group=INPUTS,
        shell_complete=completion.files,
        metavar="FILE|-",
        help='JSON lines, or one JSON array: any value, or {"payload": …, "key": …, "cost": …}. A '
        "cost says how much work a task is, in any unit: it balances the ranks.",
    ),
    option(
        "--csv",
        group=INPUTS,
        shell_complete=completion.files,
        metavar="FILE|-",
        help="One task for each row of a table with a header; tabs separate in FILE.tsv.",
    ),
    option(
        "--key-field",
        group=INPUTS,
        metavar="NAME",
        help="The column of --csv, or the field of each object of --tasks, that holds the key.",
    ),
    option(
        "--key-root",
        group=INPUTS,
        shell_complete=completion.folders,
        metavar="DIR",
        help="The folder that the keys of input files are relative to. Default: the run's own, "
        "else the lowest that holds all.",
    ),
)

# What `run` and `submit` are asked for.
asking = all_of(
    click.argument(
        "job_and_inputs", nargs=-1, metavar="JOB [INPUT]...", shell_complete=completion.files
    ),
    option(
        "--spool",
        group=FOLDERS,
        metavar="DIR",
        shell_complete=completion.spools,
        help="The spool directory. Default ./spool-<name of the job or script>.",
    ),
    option(
        "--out",
        group=FOLDERS,
        metavar="DIR",
        shell_complete=completion.folders,
        help="Where outputs go. Default SPOOL/outputs.",
    ),
    option(
        "--overwrite",
        group=FOLDERS,
        is_flag=True,
        help="Move what is in --out aside instead of refusing.",
    ),
    naming_inputs,
    option(
        "--arg",
        "args",
        group=JOB,
        multiple=True,
        metavar="KEY=VALUE",
        help="ctx.args[KEY]; JSON if it parses.",
    ),
    option("--seed", group=JOB, type=int, metavar="N", help="Changes every task.seed. Default 0."),
    option(
        "--add",
        group=GOING_ON,
        is_flag=True,
        help="Make what is new among the inputs tasks of the run.",
    ),
    option(
        "--fresh",
        group=GOING_ON,
        is_flag=True,
        help="Start anew; an existing spool is renamed, never deleted.",
    ),
    option(
        "--capture",
        group=JOB,
        is_flag=True,
        help="What COMMAND prints on stdout is the task's result.",
    ),
    option("--dry-run", is_flag=True, help="Show what would be done."),
)

# Options that `join` has too.
_ranks = option(
    "--ranks",
    group=DEVICES,
    type=int,
    metavar="N",
    help="Number of workers. Default: one per device; on the CPU one.",
)
_devices = option(
    "--devices",
    metavar="LIST",
    group=DEVICES,
    help="Devices: 0,1 or GPU-… or MIG-… tokens, or cpu. Default: all that are visible.",
)
_time_limit = option(
    "--time-limit",
    "time_limit_s",
    group=TIME,
    type=duration,
    metavar="D",
    help="Drain after this long, e.g. 55m; exit code 75. Default: in a Slurm job shortly before it "
    "ends, else never.",
)
_leave_when_idle = option(
    "--leave-when-idle",
    "leave_when_idle_s",
    group=TIME,
    type=duration,
    metavar="D",
    help="End, with exit code 75, after having had nothing to do for this long.",
)
_grace = option(
    "--grace",
    "grace_s",
    group=TIME,
    type=duration,
    metavar="D",
    help="How long a drain waits for tasks in hand. Default 25s, and in a Slurm job less than its "
    "KillWait.",
)
_quiet = option("-q", "--quiet", is_flag=True, help="Show no progress on stderr.")
_keep_done = option(
    "--keep-done",
    group=GOING_ON,
    is_flag=True,
    help="The job changed: finished tasks stay, the rest use the new code.",
)
requeueing = option(
    "--requeue",
    group=TIME,
    type=int,
    default=0,
    metavar="N",
    help="In a Slurm job: if tasks are left when its time is up, have it started again, at most "
    "N times.",
)

# What a run is made with, and what each later start may say for itself.
_of_workers = all_of(
    _ranks,
    _devices,
    option(
        "--ranks-per-gpu",
        group=DEVICES,
        type=int,
        metavar="N",
        help="Put this many ranks on each device. Default 1.",
    ),
    option(
        "--gpus-per-rank",
        group=DEVICES,
        type=int,
        metavar="N",
        help="Give each rank this many devices. Default 1.",
    ),
    option(
        "--retries",
        group=FAILURES,
        type=int,
        metavar="N",
        help="Try a task that raised this many more times. Default 0.",
    ),
    option(
        "--max-restarts",
        group=FAILURES,
        type=int,
        metavar="N",
        help="Give up a rank after this many failed starts in a row. Default 3.",
    ),
    option(
        "--max-crashes",
        group=FAILURES,
        type=int,
        metavar="N",
        help="Fail a task after this many crashes with it alone in hand. Default 2.",
    ),
    option(
        "--max-failed",
        group=FAILURES,
        metavar="N|P%",
        help="Stop early once this many tasks have failed; exit code 4.",
    ),
    option(
        "--keep-going/--no-keep-going",
        "keep_going",
        group=FAILURES,
        default=None,
        help="Fail each task at its first failure, without a second opinion, and never end early.",
    ),
    option(
        "--task-timeout",
        "task_timeout_s",
        group=TIME,
        type=duration,
        metavar="D",
        help="Fail a task that takes longer as timeout.",
    ),
    option(
        "--stall-timeout",
        "stall_timeout_s",
        group=TIME,
        type=duration,
        metavar="D",
        help="End a worker that makes no progress for this long.",
    ),
    option(
        "--on-parent-exit",
        group=GOING_ON,
        type=click.Choice(["finish", "stop"]),
        help="What workers do when the process that started them is gone. Default finish.",
    ),
    option(
        "--poll",
        "poll_s",
        group=TIME,
        type=duration,
        metavar="D",
        help="Look this often instead of using inotify.",
    ),
    option(
        "--lease",
        "lease_s",
        group=TIME,
        type=duration,
        metavar="D",
        help="The silence that proves a worker on another host dead. Default 120s.",
    ),
    _grace,
)

# What `run`, `resume`, `retry` and `redo` have in common.
running = all_of(
    _of_workers,
    _time_limit,
    _leave_when_idle,
    option(
        "--out-moved-to",
        group=FOLDERS,
        shell_complete=completion.folders,
        metavar="DIR",
        help="The output folder was moved to DIR: recorded in the spool.",
    ),
    _quiet,
    _keep_done,
    trusting,
    as_json,
    debug,
)

# What `submit` has in common with `run`.
planning = all_of(_of_workers, _leave_when_idle, _keep_done, trusting, as_json, debug)

# What `join` may say.
joining = all_of(
    _ranks,
    _devices,
    _time_limit,
    _leave_when_idle,
    _grace,
    requeueing,
    _quiet,
    trusting,
    as_json,
    debug,
)
