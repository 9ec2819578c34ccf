"""Mending the chains of claims after a power cut.

Claims are not fsynced, so a power cut may take back the last ones while the journals, which are
synced every second, still tell what was done under them. A chain that is too short offers its
positions again, and finished tasks would run twice. So the gatherer of each epoch after the first
mends them, once nothing that is proved dead is open any more and before it starts anybody:

1. Take every task that an open attempt holds a claim on as known.
2. Walk over the positions of each manifest that look unclaimed. A position was claimed before if
   its task is finished in its round, or is known, or was already met in another manifest.
3. A claim that the chain does not reach any more, since one before it is gone, was made before too:
   whoever skips claims takes it for part of the chain.
4. Claim everything up to the last such position in the name of an attempt that is closed. It holds
   nothing, so the sweep that follows gives out again what lies between and is not finished.
5. Make that one claim two, of which the second holds the last position alone. No other claim starts
   behind that one, so whoever skips claims finds its end there as well.

Each claim is one link(2). Killed in between, the next start mends the rest.
"""

from __future__ import annotations

from gpuspool.spool.claims import ClaimChain
from gpuspool.spool.view import View


def mend_claims(view: View) -> int:
    """Extend every chain over what was claimed before; returns how many claims were made.

    The view was just refreshed, and nothing dead is open. Where no attempt is closed yet, nothing
    was ever claimed by anybody who is gone, so there is nothing to mend.
    """
    nobody = next(iter(view.closed), None)
    if nobody is None:
        return 0
    known: set[tuple[int, int]] = set()
    for attempt in view.open_attempts:
        known.update((task.task, task.round) for task in view.claimed_by(attempt))
    return sum(_mend(view, name, known, nobody) for name in view.manifests)


def _mend(view: View, name: str, known: set[tuple[int, int]], nobody: str) -> int:
    """Mend the chain of one manifest; adds its unclaimed tasks to `known`."""
    chain = view.chains[name]
    last = max(chain.last_stray(), _last_claimed_before(view, name, chain, known))
    made = 0
    for stop in (last, last + 1):
        if chain.next < stop and chain.take(nobody, stop) is not None:
            made += 1
    return made


def _last_claimed_before(
    view: View, name: str, chain: ClaimChain, known: set[tuple[int, int]]
) -> int:
    """The last position beyond the chain that was claimed once, -1 where there is none."""
    last = -1
    for position in range(chain.next, chain.end):
        task = view.manifests[name].task(position)
        if task is None:
            continue
        key = task.task, task.round
        # A failure that this line does not know of happened after somebody claimed it.
        has_failed_since = len(view.held.get(key, ())) > len(task.failed_in)
        if key in known or has_failed_since or view.ledger.is_finished_in(*key):
            last = position
        known.add(key)
    return last
