"""The verbs of the command line, one function each.

A verb imports what it calls when it is called, so that `gpuspool status` on a login node starts
fast and loads neither torch nor rich nor watchdog.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gpuspool.orchestrator.cli import completion
from gpuspool.orchestrator.cli.options import (
    GOING_ON,
    SLURM,
    CommandVerb,
    GroupedVerb,
    Verbs,
    as_json,
    asking,
    debug,
    duration,
    joining,
    naming_inputs,
    option,
    pair,
    planning,
    refuse_without_dashes,
    requeueing,
    running,
    spool_argument,
    trusting,
)
from gpuspool.orchestrator.cli.streams import RunEnded
from gpuspool.orchestrator.text.printable import one_line, plain_json, printable
from gpuspool.orchestrator.text.progress import say, write_message
from gpuspool.orchestrator.text.words import count_of, short_path, to_type
from gpuspool.spool import __version__
from gpuspool.spool.errors import (
    EXIT_COMPLETE,
    EXIT_NOT_FINISHED,
    EXIT_SOME_FAILED,
    GpuspoolError,
    SpoolError,
    UsageError,
)
from gpuspool.spool.states import RunState

if TYPE_CHECKING:
    from gpuspool.orchestrator.api.reading import Doubtful
    from gpuspool.orchestrator.api.report import Report
    from gpuspool.orchestrator.api.submitting import Submission
    from gpuspool.orchestrator.supervise.hosts.together import Diagnosis

# With what `wait` ends; with EXIT_NOT_FINISHED for all other states.
EXIT_OF_STATE = {RunState.COMPLETE: EXIT_COMPLETE, RunState.FAILED: EXIT_SOME_FAILED}


# The help's last words, as they stand here.
EXIT_CODES = """\
Exit codes: 0 every task is complete, 1 an error of the file system, 2 refused, 3 finished and some
tasks failed, 4 not finished or stopped by order (`gpuspool drain`, --max-failed), 5 the spool is
damaged, 6 others are at work that must not be, 75 drained (Ctrl-C, SIGTERM, --time-limit), 130
killed by a second Ctrl-C. After 1, 4, 75 and 130, and after any kill, the same command goes on.
"""
RUN_EPILOGUE = f"""\
In the words of COMMAND these are replaced:
  {{input}}     the file, the line, or the payload as JSON
  {{output}}    a path to write to; what follows it in its word is the suffix
  {{key}} {{index}} {{rank}} {{device}}
  {{scratch}}   a folder that stays until the task completes

Examples:
  gpuspool run embed.py:Embed 'images/**/*.jpg' --arg weights=model.pt
  gpuspool run embed.py:Embed --lines urls.txt --ranks 4 --time-limit 55m
  gpuspool run 'images/*.jpg' -- python predict.py {{input}} --out {{output}}.json
  gpuspool run embed.py:Embed 'images/**/*.jpg' --dry-run

{EXIT_CODES}"""


SUBMIT_EPILOGUE = """\
Each job drains before its time is up, and with --requeue N has itself started again then. The
script is in SPOOL/slurm, and so is what the jobs print.

Examples:
  gpuspool submit embed.py:Embed 'images/**/*.jpg' --elements 16 --time 4h --requeue 20
  gpuspool submit embed.py:Embed --lines urls.txt --elements 4 --whole-nodes --partition gpu
  gpuspool submit 'images/*.jpg' --elements 8 --gres gpu:a100:2 --dry-run -- ./predict {input}
"""


RESULTS_EPILOGUE = """\
Examples:
  gpuspool results > results.jsonl
  gpuspool results -o results.parquet --flatten
  gpuspool results --format csv --state failed | column -ts,
  gpuspool results --stack embeddings.npy

Without -o the table goes to standard output. Parquet and .arrow need pyarrow:
  pip install 'gpuspool[arrow]'
