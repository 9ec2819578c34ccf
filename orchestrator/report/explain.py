"""`gpuspool explain`: the story of one task or one rank, from the files alone.

It needs nobody who runs, and writes nothing. Of a run of a million tasks it reads the bytes of
manifests and journals and decodes some lines.

The command line and the Python API call this.
"""

from __future__ import annotations

from gpuspool.orchestrator.report.finding import find_task
from gpuspool.orchestrator.report.rank_story import rank_story
from gpuspool.orchestrator.report.story import Story
from gpuspool.orchestrator.report.task_story import task_story
from gpuspool.spool.layout import rank_of
from gpuspool.spool.view import View


def explain_task(view: View, word: str) -> Story:
    """The story of the task that a word means to `find_task`.

    view: of which no more than run.json was read. Raises UsageError where the word means no task,
    OSError.
    """
    view.refresh_manifests()
    return task_story(view, find_task(view, word))


def explain_rank(view: View, rank: int) -> Story:
    """The story of a rank. Raises UsageError where the run has none of this number; OSError."""
    return rank_story(view.refresh_manifests(), rank)


def explain_attempt(view: View, attempt: str) -> Story:
    """The story of one attempt of a rank. Raises as `explain_rank`."""
    return rank_story(view.refresh_manifests(), rank_of(attempt), attempt)
