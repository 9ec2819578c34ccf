"""What may become of everything that is in doubt at a moment.

A fate is what becomes of the data of one file, a turn what becomes of everything. Each turn gives
one legal state; the random ones give another each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from torture.replay import Moment, Names, State

Fate = Callable[[bytes, bytes, random.Random], bytes]
Turn = Callable[[Moment, random.Random], State]
# The share of what is in doubt that survives a mixed turn.
SHARES = (0.2, 0.5, 0.8, 0.95)


def _common(before: bytes, after: bytes) -> int:
    """How many bytes at the beginning are equal."""
    if after.startswith(before):
        return len(before)
    pairs = enumerate(zip(before, after, strict=False))
    return next((at for at, (old, new) in pairs if old != new), min(len(before), len(after)))


def torn(before: bytes, after: bytes, rng: random.Random) -> bytes:
    """The old data and a beginning of the new."""
    common = _common(before, after)
    return after[: rng.randrange(common, len(after))] if len(after) > common else before


def zeroed(before: bytes, after: bytes, rng: random.Random) -> bytes:
    """The new length, with zeroes in place of the new data, all of it or from some byte on."""
    common = _common(before, after)
    start = rng.choice([common, rng.randint(common, len(after))])
    return after[:start] + bytes(len(after) - start)


def holed(before: bytes, after: bytes, rng: random.Random) -> bytes:
    """The new length, and a block of zeroes in the midst of the new data."""
    common = _common(before, after)
    start, stop = sorted((rng.randint(common, len(after)), rng.randint(common, len(after))))
    return after[:start] + bytes(stop - start) + after[stop:]


def lost(before: bytes, after: bytes, rng: random.Random) -> bytes:
    """Nothing of the new data."""
    return before


LOSSES: tuple[Fate, ...] = (lost, torn, zeroed, holed)


def killed(moment: Moment, rng: random.Random) -> State:
    """Nothing is lost: every process was killed at this call."""
    return moment.seen()


def bare(moment: Moment, rng: random.Random) -> State:
    """Everything in doubt is lost."""
    return moment.state([], {inode: before for inode, (before, _) in moment.data.items()})


def names_only(moment: Moment, rng: random.Random) -> State:
    """Every name is there, and no data that was not synced."""
    return moment.state(moment.names, {inode: before for inode, (before, _) in moment.data.items()})


def data_only(moment: Moment, rng: random.Random) -> State:
    """All data is there, and no name that was not synced."""
    return moment.state([], {})


def spoilt(fate: Fate) -> Turn:
    """Every name is there, and all data that was not synced has met with one fate."""

    def turn(moment: Moment, rng: random.Random) -> State:
        return moment.state(
            moment.names, {inode: fate(*both, rng) for inode, both in moment.data.items()}
        )

    return turn


def all_but_one(moment: Moment, rng: random.Random) -> State:
    """One name, or the data of one file, is lost."""
    victims: list[Names | int] = [*moment.names, *moment.data]
    if not victims:
        return moment.seen()
    victim = rng.choice(victims)
    if isinstance(victim, Names):
        return moment.state([op for op in moment.names if op is not victim], {})
    return moment.state(moment.names, {victim: rng.choice(LOSSES)(*moment.data[victim], rng)})


def only_one(moment: Moment, rng: random.Random) -> State:
    """One name, or the data of one file, is not lost."""
    data = {inode: before for inode, (before, _) in moment.data.items()}
    names: list[Names] = []
    survivors: list[Names | int] = [*moment.names, *moment.data]
    if survivors:
        survivor = rng.choice(survivors)
        if isinstance(survivor, Names):
            names = [survivor]
        else:
            del data[survivor]
    return moment.state(names, data)


def mixed(moment: Moment, rng: random.Random, share: float | None = None) -> State:
    """Everything in doubt has a fate of its own; `share` of it survives."""
    share = rng.choice(SHARES) if share is None else share
    names = [op for op in moment.names if rng.random() < share]
    data = {}
    for inode, both in moment.data.items():
        if rng.random() >= share:
            data[inode] = rng.choice(LOSSES)(*both, rng)
    return moment.state(names, data)


TURNS: dict[str, Turn] = {
    "killed": killed,
    "bare": bare,
    "names only": names_only,
    "data only": data_only,
    "torn": spoilt(torn),
    "zeroed": spoilt(zeroed),
    "holed": spoilt(holed),
    "all but one": all_but_one,
    "only one": only_one,
    "mixed": mixed,
}
