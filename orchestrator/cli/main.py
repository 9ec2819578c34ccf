"""The command line. Each verb is thin: it parses, calls, prints, and ends with the exit code that
the docs promise.

Data goes to stdout, messages to stderr. Importing this file imports neither torch, rich nor
watchdog.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from gpuspool.orchestrator.text.printable import printable
from gpuspool.orchestrator.text.words import find, pair
from gpuspool.spool import __version__
from gpuspool.spool.errors import GpuspoolError, UsageError
from gpuspool.spool.publish import publish

LONGEST_S = 3650 * 86400.0
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(value: Any) -> float:
    """The type of options in seconds: 90, 90s, 15m, 2h or 1d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is no duration; write 90, 90s, 15m, 2h or 1d")
    seconds = float(match[1]) * UNITS[match[2]]
    if seconds > LONGEST_S:
        raise click.BadParameter(f"{value!r} is longer than {LONGEST_S / UNITS['d']:.0f} days")
    return seconds


class Verb(click.Command):
    """Keeps what follows `--` apart: it is a command, not more inputs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["command"] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """click.option with its environment variable, GPUSPOOL_<NAME>."""
    long = next(name for name in names if name.startswith("--"))
    variable = "GPUSPOOL_" + long.split("/")[0].lstrip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def options(*several: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for one in reversed(several):
            function = one(function)
        return function

    return decorate


as_json = option("--json", "as_json", is_flag=True, help="Print JSON.")
debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    envvar="GPUSPOOL_DEBUG",
    help="Show tracebacks of errors.",
)
spool_argument = click.argument("spool_dir", metavar="[SPOOL]", required=False)
running = options(
    option("--ranks", type=int, help="Number of workers. Default: one per device; on the CPU one."),
    option(
        "--devices",
        help="Devices: 0,1 or GPU-… or MIG-… tokens, or cpu. Default: all that are visible.",
    ),
    option("--ranks-per-gpu", type=int, help="Put this many ranks on each device."),
    option("--gpus-per-rank", type=int, help="Give each rank this many devices."),
    option("--retries", type=int, help="Try a task that raised this many times more. Default 0."),
    option(
        "--max-restarts",
        type=int,
        help="Failed starts in a row before a rank is given up. Default 3.",
    ),
    option(
        "--max-crashes", type=int, help="Crashes with one task in hand before it fails. Default 2."
    ),
    option(
        "--max-failed", metavar="N|P%", help="Stop early once so many tasks failed; exit code 4."
    ),
    option(
        "--task-timeout",
        "task_timeout_s",
        type=duration,
        help="A task that takes longer fails as timeout.",
    ),
    option(
        "--stall-timeout",
        "stall_timeout_s",
        type=duration,
        help="End a worker that makes no progress for so long.",
    ),
    option(
        "--time-limit",
        "time_limit_s",
        type=duration,
        help="Drain after this long, e.g. 55m; exit code 75.",
    ),
    option(
        "--grace",
        "grace_s",
        type=duration,
        help="How long a drain waits for tasks in hand. Default 25s.",
    ),
    option(
        "--on-parent-exit",
        type=click.Choice(["finish", "stop"]),
        help="What workers do when the orchestrator is gone. Default finish.",
    ),
    option("--poll", "poll_s", type=duration, help="Look this often instead of using inotify."),
    option(
        "--lease",
        "lease_s",
        type=duration,
        help="Silence that proves a worker on another host dead. Default 120s.",
    ),
    option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
    option(
        "--keep-done",
        is_flag=True,
        help="The job changed: finished tasks stay, the rest use the new code.",
    ),
    as_json,
    debug,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gpuspool")
def cli() -> None:
    """Run one Python class over many inputs on every GPU. All state is plain files in one spool
    directory.
    """


@cli.command(cls=Verb)
@click.argument("job_and_inputs", nargs=-1, metavar="JOB [INPUT]...")
@option("--spool", "spool_dir", help="The spool directory. Default ./spool-<job name>.")
@option("--out", help="Where outputs go. Default SPOOL/outputs.")
@option("--overwrite", is_flag=True, help="Move what is in --out aside instead of refusing.")
@option("--files-from", metavar="FILE|-", help="Input paths, one a line.")
@option("--lines", metavar="FILE|-", help="One task for each line; the payload is the line.")
@option(
    "--tasks",
    metavar="FILE|-",
    help='JSON lines: any value, or {"payload": …, "key": …, "cost": …}.',
)
@option(
    "--arg", "args", multiple=True, metavar="KEY=VALUE", help="ctx.args[KEY]; JSON if it parses."
)
@option("--seed", type=int, help="Changes every task.seed. Default 0.")
@option("--fresh", is_flag=True, help="Start anew; an existing spool is renamed, never deleted.")
@option("--dry-run", is_flag=True, help="Show what would be done.")
@running
@click.pass_context
def run(
    ctx: click.Context,
    /,
    job_and_inputs: tuple[str, ...],
    spool_dir: str | None,
    args: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Run JOB (file.py:Name or module:Name) over the INPUTs, or a command: gpuspool run INPUT... --
    COMMAND ARG...

    The same command again goes on where it stopped.
    """
    from gpuspool.orchestrator import api

    command = ctx.meta.get("command")
    if command == []:
        raise UsageError("there is no command behind `--`.")
    job, inputs = (None, job_and_inputs) if command else (job_and_inputs[:1], job_and_inputs[1:])
    if not command and not job:
        raise UsageError(
            "JOB is missing. Example: gpuspool run classify.py:Contigs 'contigs/*.fasta'"
        )
    report = api.run(
        job[0] if job else None,
        inputs,
        command=command,
        spool=spool_dir,
        args=dict(map(pair, args)),
        **given,
    )
    _end(report, as_json)