"""

# As `export.table.Format` and `report.results.ResultState` have them; they are not imported for
# every verb.
FORMATS = ("jsonl", "csv", "parquet")
STATES = ("complete", "failed", "missing")


@click.group(
    cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="gpuspool")
def cli() -> None:
    """Run one Python class over many inputs on every GPU. All state is plain files in one spool
    directory.
    """


@cli.command(cls=CommandVerb, epilog=RUN_EPILOGUE)
@asking
@requeueing
@running
@click.pass_context
def run(
    ctx: click.Context,
    /,
    job_and_inputs: tuple[str, ...],
    args: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Run JOB (file.py:Name or module:Name) over the INPUTs (paths or globs in quotes), or a
    command: gpuspool run INPUT... -- COMMAND ARG...

    The same command again goes on where it stopped. Durations D are 90, 90s, 15m, 2h or 1d.
    """
    from gpuspool.orchestrator.api import runs

    job, inputs, command = _job_of(ctx, job_and_inputs)
    report = runs.run(job, inputs, command=command, args=dict(map(pair, args)), **given)
    _end(report, as_json, is_told=given["dry_run"])


@cli.command(cls=CommandVerb, epilog=SUBMIT_EPILOGUE)
@asking
@option(
    "--elements",
    group=SLURM,
    type=int,
    metavar="N",
    help="How many jobs, each of them one process on one node. Has to be given.",
)
@option(
    "--gpus-per-element", group=SLURM, type=int, metavar="N", help="GPUs of each job. Default 1."
)
@option("--whole-nodes", group=SLURM, is_flag=True, help="Each job takes all that a node has.")
@option(
    "--cpus-per-element",
    group=SLURM,
    type=int,
    metavar="N",
    help="Cores of each job. Default: those that go with its GPUs; without GPUs one a rank.",
)
@option(
    "--max-at-once", group=SLURM, type=int, metavar="N", help="At most so many jobs run at once."
)
@option(
    "--time",
    group=SLURM,
    default="",
    metavar="T",
    help="The time limit of each job, as sbatch takes it (a number is minutes), or as 4h.",
)
@option("--partition", group=SLURM, default="", metavar="NAME", help="As --partition of sbatch.")
@option("--account", group=SLURM, default="", metavar="NAME", help="As --account of sbatch.")
@option("--qos", group=SLURM, default="", metavar="NAME", help="As --qos of sbatch.")
@option(
    "--gres",
    group=SLURM,
    default="",
    metavar="SPEC",
    help="As --gres of sbatch, e.g. gpu:a100:2, instead of --gpus-per-element.",
)
@option("--no-gres", group=SLURM, is_flag=True, help="Ask for no GPU, and use none.")
@option(
    "--sbatch",
    group=SLURM,
    default="",
    metavar="OPTIONS",
    help='More options of sbatch, in quotes: --sbatch "--mem=64G --exclude=n7".',
)
@option(
    "--setup",
    group=SLURM,
    metavar="FILE",
    shell_complete=completion.files,
    help="Lines for bash that come first in each job, such as module load.",
)
@requeueing
@planning
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    job_and_inputs: tuple[str, ...],
    args: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Plan a run as `run` does, and submit it to Slurm: an array of jobs that join it.

    The same command again submits what is missing.
    """
    from gpuspool.orchestrator.api import submitting

    if given["elements"] is None:
        raise UsageError(
            "--elements N is missing: how many jobs Slurm shall start for this run. Each of them, "
            "an element, is one process on one node, with one GPU unless --gpus-per-element says "
            "otherwise, and they share the tasks: --elements 4, for example."
        )
    job, inputs, command = _job_of(ctx, job_and_inputs)
    submission = submitting.submit(
        job, inputs, command=command, args=dict(map(pair, args)), **given
    )
    _tell_submission(submission, as_json)


@cli.command(cls=GroupedVerb, epilog=EXIT_CODES)
@spool_argument
@option(
    "--slurm",
    group=SLURM,
    is_flag=True,
    help="Submit again what of the jobs of `submit` is neither pending nor running.",
)
@requeueing
@running
@click.pass_context
def resume(
    ctx: click.Context, /, spool: str | None, slurm: bool, as_json: bool, **given: Any
) -> None:
    """Go on with a run that was stopped, killed or drained."""
    if slurm:
        from gpuspool.orchestrator.api import submitting

        _refuse_beside_slurm(ctx)
        submission = submitting.resubmit(spool, trust_owner=given["trust_owner"])
        _tell_submission(submission, as_json)
        return
    from gpuspool.orchestrator.api import runs
    from gpuspool.orchestrator.plan.locate import find_spool
    from gpuspool.orchestrator.slurm.allocation import scheduler_now

    root = find_spool(spool)
    if scheduler_now() is None and _jobs_in_slurm(root):
        # Who types this on a login node seldom wants the work to be done there.
        where = f"this start works here, on {os.uname().nodename}"
        say(f"{where}; {to_type('resume', root, '--slurm')} submits jobs instead")
    _end(runs.resume(spool, **given), as_json)


@cli.command(cls=GroupedVerb, epilog=EXIT_CODES)
@spool_argument
@joining
def join(spool: str | None, as_json: bool, **given: Any) -> None:
    """Work on a run along with whoever else does: what each job of an array calls.

    As `resume`, but of the job only the copy in the spool counts.
    """
    from gpuspool.orchestrator.api import runs

    _end(runs.join(spool, **given), as_json)


@cli.command(cls=GroupedVerb, epilog=EXIT_CODES)
@spool_argument
@running
def retry(spool: str | None, as_json: bool, **given: Any) -> None:
    """Give every failed task another round, and run."""
    from gpuspool.orchestrator.api import runs

    _end(runs.retry(spool, **given), as_json)


@cli.command(cls=GroupedVerb, epilog=EXIT_CODES)
@click.argument("spool", metavar="SPOOL", shell_complete=completion.spools)
@click.argument("keys", nargs=-1, metavar="[TASK|PATTERN]...", shell_complete=completion.keys)
@option(
    "--missing-outputs",
    group=GOING_ON,
    is_flag=True,
    help="Redo tasks whose outputs are gone or changed.",
)
@running
def redo(spool: str, keys: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Do finished tasks again, and run: those that are named, or whose outputs are gone."""
    from gpuspool.orchestrator.api import runs

    _end(runs.redo(spool, keys, **given), as_json)


