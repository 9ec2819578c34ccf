"""The job of the row "zombies": as `job.work`, but some tasks read, once, a file of which no read
ever returns.
"""

from pathlib import Path


def work(task, ctx):
    """Tasks named in `--arg stuck=[…]` read `--arg hang=FILE` the first time, and leave a mark
    before they do.
    """
    from job import work as plain  # a neighbour in the folder of the job file

    mark = Path(ctx.args["marks"], str(task.index))
    if task.index in ctx.args.get("stuck", ()) and not mark.exists():
        mark.touch()
        with open(ctx.args["hang"], "rb", buffering=0) as file:
            file.read(1)
    return plain(task, ctx)