@cli.command()
@spool_argument
@running
def resume(spool_dir: str | None, as_json: bool, **given: Any) -> None:
    """Go on with a run that was stopped, killed or drained."""
    from gpuspool.orchestrator import api

    _end(api.resume(find(spool_dir), **given), as_json)


@cli.command()
@spool_argument
@running
def retry(spool_dir: str | None, as_json: bool, **given: Any) -> None:
    """Give every failed task another round, and run."""
    from gpuspool.orchestrator import api

    _end(api.resume(find(spool_dir), retry=True, **given), as_json)


@cli.command()
@spool_argument
@option("--watch", is_flag=True, help="Print again every 2 s until the run has ended.")
@as_json
@debug
def status(spool_dir: str | None, watch: bool, as_json: bool) -> None:
    """How a run stands."""
    from gpuspool.orchestrator.report.status import status as read
    from gpuspool.orchestrator.report.status import status_text
    from gpuspool.spool.liveness import FailureDetector
    from gpuspool.spool.view import open_view

    view = open_view(find(spool_dir), reads_claims=False)
    detector = FailureDetector(view)
    while True:
        now = read(view.refresh(), detector)
        click.echo(json.dumps(now) if as_json else status_text(now))
        if not watch or now["state"] != "running":
            return
        time.sleep(2)


@cli.command()
@spool_argument
@option(
    "--timeout", "timeout_s", type=duration, help="Give up waiting after this long; exit code 4."
)
@debug
def wait(spool_dir: str | None, timeout_s: float | None) -> None:
    """Wait until the run has ended: every task has a verdict, or nothing of it lives any more."""
    from gpuspool.orchestrator.report.status import status as read
    from gpuspool.orchestrator.report.status import status_text
    from gpuspool.spool.holder import is_holder_alive
    from gpuspool.spool.liveness import FailureDetector
    from gpuspool.spool.view import open_view

    view, began = open_view(find(spool_dir), reads_claims=False), time.monotonic()
    detector = FailureDetector(view)
    while (now := read(view.refresh(), detector))["state"] == "running" or is_holder_alive(
        view.layout
    ):
        if timeout_s is not None and time.monotonic() - began > timeout_s:
            break
        time.sleep(0.2)
    click.echo(status_text(now))
    sys.exit({"complete": 0, "failed": 3}.get(now["state"], 4))


@cli.command()
@spool_argument
@option("--rank", type=int, help="Only this rank.")
@option("--task", "key", help="Only what the task with this key printed.")
@debug
def logs(spool_dir: str | None, rank: int | None, key: str | None) -> None:
    """What the workers printed."""
    from gpuspool.orchestrator.report.logs import log_chunks, task_log_chunks
    from gpuspool.spool.layout import rank_of
    from gpuspool.spool.view import open_view

    view = open_view(find(spool_dir), reads_claims=False)
    if key is not None:
        for text in task_log_chunks(view, key):
            click.echo(printable(text), nl=False)
        return
    for attempt in view.attempts:
        if rank is None or rank_of(attempt) == rank:
            click.echo(f"==> {attempt} <==")
            for text in log_chunks(view, attempt):
                click.echo(printable(text), nl=False)


@cli.command()
@spool_argument
@as_json
@debug
def failed(spool_dir: str | None, as_json: bool) -> None:
    """Which tasks failed, and why: by kind and by the line that raised."""
    from gpuspool.orchestrator.report.failures import failed_results, failures_text
    from gpuspool.orchestrator.report.results import encode_result
    from gpuspool.spool.view import open_view

    found = failed_results(open_view(find(spool_dir), reads_claims=False))
    if as_json:
        for result in found:
            click.echo(encode_result(result))
    else:
        click.echo(printable(failures_text(found)), nl=False)


