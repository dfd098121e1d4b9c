"""Spending a budget over blocks: against every plan there is, and what any plan must keep to."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.budget import TooSmallBudgetError
from recemb.tables.allocation import ROUNDING, Held, Worth, allocate, block_stops, choices
from recemb.tables.precision import PRECISIONS, held_as, row_bytes


def nothing_beside(runs: list[list[Held]]) -> int:
    return 0


def eight_a_run(runs: list[list[Held]]) -> int:
    return 8 * sum(map(len, runs))


def cost_of(worths: list[Worth], plan: list[list[Held]]) -> float:
    """Id by id: what its row leaves out."""
    cost = 0.0
    for worth, runs in zip(worths, plan, strict=True):
        starts = [0, *worth.stops[:-1]]
        for start, stop, losses in zip(starts, worth.stops, worth.losses, strict=True):
            for one in range(start, stop):
                mine = losses / (stop - start)
                held = next((run for run in runs if one < run.stop), None)
                kept = 0.0 if held is None else mine[: held.width].sum() * (1 - ROUNDING[held.precision])
                cost += mine.sum() - kept
    return cost


def bytes_of(plan: list[list[Held]]) -> int:
    total = 0
    for runs in plan:
        start = 0
        for run in runs:
            total += (run.stop - start) * row_bytes(run.width, run.precision)
            start = run.stop
    return total


def every_plan(worths: list[Worth], coarsest: str):
    """Every choice for every block, without holes."""
    options = choices(worths[0].losses.shape[1], coarsest)
    of_tables = []
    for worth in worths:
        plans = []
        for chosen in itertools.product(options, repeat=len(worth.stops)):
            rows = [choice.width > 0 for choice in chosen]
            if rows[0] and rows == sorted(rows, reverse=True):
                held = zip(worth.stops, chosen, strict=True)
                plans.append([Held(int(stop), one.width, one.precision) for stop, one in held if one.width])
        of_tables.append(plans)
    return itertools.product(*of_tables)


def random_worths(seed: int, tables: int = 2, dim: int = 2) -> list[Worth]:
    random = np.random.default_rng(seed)
    worths = []
    for _ in range(tables):
        stops = np.cumsum([1, *random.integers(1, 6, size=2)])
        losses = random.exponential(size=(3, dim)) * random.exponential(size=(3, 1)) * 10
        worths.append(Worth(stops, -np.sort(-losses, axis=1)))
    return worths


@pytest.mark.wide
@pytest.mark.parametrize("seed", range(12))
def test_no_plan_is_much_better(seed: int):
    worths = random_worths(seed)
    plans = [(bytes_of(plan), cost_of(worths, list(plan))) for plan in every_plan(worths, "fp16")]
    everything = cost_of(worths, [[Held(0, 1, "fp32")], [Held(0, 1, "fp32")]])
    for budget in (12, 24, 40, 80):
        plan = allocate(worths, budget, "fp16", nothing_beside, "a plan")
        assert bytes_of(plan) <= budget
        best = min(cost for size, cost in plans if size <= budget)
        # A price for a byte finds plans on the convex hull, and parts of blocks fill what that leaves.
        assert cost_of(worths, plan) <= best + 0.05 * everything


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    share=st.floats(0.02, 1.2),
    coarsest=st.sampled_from(PRECISIONS),
    dim=st.sampled_from([1, 3, 8, 17]),
)
def test_every_plan_keeps_to_its_budget_and_has_no_holes(seed: int, share: float, coarsest: str, dim: int):
    worths = random_worths(seed, tables=3, dim=dim)
    budget = int(share * 4 * dim * sum(int(worth.stops[-1]) for worth in worths)) + 24 + 24
    plan = allocate(worths, budget, coarsest, eight_a_run, "a plan")
    assert bytes_of(plan) + eight_a_run(plan) <= budget
    for worth, runs in zip(worths, plan, strict=True):
        stops = [run.stop for run in runs]
        assert stops == sorted(set(stops))
        assert stops[0] >= 1
        assert stops[-1] <= worth.stops[-1]
        for run in runs:
            assert held_as(run.width, run.precision) == run.precision
            assert PRECISIONS.index(run.precision) <= PRECISIONS.index(coarsest)
        for one, next_one in itertools.pairwise(runs):
            assert one[1:] != next_one[1:]


def test_bytes_go_where_they_are_worth_most():
    stops = block_stops(1000)
    falling = np.outer(1.0 / np.arange(1, len(stops) + 1), [4.0, 2.0, 1.0, 0.5])
    dull, telling = Worth(stops, falling / 100), Worth(stops, falling)
    plan = allocate([dull, telling], 2000, "fp16", nothing_beside, "a plan")
    assert bytes_of(plan[:1]) < 0.2 * bytes_of(plan[1:])
    widths = [run.width for run in plan[1]]
    assert widths == sorted(widths, reverse=True)  # what is worth less for an id gets narrower rows
    nothing = Worth(stops, falling * 0)
    assert bytes_of(allocate([nothing, telling], 2000, "fp16", nothing_beside, "a plan")[:1]) == 2


def test_more_bytes_cost_less():
    worths = random_worths(3, tables=4, dim=8)
    costs = [cost_of(worths, allocate(worths, budget, "int8", eight_a_run, "")) for budget in range(150, 1200, 50)]
    assert costs[0] > 4 * costs[-1]
    assert all(later <= earlier * 1.02 + 1e-9 for earlier, later in itertools.pairwise(costs))


def test_rounding_is_no_free_lunch():
    """With bytes for everything rows are whole; with fewer, bits go first, and only as far as they blur little."""
    stops = block_stops(40)
    worth = Worth(stops, np.ones((len(stops), 16)))
    plan = allocate([worth], 40 * 16 * 4, "int2", nothing_beside, "a plan")
    assert plan == [[Held(40, 16, "fp32")]]
    held = {run.precision for run in allocate([worth], 40 * 20, "int2", nothing_beside, "a plan")[0]}
    assert held <= {"int8", "int4"}


def test_too_small_a_budget_names_the_least():
    worths = random_worths(0)
    with pytest.raises(TooSmallBudgetError, match=r"my plan cannot be made as small .* least possible is"):
        allocate(worths, 3, "fp16", eight_a_run, "my plan")


def test_blocks_grow():
    assert block_stops(1).tolist() == [1]
    assert block_stops(2).tolist() == [1, 2]
    stops = block_stops(1_000_000)
    assert stops[:6].tolist() == [1, 2, 3, 4, 6, 9]
    assert stops[-1] == 1_000_000
    assert len(stops) < 40