@cli.command()
@click.argument("spool", metavar="SPOOL", shell_complete=completion.spools)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...", shell_complete=completion.files)
@naming_inputs
@trusting
@debug
def add(spool: str, inputs: tuple[str, ...], **given: Any) -> None:
    """Make inputs that a run does not have new tasks of it: a live run does them along with the
    others, any other is to be resumed.
    """
    from gpuspool.orchestrator.api import runs
    from gpuspool.spool.layout import Layout
    from gpuspool.spool.parents import may_any_parent_live

    n_added = runs.add(spool, inputs, **given)
    if not n_added:
        say(f"nothing added to {spool}: it has all of these inputs")
        return
    them = "it" if n_added == 1 else "them"
    hint = f"{to_type('resume', spool)} runs {them}"
    if may_any_parent_live(Layout(spool)):
        hint = f"the live run takes {them}"
    say(f"{count_of(n_added, 'task')} added to {spool}; {hint}")


@cli.command()
@spool_argument
@trusting
@debug
def drain(spool: str | None, trust_owner: tuple[str, ...]) -> None:
    """Ask a live run, on whatever host, to finish the tasks in hand and stop; it can be resumed."""
    from gpuspool.orchestrator.api import reading, runs

    # A run may stop within a moment, so this is asked before.
    is_under_way = reading.is_under_way(spool)
    root = runs.drain(spool, trust_owner=trust_owner)
    if is_under_way:
        say(f"draining {root}; {to_type('wait', root)} returns when it has stopped")
    else:
        say(f"nothing of {root} is seen at work, so there is nothing to stop")
    jobs = _jobs_in_slurm(root)
    if jobs:
        cancel = f"`scancel --me -n {jobs} --state=PENDING` cancels them"
        say(f"jobs that wait in Slurm's queue go on with the run when they start; {cancel}")


