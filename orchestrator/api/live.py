"""The table of a run while this process is a parent of it, drawn from the view of its own loop."""

from __future__ import annotations

from gpuspool.orchestrator.text.forecast import Outlook
from gpuspool.orchestrator.text.progress import SoFar, headline
from gpuspool.orchestrator.text.screen import Drawing, Line
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.view import View


class LiveTable:
    """What a parent shows of its run. `view` is the one that its loop keeps up to date.

    Its failure detector is its own: what the loop decides must not depend on whether somebody
    watches.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._detector: FailureDetector | None = None

    def look(self, so_far: SoFar) -> Drawing:
        """How the run stands now, as a drawing that needs the view no more. Raises OSError."""
        # Imported once the workers have been started: by then nobody waits for it, and most runs
        # draw no table at all.
        from gpuspool.orchestrator.report.picture import picture
        from gpuspool.orchestrator.report.status import status

        if self._detector is None:
            self._detector = FailureDetector(self._view)
        # What the loop has learnt of the run since it began tells more than a single look. It is
        # left out as ever where nothing is left, or the run stops.
        outlook = Outlook(so_far.tasks_per_s, so_far.left_s, so_far.longest_s)
        now = status(self._view, self._detector, outlook=lambda _: outlook)
        # What to type next is told by the last line.
        now["next"] = ""

        def draw(columns: int, most_lines: int) -> list[Line]:
            if most_lines == 1:
                return [Line(headline(so_far, columns))]
            return [Line(headline(so_far, columns)), *picture(now, columns, most_lines - 1)]

        return draw
