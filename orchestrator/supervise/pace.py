"""How long the loop waits between two looks at the spool.

The bell wakes the loop for nearly all that matters, so what is left to choose is how soon to look
when it does not ring. Looking costs: each look opens some files for every rank, and on a busy run
every one of those may have grown. `Pace` keeps that at a few files a second on average, looks
often while much is finished between two looks, and never sleeps past a moment at which something is
due by the clock alone. The loop asks it before each wait.
"""

from __future__ import annotations

import msgspec

# A look opens about this many files, besides two (heartbeat and journal) for each open attempt:
# the listings of the spool's folders and the ends of the claims.
LOOK_FILES = 10

# On average looks may open this many files a second. One rank is then looked at every three
# seconds when nothing happens, and a hundred ranks cost no more than that.
FILES_PER_S = 4.0

# Where nothing tells of files, so many a second: what happens must be seen soon all the same.
BLIND_FILES_PER_S = 25.0

# After a look that brought much news the next follows this soon; each without doubles the wait.
NEWS_LOOK_S = 0.1

# A look brought much news if it found this many new verdicts for each file that it opened: then
# reading them costs far more than opening, and a person who watches sees the count move.
NEWS = 1000


class Moment(msgspec.Struct, frozen=True):
    """What the loop knows when it is about to wait.

    `is_timed`: something may be due that no event tells of, such as the end of a grace or a task's
    time limit. `has_observer`: published files ring the bell. `due_in_s`: when this start's time is
    up, the next backoff of a rank ends, or the next death may be judged; None where nothing waits
    for its time.
    """

    open_attempts: int
    complete: int
    is_timed: bool
    has_observer: bool
    due_in_s: float | None = None


class Pace:
    """Chooses the waits of one loop.

    `quiet_s` is the wait of a bell that hears no events, `longest_s` the longest wait that progress
    and the parent's heartbeat allow. `complete` is how many tasks were complete at the start.
    """

    def __init__(self, quiet_s: float, longest_s: float, complete: int) -> None:
        self._quiet_s = quiet_s
        self._longest_s = longest_s
        self._complete = complete
        self._nap_s = NEWS_LOOK_S
        self._blind_s = quiet_s

    def nap_s(self, moment: Moment) -> float:
        """How many seconds to wait for the bell; 0 or more."""
        nap_s = self._usual_s(moment)
        if moment.due_in_s is None:
            return nap_s
        return max(0.0, min(nap_s, moment.due_in_s))

    def _usual_s(self, moment: Moment) -> float:
        if moment.is_timed:
            return self._quiet_s
        if not moment.has_observer:
            # Nothing tells what other hosts do, so the loop looks often while something happens.
            files = LOOK_FILES + moment.open_attempts
            least_s = max(self._quiet_s, min(files / BLIND_FILES_PER_S, self._longest_s))
            is_soon = moment.due_in_s is not None and moment.due_in_s < self._longest_s
            if moment.complete != self._complete or is_soon:
                self._blind_s = least_s
            self._complete = moment.complete
            nap_s = self._blind_s
            self._blind_s = max(least_s, min(2 * nap_s, self._longest_s))
            return nap_s
        files = LOOK_FILES + 2 * moment.open_attempts
        news = moment.complete - self._complete
        self._complete = moment.complete
        if news > NEWS * files:
            self._nap_s = NEWS_LOOK_S
        else:
            most_s = max(self._quiet_s, min(files / FILES_PER_S, self._longest_s))
            self._nap_s = min(2 * self._nap_s, most_s)
        return self._nap_s
