"""How many tasks a call has: what fits is found soon, and what was in the way once is not for ever.

Most tests play batches against a made-up memory, and count calls.
"""

from collections.abc import Callable

import pytest

from gpuspool.worker.batch_size import FIRST_PATIENCE, MOST_PATIENCE, BatchSize


class Played:
    """Batches of made-up tasks, run by a `BatchSize` in the way of the executor."""

    def __init__(self, most: int, fits: Callable[[range], bool]) -> None:
        self.size = BatchSize(most)
        self.fits = fits
        # The sizes of the calls that ran, and of those that did not fit.
        self.ran: list[int] = []
        self.refused: list[int] = []

    def play(self, tasks: int) -> None:
        """Run so many tasks, in batches of the size of the moment."""
        start = 0
        while start < tasks:
            batch = range(start, min(tasks, start + self.size.current))
            self.batch(batch)
            start = batch.stop

    def batch(self, batch: range) -> None:
        self.size.begin()
        parts = [batch]
        while parts:
            part = parts.pop(0)
            if len(part) > self.size.part:
                cut = self.size.part
                parts[:0] = [part[at : at + cut] for at in range(0, len(part), cut)]
            elif self.fits(part):
                self.ran.append(len(part))
                self.size.ran(len(part))
            else:
                self.refused.append(len(part))
                self.size.refused(len(part))
                half = (len(part) + 1) // 2
                if len(part) > 1:
                    parts[:0] = [part[:half], part[half:]]
        self.size.end(len(batch))


def test_one_giant_among_many_costs_its_own_batch_alone() -> None:
    played = Played(32, lambda part: 7 not in part or len(part) == 1)
    played.play(2000)
    assert played.size.current == 32
    assert played.refused == [32, 16, 8, 4, 2][: len(played.refused)]
    assert len(played.ran) + len(played.refused) <= 2000 / 32 + 12


@pytest.mark.parametrize("share", [50, 100, 400])
def test_giants_here_and_there_leave_most_batches_large(share: int) -> None:
    played = Played(32, lambda part: len(part) == 1 or not any(i % share == 7 for i in part))
    played.play(20_000)
    calls = len(played.ran) + len(played.refused)
    # Each giant is found by halving, whatever the size of batches is meanwhile.
    assert calls <= 4 * 20_000 / 32 + 20_000 / share * 12


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 13, 31])
def test_what_fits_is_found_at_once_and_few_calls_are_made_in_vain(limit: int) -> None:
    played = Played(32, lambda part: len(part) <= limit)
    played.play(32)
    assert len(played.refused) <= 7, "each size is tried in vain twice at most"
    played.play(10_000)
    assert len(played.refused) <= 0.05 * len(played.ran) + 20
    # Batches are powers of two of the first, so at least half of what fits.
    assert sum(played.ran) / len(played.ran) > limit / 2 - 0.5


def test_a_second_part_that_does_not_fit_spares_the_others_the_same_try() -> None:
    played = Played(8, lambda part: len(part) <= 1)
    played.play(8)
    assert played.refused == [8, 4, 2, 2]
    assert played.ran == [1] * 8


def test_the_size_grows_again_once_memory_is_there_again() -> None:
    limit = 2
    played = Played(16, lambda part: len(part) <= limit)
    played.play(64)
    assert played.size.current <= 4
    limit = 1000
    played.play(16 * MOST_PATIENCE * 4)
    assert played.size.current == 16


def test_each_try_in_vain_is_followed_by_more_patience() -> None:
    played = Played(8, lambda part: len(part) <= 4)
    played.play(200_000)
    tries = played.refused.count(8)
    assert tries <= 200_000 / 4 / MOST_PATIENCE + 2 * MOST_PATIENCE / FIRST_PATIENCE


def test_a_job_that_asks_for_one_task_at_a_time_stays_with_it() -> None:
    played = Played(1, lambda part: False)
    played.play(5)
    assert (played.size.current, played.size.refusals) == (1, 0)
