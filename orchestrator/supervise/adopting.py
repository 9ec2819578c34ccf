"""What a parent does about attempts that it finds open when it starts.

1. Attempts whose parents may be alive go on beside its own. These parents are told, and so are the
   attempts of other hosts, of which nothing is known yet.
2. Those that live on this host without a parent are adopted, and none is started in their place.
3. Where any of them run other code than this start, the parents that run it are ordered to drain,
   on whatever host: they finish what is in hand, and all the rest is for the new code.

`meet_others` is called once, by the loop, before its first look; `tell_of_adopted` at each look.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from gpuspool.orchestrator.supervise.drain import NEW_CODE, order_drain
from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.code import conflicts, read_code
from gpuspool.spool.records import Job, Parent
from gpuspool.spool.states import Life
from gpuspool.spool.view import View

# So many other starts are named, the oldest first.
SHOWN_STARTS = 4


def meet_others(
    view: View,
    workers: Workers,
    job: Job,
    older: Collection[int],
    telling: Telling,
    *,
    brings_code: bool,
) -> None:
    """Deal with the open attempts that others started, and tell of each. Raises OSError.

    older: the epochs of the parents before this one that may be alive. brings_code: the user said
    that the code changed.
    """
    others = workers.others
    others.detector.look()
    _tell_of_starts(workers, older, telling)
    lives = {attempt: workers.life(attempt) for attempt in others.open_attempts()}
    living = [attempt for attempt, life in lives.items() if life is not Life.DEAD]
    how = "goes on"
    outdated = _newest_outdated(view, workers, living, older, _NewCode(view, job, brings_code))
    if outdated is not None:
        # The order is published before anybody is signalled: workers of other hosts hear of it in
        # no other way.
        order_drain(view.layout, outdated, NEW_CODE)
        workers.tell_to_stop()
        how = "stops for the new code once its tasks in hand are done"
    tell_of_adopted(workers, telling, how)
    unproved = [attempt for attempt in living if lives[attempt] is not Life.ALIVE]
    _tell_of_unproved(view, workers, telling, unproved, -1 if outdated is None else outdated)


def tell_of_adopted(workers: Workers, telling: Telling, how: str = "goes on") -> None:
    """Tell of each attempt that is adopted since this was called last. Raises OSError."""
    for attempt in workers.others.newly_adopted():
        telling.tell("adopted", f"{attempt} outlived its parent and {how}", attempt=attempt)


def _tell_of_starts(workers: Workers, older: Collection[int], telling: Telling) -> None:
    """Tell which other starts this one works beside, as far as none of them is known to be over.

    Whoever types a command again, since nothing seemed to happen, shall see what happens already.
    """
    if not older:
        return
    parents = [workers.others.detector.parents.known.get(epoch) for epoch in sorted(older)]
    names = [start_in_words(parent) for parent in parents[:SHOWN_STARTS]]
    if len(parents) > SHOWN_STARTS:
        names.append("…")
    text = f"beside {count_of(len(parents), 'other start')} of this run: {', '.join(names)}"
    telling.tell("beside", text, epochs=sorted(older))


def start_in_words(parent: Parent | None) -> str:
    """Which start a parent is, for people. None: its record cannot be read."""
    if parent is None:
        return "one whose record cannot be read"
    where = f"on host {parent.host}"
    if parent.scheduler is not None:
        return f"Slurm job {parent.scheduler.job} {where}"
    return f"pid {parent.pid} {where}"


def _tell_of_unproved(
    view: View, workers: Workers, telling: Telling, attempts: Iterable[str], drained: int
) -> None:
    """Tell of the attempts of parents elsewhere, which only a lease can judge: a line for each
    parent.

    drained: the newest epoch that was just ordered to drain, -1 for none.
    """
    by_parent: dict[int, list[str]] = {}
    for attempt in attempts:
        if workers.others.detector.parent_life(attempt) is Life.ELSEWHERE:
            intent = view.intents.get(attempt)
            by_parent.setdefault(-1 if intent is None else intent.epoch, []).append(attempt)
    for names in by_parent.values():
        intent = view.intents.get(names[0])
        where = "elsewhere" if intent is None else f"on host {intent.parent.host}"
        lease_s = workers.others.lease_s(names[0])
        what = "may be at work"
        if intent is not None and intent.epoch <= drained:
            what = "stops for the new code, if it is at work, once its tasks in hand are done"
        text = (
            f"{', '.join(names)} {where}: {what}; what it has in hand is given to others only once "
            f"its beat has stood still for {lease_s:.0f} s"
        )
        telling.tell("waiting", text, attempts=names)


def _newest_outdated(
    view: View, workers: Workers, living: Iterable[str], older: Collection[int], new: _NewCode
) -> int | None:
    """The newest epoch that runs other code than the new; None where none does.

    living: the open attempts that are not proved dead. older: the epochs of the parents that may be
    alive. An order to drain must name this epoch and none behind it: several starts with the new
    code may come in one after the other, and each would end those before it.
    """
    outdated: list[int] = []
    for attempt in (*living, *_last_of_each(view, older)):
        intent = view.intents.get(attempt)
        if intent is None:
            continue
        beat = view.heartbeat(attempt)
        code = intent.job.code if beat is None else beat.code
        if new.differs_from(intent.job.sha256, code):
            outdated.append(intent.epoch)
    # A parent that has not started anybody yet has its code all the same.
    for epoch in older:
        parent = workers.others.detector.parents.known.get(epoch)
        if parent is not None and new.differs_from(parent.job_sha256, parent.code):
            outdated.append(parent.epoch)
    return max(outdated, default=None)


def _last_of_each(view: View, epochs: Collection[int]) -> list[str]:
    """The last attempt of each of these epochs, closed or not.

    A parent whose slots are all empty, since they wait to be started again, has its code too.
    """
    last: dict[int, str] = {}
    for attempt, intent in view.intents.items():
        if intent is not None and intent.epoch in epochs:
            last[intent.epoch] = attempt
    return list(last.values())


class _NewCode:
    """The code that a start brings, for which attempts and parents with other code make way."""

    def __init__(self, view: View, job: Job, brings_code: bool) -> None:
        """brings_code: the user said that the code changed."""
        self._view = view
        self._sha256 = job.sha256
        self._known = read_code(view.layout, job.code)
        self._brings_code = brings_code

    def differs_from(self, sha256: str, code: str) -> bool:
        """Whether it is other code than that of a `Job` with these two fields."""
        if sha256 != self._sha256:
            return True
        old = read_code(self._view.layout, code)
        if self._known is None or old is None:
            return False
        changed = conflicts(old, self._known)
        # Files that a command or the args name may have changed since those attempts began because
        # the job writes to them. Nobody was asked about that, and if it counted, each element of an
        # array would end all those before it. Weights that a user replaced look the same; then
        # --keep-done tells them apart.
        if self._brings_code:
            return bool(changed)
        modules = {file.name for file in self._known.files if file.module}
        return not modules.isdisjoint(changed)