@cli.command()
@spool_argument
@option(
    "--watch",
    is_flag=True,
    help="Go on until the run has ended: a table that is kept up to date; off a terminal a line "
    "every 30 s; with --json an object every 2 s. A spool that is not there yet is waited for.",
)
@as_json
@debug
def status(spool: str | None, watch: bool, as_json: bool) -> None:
    """How a run stands; where no spool is named and there are several ./spool-*, how each does."""
    if watch:
        from gpuspool.orchestrator.cli.watch import show_until_ended

        show_until_ended(spool, as_json)
        return
    from gpuspool.orchestrator.api import reading
    from gpuspool.orchestrator.plan.locate import are_several_here

    if spool is None and are_several_here():
        _print_list(reading.list_spools(), as_json)
        return
    spool = _looked_at(spool)
    now = reading.status(spool)
    if as_json:
        _print_json(now)
        return
    _print_status(now)
    _tell_of_queue(spool, now)


@cli.command("list")
@click.argument("folder", metavar="[DIR]", default=".", shell_complete=completion.folders)
@as_json
@debug
def list_spools(folder: str, as_json: bool) -> None:
    """How the runs of all ./spool-* stand, those of the current folder or of DIR: one line each."""
    from gpuspool.orchestrator.api import reading

    runs = reading.list_spools(folder)
    if not runs and not as_json:
        where = "here" if folder == "." else f"in {folder}"
        say(f"there is no ./spool-* {where}; `gpuspool run` makes one, --spool may have put others")
    _print_list(runs, as_json)


@cli.command()
@spool_argument
@option(
    "--timeout",
    "timeout_s",
    type=duration,
    metavar="D",
    help="Give up waiting after this long; exit code 4.",
)
@debug
def wait(spool: str | None, timeout_s: float | None) -> None:
    """Wait until the run has ended: every task has a verdict, or nothing of it is alive.

    A run that was submitted to Slurm has not ended while jobs of it are pending there.
    """
    from gpuspool.orchestrator.api import reading

    spool = _looked_at(spool)
    now = reading.wait_and_tell(spool, timeout_s, say)
    _print_status(now)
    _tell_of_queue(spool, now)
    _warn_of_out(spool)
    sys.exit(EXIT_OF_STATE.get(now["state"], EXIT_NOT_FINISHED))


@cli.command()
@click.argument(
    "words",
    nargs=-1,
    metavar="[SPOOL] TASK|rank N|ATTEMPT",
    shell_complete=completion.spools_and_keys,
)
@option("--rank", type=int, metavar="N", shell_complete=completion.ranks, help="As `rank N`.")
@option(
    "--task",
    "key",
    metavar="TASK",
    shell_complete=completion.keys,
    help="As TASK, whatever it looks like: a key, a number as '#7', the path of an input.",
)
@as_json
@debug
def explain(words: tuple[str, ...], rank: int | None, key: str | None, as_json: bool) -> None:
    """What happened to a task or a rank, how it stands, and what happens next.

    TASK is a key, a number as '#7', or the path of its input. ATTEMPT is one process of a rank, as
    rank-0003.a01.

    \b
    gpuspool explain t7
    gpuspool explain spool-Embed images/7.jpg
    gpuspool explain spool-Embed rank 3
    """
    from gpuspool.orchestrator.api import reading
    from gpuspool.orchestrator.cli.subject import subject_of
    from gpuspool.orchestrator.report.story import story_text

    about = subject_of(words, rank, key)
    spool = _looked_at(about.spool)
    if as_json:
        _print_json(reading.explain(spool, about.key, about.rank, about.attempt))
    else:
        click.echo(story_text(reading.tell(spool, about.key, about.rank, about.attempt)))


