"""The job of the row "zombies": `job.work`, but some tasks once read a file, and never return."""

from pathlib import Path


def work(task, ctx):
    """Do the work. Tasks in `--arg stuck=[…]` leave a mark and read `--arg hang=FILE`, once."""
    # It lies beside this file.
    from job import work as plain

    mark = Path(ctx.args["marks"], str(task.index))
    if task.index in ctx.args.get("stuck", ()) and not mark.exists():
        mark.touch()
        with open(ctx.args["hang"], "rb", buffering=0) as file:
            file.read(1)
    return plain(task, ctx)
