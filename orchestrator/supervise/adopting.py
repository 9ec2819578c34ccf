"""What a parent does about attempts that it finds open when it starts.

Those of other parents go on beside its own. Those that lost theirs and live on this host are
adopted, and no twin is started in their place. Where any of them run another job than this epoch's
(`--keep-done`), the parents that run it are ordered to finish what is in hand and to end, on
whatever host: all the rest is for the new code. Called once, by the loop, before its first look.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from gpuspool.orchestrator.supervise.drain import NEW_CODE, order_drain
from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool.code import conflicts, read_code
from gpuspool.spool.records import Job, Parent
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


def adopt(
    view: View,
    workers: Workers,
    job: Job,
    older: Collection[int],
    telling: Telling,
    *,
    brings_code: bool,
) -> None:
    """Take over the open attempts that others started, and tell of each. Raises OSError.

    older: the epochs of the parents before this one that may be alive. brings_code: the user said
    that the code changed.
    """
    others = workers.others
    others.detector.look()
    lives = {attempt: workers.life(attempt) for attempt in others.open()}
    living = [attempt for attempt, life in lives.items() if life is not Life.DEAD]
    how = "goes on"
    # The order is published before anybody is signalled: workers of other hosts hear of it in no
    # other way. It names the newest epoch that runs the old code. No number behind that will do:
    # several starts with the new code may come in one after the other, and each would end those
    # before it.
    attempts = [*living, *_last_of_each(view, older)]
    parents = [others.detector.parents.known.get(epoch) for epoch in older]
    behind = _newest_behind(view, attempts, parents, _NewCode(view, job, brings_code))
    if behind is not None:
        order_drain(view.layout, behind, NEW_CODE)
        workers.tell_to_stop()
        how = "stops for the new code once its tasks in hand are done"
    elsewhere: dict[int, list[str]] = {}
    tell_of_adopted(workers, telling, how)
    for attempt in living:
        is_here = lives[attempt] is Life.ALIVE
        if not is_here and others.detector.parent_life(attempt) is Life.ELSEWHERE:
            intent = view.intents.get(attempt)
            elsewhere.setdefault(-1 if intent is None else intent.epoch, []).append(attempt)
    for attempts in elsewhere.values():
        _tell_of_waiting(view, telling, attempts, others.lease_s(attempts[0]))


def tell_of_adopted(workers: Workers, telling: Telling, how: str = "goes on") -> None:
    """Tell of each attempt that is adopted since this was called last. Raises OSError."""
    for attempt in workers.others.newly_adopted():
        telling.tell("adopted", f"{attempt} outlived its parent and {how}", attempt=attempt)


def _tell_of_waiting(view: View, telling: Telling, attempts: list[str], lease_s: float) -> None:
    """Tell of attempts of one parent elsewhere, of which nothing is proved at the first look."""
    intent = view.intents.get(attempts[0])
    where = "elsewhere" if intent is None else f"on host {intent.parent.host}"
    text = (
        f"{', '.join(attempts)} {where}: may be at work; what it has in hand is given to others "
        f"only once its beat has stood still for {lease_s:.0f} s"
    )
    telling.tell("waiting", text, attempts=attempts)


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
    """The code that a start brings, for which those that run another one make way."""

    def __init__(self, view: View, job: Job, brings_code: bool) -> None:
        """brings_code: the user said that the code changed."""
        self._view = view
        self._sha256 = job.sha256
        self._known = read_code(view.layout, job.code)
        self._brings_code = brings_code

    def is_other(self, sha256: str, code: str) -> bool:
        """Whether somebody runs other code, of whom these two are told: as in a `Job`."""
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


def _newest_behind(
    view: View, attempts: Iterable[str], parents: Iterable[Parent | None], new: _NewCode
) -> int | None:
    """The newest epoch of those of these attempts and parents that run other code.

    None where none does.
    """
    behind: list[int] = []
    for attempt in attempts:
        intent = view.intents.get(attempt)
        if intent is None:
            continue
        beat = view.heartbeat(attempt)
        code = intent.job.code if beat is None else beat.code
        if new.is_other(intent.job.sha256, code):
            behind.append(intent.epoch)
    # A parent that has not started anybody yet has its code all the same.
    for parent in parents:
        if parent is not None and new.is_other(parent.job_sha256, parent.code):
            behind.append(parent.epoch)
    return max(behind, default=None)