@cli.command()
@spool_argument
@option("--rank", type=int, metavar="N", shell_complete=completion.ranks, help="Only this rank.")
@option(
    "--task",
    "key",
    metavar="TASK",
    shell_complete=completion.keys,
    help="Only what one task printed: its key, its number as '#7', or the path of its input.",
)
@option("-n", "--last", type=click.IntRange(0), metavar="N", help="Only the last N lines of each.")
@option("-f", "--follow", is_flag=True, help="Go on with what is printed, until the run has ended.")
@debug
def logs(
    spool: str | None, rank: int | None, key: str | None, last: int | None, follow: bool
) -> None:
    """What the workers printed: all of them, one rank, or while one task ran."""
    from gpuspool.orchestrator.api import reading

    spool = _looked_at(spool)
    is_empty = True
    for piece in reading.logs(spool, rank, key, last, follow):
        click.echo(printable(piece), nl=False)
        is_empty = False
    if is_empty and key is not None:
        # Of tasks that take a few milliseconds nobody notes what they printed.
        say(f"nothing is known that {key} printed; {to_type('logs', spool)} shows all there is")


@cli.command()
@spool_argument
@as_json
@debug
def failed(spool: str | None, as_json: bool) -> None:
    """Which tasks failed, and why: each kind of failure once, with the line that raised."""
    spool = _looked_at(spool)
    tell = _tell_failed_as_json if as_json else _tell_failed
    has_failed, doubtful = tell(spool)
    if doubtful.first is not None:
        from gpuspool.orchestrator.report.naming import explain_command
        from gpuspool.orchestrator.report.status import doubtful_text

        more = f"`{explain_command(spool, doubtful.first)}` tells of one"
        say(f"{doubtful_text(doubtful.n_tasks)}; {more}")
    elif not has_failed:
        say(f"no task of {spool} has failed")


def _tell_failed(spool: str) -> tuple[bool, Doubtful]:
    """Print the failed tasks in groups; returns whether there are any, and the doubtful tasks."""
    from gpuspool.orchestrator.api import reading
    from gpuspool.orchestrator.report.failures_text import MOST_WITH_TASKS, failures_text
    from gpuspool.spool.layout import Layout

    found, doubtful = reading.failed_groups(spool, MOST_WITH_TASKS)
    for line in failures_text(found, spool):
        click.echo(line)
    if found.groups:
        folder = os.path.join(spool, Layout(spool).failed_tasks.name)
        say(f"{folder} has a file about each")
    return bool(found.groups), doubtful


def _tell_failed_as_json(spool: str) -> tuple[bool, Doubtful]:
    """As `_tell_failed`, but a JSON object for each task."""
    from gpuspool.orchestrator.api import reading
    from gpuspool.orchestrator.report.results import encode_result

    write = sys.stdout.buffer.write
    found, doubtful = reading.failed_and_doubtful(spool)
    has_failed = False
    for result in found:
        has_failed = True
        write(plain_json(encode_result(result)) + b"\n")
    return has_failed, doubtful


