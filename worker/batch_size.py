"""How many tasks a call may have: as many as fit into memory, found by trying.

A batch that does not fit says one of two things: there are too many tasks, or one of them is a
giant. Which it is shows when the batch is run in parts.

- If one task alone is left of all parts that did not fit, it is a giant, and the size is innocent.
- If two parts that have no task in common did not fit, there are too many. From then on no part of
  this batch is larger than what ran, so that each size is tried in vain twice at most.

Where there were too many, later batches have the size of the largest part that ran. After some
full batches the size is doubled, since what was in the way may be gone: other tasks, or another
process on the device. If that fails, so many more full batches must have run before it is tried
again that the tries cost little. Called by the executor, for each batch.
"""

from __future__ import annotations

# So many full batches must have run before a larger one is tried. A batch that does not fit costs
# about as much as one that does, so at first a fifth of the time may be lost at this;
FIRST_PATIENCE = 4
# with each try in vain the number doubles up to this one, at which a percent or two are lost.
MOST_PATIENCE = 64


class BatchSize:
    """The batch size of one attempt."""

    def __init__(self, most: int) -> None:
        """most: what the job asks for."""
        # How many tasks a batch may have now.
        self.current = most
        # How often several tasks at once did not fit.
        self.refusals = 0
        self._most = most
        self._patience = FIRST_PATIENCE
        # Full batches that ran as a whole since the size was changed, or since one did not.
        self._good = 0
        # Whether the size was raised and no full batch has run since.
        self._is_trying = False
        # Whether the batch before this one had a giant, so it seemed.
        self._had_giant = False
        self.begin()

    def begin(self) -> None:
        """A batch is about to be run."""
        # The most tasks that a part of this batch may have.
        self.part = self._most
        # The largest part that ran, 0 for none, and the smallest that did not fit, 0 for none.
        self._ran = 0
        self._refused = 0
        self._is_crowded = False

    def ran(self, tasks: int) -> None:
        """A part of the batch, with so many tasks, ran."""
        self._ran = max(self._ran, tasks)

    def refused(self, tasks: int) -> None:
        """A part of the batch, with so many tasks, did not fit. Its halves come next."""
        if tasks > 1:
            self.refusals += 1
        # Parts of a part are smaller than it is and come right after it. So if something smaller
        # did not fit before, it was no part of this one, nor this of it.
        if self._refused and tasks >= self._refused:
            self._is_crowded = True
            self.part = max(1, min(self.part, self._ran or tasks, tasks // 2))
        self._refused = min(self._refused or tasks, tasks)

    def end(self, tasks: int) -> None:
        """The batch, of so many tasks, is settled."""
        if self._refused:
            self._shrink()
        elif tasks >= self.current:
            self._had_giant = False
            self._is_trying = False
            self._good += 1
            if self._good >= self._patience and self.current < self._most:
                self._grow()

    def _shrink(self) -> None:
        self._good = 0
        # A size of 2 looks the same with a giant as with too many. So of two batches in a row only
        # the first one is excused.
        is_giant = self._refused <= 2 and not self._is_crowded and not self._had_giant
        self._had_giant = is_giant
        if is_giant:
            return
        self.current = self._ran or max(1, self.current // 2)
        if self._is_trying:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._is_trying = False

    def _grow(self) -> None:
        self.current = min(2 * self.current, self._most)
        self._good = 0
        self._is_trying = True
