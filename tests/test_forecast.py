"""Whether time left is true: the forecast on runs that are played in virtual time."""

import heapq
import math
import random
from collections.abc import Callable, Sequence

import pytest

from gpuspool.orchestrator.plan.create import plan
from gpuspool.orchestrator.text.forecast import SAMPLES, Forecast, Outlook, Work, learn
from gpuspool.spool.layout import attempt_name

# (begin, end, rank, task, seconds of its share)
Line = tuple[float, float, int, int, float]
LINE_BYTES = 10_000
N_TASKS = 240


def played(
    costs: Sequence[float],
    seconds: Sequence[float],
    ranks: int = 2,
    load_s: Sequence[float] = (5.0, 5.0),
    batch: int = 1,
) -> list[Line]:
    """The lines of a run in the order of their ends: planned as runs are, and each rank steals."""
    left = [list(tasks) for tasks in plan(costs, ranks)]
    free = [(load_s[rank % len(load_s)], rank) for rank in range(ranks)]
    heapq.heapify(free)
    lines: list[Line] = []
    while any(left):
        now, rank = heapq.heappop(free)
        queue = left[rank] or max(left, key=len)
        tasks = [queue.pop(0) for _ in range(min(batch, len(queue)))]
        took_s = sum(seconds[task] for task in tasks)
        lines += [(now, now + took_s, rank, task, took_s / len(tasks)) for task in tasks]
        heapq.heappush(free, (now + took_s, rank))
    return sorted(lines, key=lambda line: line[1])


def told(
    lines: Sequence[Line], costs: Sequence[float], moments: Sequence[float], finished: int = 0
) -> list[Outlook]:
    """What the forecast says at these moments. finished: so many tasks were when it began."""
    cost = sum(costs)
    done = Work(finished, cost - sum(costs[line[3]] for line in lines))
    forecast = Forecast(done)
    ranks = sorted({f"r{line[2]}" for line in lines})
    outlooks: list[Outlook] = []
    waiting = list(lines)
    for now in moments:
        while waiting and waiting[0][1] <= now:
            start, ended, rank, task, share_s = waiting.pop(0)
            at = task * LINE_BYTES
            forecast.take(f"r{rank}", at, task, start, share_s)
            forecast.note(ranks, ended)
            done = Work(done.tasks + 1, done.cost + costs[task])
        forecast.note(ranks, now)

        def in_hand(attempt: str, most: int, now: float = now) -> list[float]:
            begun = [line for line in waiting if f"r{line[2]}" == attempt and line[0] <= now]
            return [costs[line[3]] for line in begun[:most]]

        whole = Work(len(lines) + finished, cost)
        outlooks.append(
            forecast.outlook(whole, done, ranks, lambda task: costs[task], in_hand, now)
        )
    return outlooks


def errors(lines: Sequence[Line], costs: Sequence[float], load_s: float = 5.0) -> list[float]:
    """By how many times time left is wrong, from a tenth of the run on until little is left."""
    ended = lines[-1][1]
    moments = [load_s + (ended - load_s) * step / 100 for step in range(1, 96)]
    outlooks = told(lines, costs, moments)
    found: list[float] = []
    for now, outlook in list(zip(moments, outlooks, strict=True))[9:]:
        assert outlook.left_s is not None
        ratio = max(outlook.left_s, 1e-9) / (ended - now)
        found.append(max(ratio, 1 / ratio))
    return found


def sizes(rng: random.Random, n_tasks: int = N_TASKS) -> list[float]:
    """Sizes as files have them, of which the largest is some hundred times the smallest."""
    return [rng.lognormvariate(0, 1) * 1e6 for _ in range(n_tasks)]