@cli.command(epilog=RESULTS_EPILOGUE, cls=GroupedVerb)
@spool_argument
@option(
    "-o",
    "--output",
    verb="results",
    metavar="FILE",
    shell_complete=completion.files,
    help="Write a table into FILE, which appears whole or not at all; - is standard output.",
)
@option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="The format of the table. Default: as the name of FILE ends.",
)
@option(
    "--flatten",
    is_flag=True,
    help="In the table a column for each scalar at the top of the results.",
)
@option(
    "--state",
    "states",
    type=click.Choice(STATES),
    multiple=True,
    help="Only tasks with this verdict. Can be repeated.",
)
@option(
    "--require-complete",
    is_flag=True,
    help="Write nothing, and end with exit code 3, unless every task is complete.",
)
@option(
    "--stack",
    "stacked",
    metavar="FILE",
    multiple=True,
    shell_complete=completion.files,
    help="Put the .npy outputs of all tasks into FILE, which ends in .npy or .arrow. Can be "
    "repeated.",
)
@option(
    "--suffix",
    metavar="TEXT",
    help="How the outputs end that --stack takes, where tasks have several. Default .npy.",
)
@as_json
@debug
def results(
    spool: str | None,
    output: str | None,
    format_: str | None,
    flatten: bool,
    states: tuple[str, ...],
    require_complete: bool,
    stacked: tuple[str, ...],
    suffix: str | None,
    **_: Any,
) -> None:
    """What became of each task, in input order: one JSON line each, with or without --json.

    With -o or --format a table with fixed columns, for other programs. With --stack the arrays that
    the tasks wrote, in one file.
    """
    from gpuspool.orchestrator.cli import tables

    is_table = output is not None or format_ is not None
    if flatten and not is_table:
        raise UsageError("--flatten adds columns to a table: say -o FILE, or --format.")
    if suffix is not None and not stacked:
        raise UsageError("--suffix is of --stack, which is not given.")
    if stacked and (states or flatten):
        option_ = "--flatten" if flatten else "--state"
        if not is_table:
            raise UsageError(f"{option_} is of a table; --stack takes complete tasks alone.")
    spool = _looked_at(spool)
    tables.refuse_twice(output, stacked)
    if is_table:
        tables.export_table(spool, output, format_, states, flatten, require_complete)
    if stacked:
        tables.write_stack(spool, stacked, suffix, require_complete)
    if not is_table and not stacked:
        tables.print_results(spool, states, require_complete)
    _warn_of_out(spool)


@cli.command()
@spool_argument
@option(
    "-o",
    "--output",
    verb="report",
    metavar="FILE",
    shell_complete=completion.files,
    help="Where the page goes. Default SPOOL/report.html; - is standard output.",
)
@option(
    "--trace",
    metavar="FILE",
    shell_complete=completion.files,
    help="Write a trace for Perfetto and chrome://tracing; compressed where FILE ends with .gz.",
)
@option(
    "--joblog",
    metavar="FILE",
    shell_complete=completion.files,
    help="Write the finished tasks as --joblog of GNU parallel does.",
)
@debug
def report(spool: str | None, output: str | None, trace: str | None, joblog: str | None) -> None:
    """Write a run as one HTML file to hand on: figures, a timeline, failures, how it was run.

    With --trace or --joblog alone no page is written.
    """
    from gpuspool.orchestrator.api import handing_on

    spool = _looked_at(spool)
    for path in handing_on.write_report(spool, output, trace=trace, joblog=joblog):
        say(f"wrote {short_path(path)}")


@cli.command()
@spool_argument
@as_json
@debug
def verify(spool: str | None, as_json: bool) -> None:
    """Check every file of a spool against the format; exit code 5 if anything is wrong."""
    from gpuspool.orchestrator.api import reading

    found = reading.verify(_looked_at(spool))
    if as_json:
        _print_json({"problems": found.problems, "notes": found.notes})
    else:
        for text in found.problems:
            click.echo(f"problem: {one_line(text)}")
        for text in found.notes:
            click.echo(f"note: {one_line(text)}")
        counts = "{complete} complete, {failed} failed of {total}".format(**found.counts)
        click.echo(f"{count_of(len(found.problems), 'problem')}; {counts}")
    if found.problems:
        sys.exit(SpoolError.exit_code)