@cli.command()
@spool_argument
@debug
def drain(spool_dir: str | None) -> None:
    """Ask a live run, on whatever host, to finish the tasks in hand and stop; it can be resumed."""
    from gpuspool.spool.holder import read_holder
    from gpuspool.spool.view import open_view

    view = open_view(find(spool_dir))
    holder = read_holder(view.layout)
    epoch = max(view.next_epoch() - 1, 0 if holder is None else holder.epoch)
    publish(
        view.layout.drain(epoch), f"{os.uname().nodename} {os.getpid()} {time.time()}\n".encode()
    )
    click.echo(
        f"draining {view.layout.root}; `gpuspool wait` returns when it has stopped", err=True
    )


@cli.command()
@spool_argument
@as_json
@debug
def verify(spool_dir: str | None, as_json: bool) -> None:
    """Check every file of a spool against the format; exit code 5 if anything is wrong."""
    from gpuspool.orchestrator.report.verify import verify as check
    from gpuspool.spool.view import open_view

    view = open_view(find(spool_dir))
    found = check(view)
    ledger = view.ledger
    if as_json:
        click.echo(json.dumps({"problems": found.problems, "notes": found.notes}))
    else:
        for text in found.problems:
            click.echo(f"problem: {printable(text)}")
        for text in found.notes:
            click.echo(f"note: {printable(text)}")
        counts = f"{ledger.n_complete} complete, {ledger.n_failed} failed of {ledger.tasks}"
        click.echo(f"{len(found.problems)} problems; {counts}")
    sys.exit(5 if found.problems else 0)


@cli.command()
@click.argument("folder", metavar="DIR")
@as_json
@debug
def doctor(folder: str, as_json: bool) -> None:
    """Try whether a folder's file system is fit for a spool; exit code 1 if it is not."""
    from gpuspool.orchestrator.supervise.doctor import examine

    if not Path(folder).is_dir():
        raise UsageError(
            f"{folder} is no folder. Name one on the file system that spools shall live on."
        )
    checks = examine(Path(folder))
    is_fit = all(check.state != "problem" for check in checks)
    if as_json:
        rows = [
            {"name": check.name, "state": check.state, "detail": check.detail} for check in checks
        ]
        click.echo(
            json.dumps({"folder": os.path.abspath(folder), "is_fit": is_fit, "checks": rows})
        )
    else:
        for check in checks:
            click.echo(f"{check.name:10} {check.state:8} {printable(check.detail)}")
        click.echo(f"{folder} is {'fit' if is_fit else 'not fit'} for a spool")
    sys.exit(0 if is_fit else 1)


@cli.command()
@spool_argument
@debug
def results(spool_dir: str | None) -> None:
    """One JSON line for each task, in input order."""
    from gpuspool.orchestrator.report.results import Results, encode_result
    from gpuspool.spool.view import open_view

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough
    write = sys.stdout.buffer.write
    for result in Results(open_view(find(spool_dir), reads_claims=False)):
        write(encode_result(result) + b"\n")


def _end(report: Any, as_json: bool) -> NoReturn:
    """The last line of a run, and its exit code."""
    if as_json:
        record = {"spool": str(report.spool), "exit_code": report.exit_code, "tasks": report.counts}
        click.echo(json.dumps(record | {"message": report.message}))
    else:
        _say(report.message)
    sys.exit(report.exit_code)


def _say(text: str) -> None:
    """To whoever listens still; what happened is in the exit code and in summary.json."""
    with contextlib.suppress(OSError):
        click.echo(f"gpuspool: {printable(text)}", err=True)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point; without arguments those of the process, which then ends without taking its
    modules apart.
    """
    try:
        _main(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        if arguments is not None or not isinstance(end.code, int):
            raise
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, AttributeError):  # None where the descriptor is closed
            sys.stderr.flush()
        with contextlib.suppress(OSError, AttributeError):
            sys.stdout.flush()
            os._exit(end.code)
        raise


def _main(arguments: list[str]) -> NoReturn:
    """Errors of ours become one paragraph and their exit code, unless --debug."""
    is_debug = "--debug" in arguments or os.environ.get("GPUSPOOL_DEBUG", "0").lower() not in (
        "",
        "0",
        "false",
        "no",
    )
    try:
        cli.main(args=arguments, prog_name="gpuspool", standalone_mode=False)
    except GpuspoolError as error:
        _fail(str(error), error.exit_code, is_debug)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        text = f"{error.strerror or error}{where}, errno {error.errno}. Mend it, then run the same command again."
        _fail(text, 1, is_debug)
    sys.exit(0)


def _fail(text: str, code: int, is_debug: bool) -> NoReturn:
    if is_debug:
        raise
    _say(text)
    sys.exit(code)