KINDS: dict[str, Callable[[random.Random, float], float]] = {
    "equal": lambda rng, cost: rng.uniform(0.9, 1.1),
    "costs-tell": lambda rng, cost: 0.1 + cost * 1e-6 * rng.uniform(0.8, 1.2),
    "costs-lie": lambda rng, cost: rng.uniform(0.2, 1.8),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_time_left_is_within_half_from_a_tenth_of_the_run_on(kind: str, ranks: int) -> None:
    for seed in range(4):
        rng = random.Random(seed)
        costs = sizes(rng)
        seconds = [KINDS[kind](rng, cost) for cost in costs]
        found = errors(played(costs, seconds, ranks), costs)
        assert max(found) < 1.5, (seed, max(found))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing(kind: str) -> None:
    rng = random.Random(1)
    costs = sizes(rng, 6 * N_TASKS)
    seconds = [KINDS[kind](rng, cost) for cost in costs]
    assert max(errors(played(costs, seconds, batch=4), costs)) < 1.5


def test_tasks_without_any_cost_are_counted() -> None:
    costs = [0.0] * N_TASKS
    assert max(errors(played(costs, [1.0] * N_TASKS), costs)) < 1.1


def test_loading_is_not_part_of_the_rate() -> None:
    costs = [1.0] * 100
    lines = played(costs, [1.0] * 100, load_s=(1000.0, 1000.0))
    [outlook] = told(lines, costs, [1010.0])
    assert outlook.tasks_per_s == pytest.approx(2.0)
    assert outlook.left_s == pytest.approx(40.0, rel=0.2)


def test_a_rank_that_hangs_is_not_counted_on_for_ever() -> None:
    costs = [1.0] * 200
    lines = played(costs, [1.0] * 200, load_s=(0.0, 0.0))
    # Rank 1 stops after ten tasks; rank 0 goes on alone.
    alone = [line for line in lines if line[2] == 0 or line[1] <= 10.0]
    [early, late] = told(alone, costs, [11.0, 60.0])
    assert early.tasks_per_s == pytest.approx(2.0)
    assert late.tasks_per_s == pytest.approx(1.0)


def test_where_all_ranks_hang_ever_less_is_finished_a_second() -> None:
    costs = [1.0] * 40
    lines = played(costs, [1.0] * 40, load_s=(0.0, 0.0))
    # What began ten seconds after the start never ends.
    lines = [line if line[0] < 10 else (line[0], 1e6, *line[2:]) for line in lines]
    [before, later, late] = told(lines, costs, [10.0, 60.0, 300.0])
    rates = [outlook.tasks_per_s for outlook in (before, later, late)]
    assert rates[0] == pytest.approx(2.0)
    assert rates[1] is not None
    assert rates[1] < 0.5
    assert rates[2] is not None
    assert rates[2] < 0.1


def test_what_was_finished_before_this_start_says_nothing_of_its_pace() -> None:
    # 100 tasks were finished by an earlier start; this one finds 100 more.
    costs = [1.0] * 200
    lines = list(played(costs[:100], [2.0] * 100, load_s=(0.0, 0.0)))
    [outlook] = told(lines, costs[:100], [20.0], finished=100)
    assert outlook.left_s == pytest.approx(80.0, rel=0.1)


def test_added_tasks_are_left_to_do() -> None:
    forecast = Forecast(Work(0, 0.0))
    for task in range(10):
        forecast.take("r0", task * LINE_BYTES, task, float(task), 1.0)
    forecast.note(["r0"], 10.0)

    def outlook(tasks: int) -> Outlook:
        work = Work(tasks, float(tasks))
        done = Work(10, 10.0)
        return forecast.outlook(work, done, ["r0"], lambda task: 1.0, lambda name, n: [], 10.0)

    assert outlook(20).left_s == pytest.approx(10.0)
    assert outlook(110).left_s == pytest.approx(100.0)
    assert outlook(10) == Outlook(left_s=0.0)


def test_waiting_for_others_is_no_work() -> None:
    forecast = Forecast(Work(0, 0.0))
    forecast.take("r0", 0, 0, 0.0, 1.0)
    forecast.rest("r0")
    forecast.take("r0", LINE_BYTES, 1, 1000.0, 1.0)
    forecast.note(["r0"], 1001.0)
    outlook = forecast.outlook(
        Work(4, 4.0), Work(2, 2.0), ["r0"], lambda task: 1.0, lambda name, n: [], 1001.0
    )
    assert outlook.left_s == pytest.approx(2.0)


def test_ranks_that_wait_for_others_do_nothing_of_what_is_left() -> None:
    forecast = Forecast(Work(0, 0.0))
    ranks = ["r0", "r1", "r2"]
    for task in range(10):
        forecast.take(ranks[task % 2], task * LINE_BYTES, task, float(task // 2), 1.0)
    forecast.rest("r1")
    # It never had anything to do.
    forecast.rest("r2")
    forecast.note(ranks, 5.0)
    outlook = forecast.outlook(
        Work(14, 14.0), Work(10, 10.0), ranks, lambda task: 1.0, lambda name, n: [], 5.0
    )
    assert outlook.tasks_per_s == pytest.approx(1.0)
    assert outlook.left_s == pytest.approx(4.0)


def test_loading_again_in_each_fresh_process_is_part_of_the_work() -> None:
    forecast = Forecast(Work(0, 0.0))
    # Each process loads its job for 9 s, does one task in 1 s, and is recycled.
    for number in range(5):
        attempt = attempt_name(0, number)
        ended = 10.0 * (number + 1)
        forecast.take(attempt, 0, number, ended - 1.0, 1.0)
        forecast.note([attempt], ended)
        forecast.end(attempt, ended, is_recycled=True)
    outlook = forecast.outlook(
        Work(10, 10.0), Work(5, 5.0), [], lambda task: 1.0, lambda name, n: [], 50.0
    )
    # Without the 9 s of the first process, which no other one will need.
    assert outlook.left_s == pytest.approx(41.0)
    assert outlook.tasks_per_s == pytest.approx(5 / 41.0)


def test_processes_between_two_steps_of_a_task_are_part_of_the_work() -> None:
    forecast = Forecast(Work(0, 0.0))
    # Each task takes five processes of 10 s, of which only the last one finishes it.
    for number in range(25):
        attempt = attempt_name(0, number)
        ended = 10.0 * (number + 1)
        if number % 5 == 4:
            forecast.take(attempt, 0, number // 5, ended - 1.0, 1.0)
        forecast.note([attempt], ended)
        forecast.end(attempt, ended, is_recycled=True)
    outlook = forecast.outlook(
        Work(10, 10.0), Work(5, 5.0), [], lambda task: 1.0, lambda name, n: [], 250.0
    )
    # All but the first process count.
    assert outlook.left_s == pytest.approx(240.0)


def test_of_thousands_of_processes_that_ended_as_little_is_kept_as_of_one() -> None:
    n_tasks = 10 * SAMPLES
    forecast = Forecast(Work(0, 0.0))
    for task in range(n_tasks):
        attempt = attempt_name(0, task)
        forecast.take(attempt, 0, task, float(task), 1.0)
        forecast.end(attempt, task + 1.0, is_recycled=True)
    asked: list[int] = []

    def cost_of(task: int) -> float:
        asked.append(task)
        return 1.0

    done = Work(n_tasks, float(n_tasks))
    forecast.outlook(Work(2 * n_tasks, 2.0 * n_tasks), done, [], cost_of, lambda name, n: [], 0.0)
    assert len(asked) <= SAMPLES


def test_costs_that_are_too_large_to_reckon_with_are_no_time() -> None:
    costs = [1e160, 2e160, 3e160, 1e308, 1e308, 1e308, 1e308, 1e308]
    lines = played(costs, [1.0] * 8, ranks=1, load_s=(0.0,))
    [outlook] = told(lines, costs, [6.0])
    assert outlook == Outlook()


def test_the_last_task_of_a_run_counts_down() -> None:
    costs = [1.0] * 5
    lines = played(costs, [10.0] * 5, ranks=1, load_s=(0.0,))
    [early, late] = told(lines, costs, [41.0, 49.0])
    assert early.left_s == pytest.approx(9.0)
    assert late.left_s == pytest.approx(1.0)


def test_nothing_is_told_before_anything_ran() -> None:
    assert told(played([1.0], [1.0]), [1.0], [1.0]) == [Outlook()]


def test_no_rate_is_told_of_a_moment() -> None:
    costs = [1.0] * 1000
    lines = played(costs, [0.01] * 1000, load_s=(0.0, 0.0))
    [early, late] = told(lines, costs, [0.2, 1.0])
    assert early.tasks_per_s is None
    assert early.left_s == pytest.approx(4.8, rel=0.1)
    assert late.tasks_per_s == pytest.approx(200.0, rel=0.1)


def test_a_million_lines_of_tiny_tasks_are_passed_over() -> None:
    forecast = Forecast(Work(0, 0.0))
    wanted = forecast.take("r0", 0, 0, 0.0, 1e-6)
    assert wanted > 10 * 100, "else each line of a tiny task would be looked at"
    assert forecast.take("r0", wanted, 1, 1.0, 1.0) == wanted


def test_few_tasks_give_a_compromise_and_many_give_the_law() -> None:
    few = learn([(10.0, 10.0), (9.0, 9.0)])
    assert few.per_task > 0
    assert few.per_cost > 0
    many = learn([(float(cost), 2.0 * cost) for cost in range(1, 50)])
    assert many.per_cost == pytest.approx(2.0, rel=0.01)
    assert abs(many.per_task) < 0.1
    constant = learn([(float(cost), 3.0 + 0.1 * (cost % 3)) for cost in range(1, 50)])
    assert constant.seconds(1, 1.0) == pytest.approx(constant.seconds(1, 49.0), rel=0.1)


def test_a_task_of_unknown_cost_tells_nothing_of_the_law_and_counts_as_work() -> None:
    """Tasks of cost 1 take 1 s and those of 9 take 9 s; of every second one it is not known."""
    costs = [1.0 if task % 4 < 2 else 9.0 for task in range(80)]
    known = Forecast(Work(0, 0.0), lambda task: task % 2 == 0)
    at = 0.0
    for task in range(40):
        known.take("r0", task * LINE_BYTES, task, at, costs[task])
        at += costs[task]
    known.note(["r0"], at)
    outlook = known.outlook(
        Work(80, sum(costs)), Work(40, sum(costs[:40])), ["r0"],
        lambda task: costs[task] if task % 2 == 0 else math.nan, lambda name, n: [], at,
    )  # fmt: skip
    assert outlook.left_s == pytest.approx(200.0, rel=0.05)


def test_who_was_heard_of_long_ago_has_been_at_its_task_since() -> None:
    forecast = Forecast(Work(0, 0.0))
    for task in range(5):
        forecast.take("r0", task * LINE_BYTES, task, 10.0 * task, 10.0)
    forecast.note(["r0"], 59.0, {"r0": 50.0})
    outlook = forecast.outlook(
        Work(6, 6.0), Work(5, 5.0), ["r0"], lambda task: 1.0, lambda name, n: [1.0], 59.0
    )
    assert outlook.left_s == pytest.approx(1.0)


def test_a_call_that_takes_longer_than_expected_goes_on_for_half_of_what_it_is_late_by() -> None:
    forecast = Forecast(Work(0, 0.0))
    for task in range(5):
        forecast.take("r0", task * LINE_BYTES, task, 10.0 * task, 10.0)
    forecast.note(["r0"], 80.0, {"r0": 50.0})
    outlook = forecast.outlook(
        Work(6, 6.0), Work(5, 5.0), ["r0"], lambda task: 1.0, lambda name, n: [1.0], 80.0
    )
    # With the last task in hand for 30 s, the six take 80 / 6 s on average.
    assert outlook.left_s == pytest.approx((30.0 - 80 / 6) / 2)


def put_off_until(moment: float, every_s: float, is_told: bool) -> Outlook:
    """Rank 0 finishes a task a second. Rank 1 did so for ten, and takes steps of long ones then."""
    forecast = Forecast(Work(0, 0.0))
    for second in range(int(moment)):
        forecast.take("r0", 0, second, float(second), 1.0)
        if second < 10:
            forecast.take("r1", 0, 1000 + second, float(second), 1.0)
        elif is_told and second % every_s == 0:
            forecast.put_off("r1", 1, float(second), every_s)
        forecast.note(["r0", "r1"], second + 1.0)
    done = Work(int(moment) + 10, moment + 10)
    return forecast.outlook(
        Work(1000, 1000.0), done, ["r0", "r1"], lambda task: 1.0, lambda name, n: [1.0], moment
    )


def test_a_rank_whose_calls_give_no_verdict_is_at_work() -> None:
    told = put_off_until(100.0, 5.0, is_told=True)
    silent = put_off_until(100.0, 5.0, is_told=False)
    assert told.tasks_per_s is not None
    assert silent.tasks_per_s is not None
    # Two ranks at work, which finished 110 tasks in 200 s; where one is silent it does not count.
    assert told.tasks_per_s == pytest.approx(2 * 110 / 200, rel=0.03)
    assert silent.tasks_per_s == pytest.approx(110 / 110, rel=0.03)


def test_tries_that_failed_are_part_of_the_work_and_say_nothing_of_how_long_a_task_takes() -> None:
    forecast = Forecast(Work(0, 0.0))
    # Each task takes 1 s, after a first try that has failed at once, or after 3 s.
    now = 0.0
    for task in range(20):
        failed_s = 3.0 * (task % 2)
        forecast.put_off("r0", 1, now, failed_s)
        forecast.take("r0", 0, task, now + failed_s, 1.0)
        now += failed_s + 1.0
        forecast.note(["r0"], now)
    outlook = forecast.outlook(
        Work(40, 40.0), Work(20, 20.0), ["r0"], lambda task: 1.0, lambda name, n: [], now
    )
    assert outlook.tasks_per_s == pytest.approx(20 / now)
    assert outlook.left_s == pytest.approx(now, rel=0.05)