@cli.command()
@click.argument("folder", metavar="[DIR]", default=".", shell_complete=completion.folders)
@option(
    "--hosts",
    type=int,
    metavar="N",
    help="So many copies of this command are started at once, one on each host: try what they see "
    "of each other. Default: as many as srun has started.",
)
@option(
    "--wait",
    "wait_s",
    type=duration,
    metavar="D",
    help="How long to wait for the other copies. Default 120s.",
)
@as_json
@debug
def doctor(folder: str, hosts: int | None, wait_s: float | None, as_json: bool) -> None:
    """Try whether the file system of DIR, or of the current folder, is fit for a spool; exit code 1
    if it is not.

    On several hosts: srun -N2 --ntasks-per-node=1 gpuspool doctor DIR
    """
    from gpuspool.orchestrator.api import reading

    found = reading.diagnose(folder, hosts, wait_s)
    if not found.is_first:
        say(f"{found.hosts[0]} tells what all have found")
    elif as_json:
        rows = [
            {"name": check.name, "state": check.state, "detail": check.detail}
            for check in found.checks
        ]
        _print_json(
            {
                "folder": os.path.abspath(folder),
                "is_fit": found.is_fit,
                "hosts": found.hosts,
                "settings": found.settings,
                "checks": rows,
            }
        )
    else:
        for check in found.checks:
            click.echo(f"{check.name:10} {check.state:8} {one_line(check.detail)}")
        click.echo(f"{one_line(folder)} {_verdict(found)}")
    if not found.is_fit:
        sys.exit(1)


def _verdict(found: Diagnosis) -> str:
    """The last line of `doctor`, behind the name of the folder."""
    verdict = "is fit for a spool" if found.is_fit else "is not fit for a spool"
    if len(found.hosts) == 1:
        # One who is alone sees nothing of what a file system shows to others, or does not.
        return f"{verdict} on this host alone" if found.is_fit else verdict
    verdict += f" on {len(found.hosts)} hosts"
    if not found.is_fit:
        bad = sorted({check.name for check in found.checks if check.state == "problem"})
        return f"{verdict}: {', '.join(bad)}"
    if found.settings:
        return f"{verdict}, with {' '.join(found.settings)}"
    return f"{verdict}, with the settings as they are"


@cli.command("completion")
@click.argument("shell", type=click.Choice(completion.SHELLS))
@debug
def completion_script(shell: str) -> None:
    """Print what a shell runs to complete verbs, options, spools, ranks and keys.

    \b
    bash: echo 'eval "$(gpuspool completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(gpuspool completion zsh)"' >> ~/.zshrc
    fish: gpuspool completion fish > ~/.config/fish/completions/gpuspool.fish
    """
    click.echo(completion.script(cli, shell))


def _job_of(
    ctx: click.Context, words: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...], list[str] | None]:
    """The job and the inputs, or the inputs and the command, of `run` and `submit`."""
    command = ctx.meta.get("command")
    if command == []:
        raise UsageError("there is no command after `--`.")
    if command is not None:
        return None, words, command
    refuse_without_dashes(words)
    if not words:
        raise UsageError(
            "JOB is missing. Example: "
            f"gpuspool {ctx.info_name} classify.py:Contigs 'contigs/*.fasta'"
        )
    return words[0], words[1:], None


# What may stand beside --slurm. All else is for a start, and none is made.
_BESIDE_SLURM = ("spool", "slurm", "as_json", "trust_owner")


def _refuse_beside_slurm(ctx: click.Context) -> None:
    """Raise UsageError where an option was typed that the jobs of a script would not have."""
    for param in ctx.command.params:
        name = param.name or ""
        is_typed = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if is_typed and name not in _BESIDE_SLURM:
            raise UsageError(
                f"{max(param.opts, key=len)} is of a start, and --slurm starts nothing here: the "
                "jobs run as the newest script in SPOOL/slurm says. Put it there, behind "
                "`gpuspool join`, if that takes it."
            )


