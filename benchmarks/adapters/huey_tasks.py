"""The tasks as huey knows them, for the producer and the consumer."""

import os

import work
from huey import SqliteHuey

huey = SqliteHuey(filename=os.path.join(os.environ["BENCH_FOLDER"], "huey.db"), store_none=True)
noop, sleeping, spinning = (
    huey.task(name=task.__name__)(task) for task in (work.noop, work.sleeping, work.spinning)
)
TASKS = {"noop": noop, "sleeping": sleeping, "spinning": spinning}