def _tell_submission(submission: Submission, as_json: bool) -> None:
    """Say what was submitted."""
    if not as_json:
        if not say(submission.message):
            sys.exit(GpuspoolError.exit_code)
        return
    script = submission.script
    _print_json(
        {
            "spool": os.fsdecode(submission.spool),
            "script": None if script is None else os.fsdecode(script),
            "jobs": submission.jobs,
            "elements": submission.elements,
            "message": submission.message,
        }
    )


def _looked_at(spool: str | None) -> str:
    """The spool that a verb looks at. Where none was named, say on stderr which was found."""
    from gpuspool.orchestrator.plan.locate import find_spool

    if spool is not None:
        return spool
    found = str(find_spool(None))
    say(f"{found}, the only spool here")
    return found


def _jobs_in_slurm(spool: str | os.PathLike[str]) -> str:
    """The name that the jobs of a spool have in Slurm; "" if none were ever submitted, and where
    the spool does not tell. It serves a hint, and is no reason to fail.
    """
    from gpuspool.orchestrator.api.in_queue import is_submitted
    from gpuspool.orchestrator.slurm.script import job_name
    from gpuspool.spool.layout import Layout
    from gpuspool.spool.view import load_run

    layout = Layout(spool)
    if not is_submitted(layout):
        return ""
    with contextlib.suppress(GpuspoolError, OSError):
        return job_name(load_run(layout).id)
    return ""


def _tell_of_queue(spool: str, now: dict[str, Any]) -> None:
    """Say on stderr of a run that has stopped that Slurm may still have jobs of it.

    Such jobs leave no trace in the spool, so where squeue did not answer nobody knows.
    """
    if now["state"] != RunState.STOPPED or now["queued"] is not None:
        return
    jobs = _jobs_in_slurm(spool)
    if jobs:
        say(f"whether jobs of it wait in Slurm's queue, `squeue --me -n {jobs}` tells")


def _print_status(now: dict[str, Any]) -> None:
    from gpuspool.orchestrator.report.table import table_lines

    for line in table_lines(now, _columns()):
        click.echo(line)


def _print_list(runs: list[dict[str, Any]], as_json: bool) -> None:
    from gpuspool.orchestrator.report.table import list_lines

    if as_json:
        _print_json(runs)
        return
    for line in list_lines(runs, _columns()):
        click.echo(line)


def _columns() -> int:
    """How wide lines may be: as COLUMNS says, else as the terminal is, else 80 cells."""
    return shutil.get_terminal_size().columns


def _warn_of_out(spool: str) -> None:
    """Say on stderr that a run's outputs are not where they should be."""
    from gpuspool.spool.layout import Layout
    from gpuspool.spool.open_folder import out_trouble
    from gpuspool.spool.view import load_run

    layout = Layout(spool)
    try:
        trouble = out_trouble(layout, load_run(layout))
    except OSError as error:
        # What was asked for is told, and needs none of it.
        trouble = f"the outputs cannot be looked at: {error.strerror} ({error.filename})"
    if trouble:
        say(f"warning: {trouble}")


def _end(report: Report, as_json: bool, *, is_told: bool = False) -> NoReturn:
    """The last line of a run, and its exit code.

    is_told: the message is all that was asked for, so it is an error if nobody can be told.
    """
    if not as_json:
        # The last line is what people look for, and what they type next.
        if report.efficiency:
            write_message(report.efficiency)
        if not say(report.message) and is_told:
            sys.exit(GpuspoolError.exit_code)
        raise RunEnded(report.exit_code)
    record = {
        "spool": os.fsdecode(report.spool),
        "exit_code": report.exit_code,
        "tasks": report.counts,
        "message": report.message,
    }
    # The error is kept, and `main` tells of it.
    with contextlib.suppress(OSError):
        _print_json(record)
    raise RunEnded(report.exit_code)


def _print_json(value: Any) -> None:
    """Print one line of JSON. It has ASCII alone, so any stream can say it."""
    click.echo(plain_json(json.dumps(value).encode()))
