"""The evolutionary search: what it returns, what it tries, how it goes on, and that it beats chance."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.options import RecembError
from recemb.search import evolve

FIELDS, WIDEST = 39, 64

searches = st.fixed_dictionaries(
    {
        "most": st.lists(st.integers(1, 6), min_size=1, max_size=5),
        "rounds": st.integers(1, 6),
        "mutants": st.integers(1, 5),
        "crossovers": st.integers(0, 5),
        "parents": st.integers(2, 8),
        "mutation": st.sampled_from([0.0, 0.1, 1.0]),
        "seed": st.integers(0, 2**62),
    }
)


class Recorder:
    """Gives few different fitness values, so that there are ties, and some of none; remembers what it was asked."""

    def __init__(self, salt=0, impossible=0.2):
        self.salt = salt
        self.impossible = impossible
        self.asked = []
        self.fitness = []

    def __call__(self, candidate):
        draw = random.Random(f"{self.salt} {tuple(candidate)}")
        fitness = draw.choice([math.nan, -math.inf]) if draw.random() < self.impossible else draw.randint(-4, 4) / 4
        self.asked.append((candidate, tuple(candidate)))
        self.fitness.append(fitness)
        return fitness

    @property
    def tried(self):
        """Fitness by candidate in the order of asking, NaN as -inf."""
        numbers = [-math.inf if math.isnan(fitness) else fitness for fitness in self.fitness]
        return dict(zip([copy for _, copy in self.asked], numbers, strict=True))


def search(record, options, **more):
    """Search, or return None where nothing was possible."""
    try:
        return evolve(record, **options, **more)
    except RecembError:
        assert max(record.tried.values(), default=-math.inf) == -math.inf
        return None


def ranked(tried):
    return sorted(tried, key=lambda candidate: -tried[candidate])


@given(searches, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_the_best_that_was_ever_tried_is_found_and_nothing_is_tried_twice(options, salt):
    record, seen = Recorder(salt), []
    found = search(record, options, on_round=lambda number, so_far: seen.append((number, so_far)))
    most = options["most"]
    assert set(Counter(copy for _, copy in record.asked).values()) == {1}
    for candidate, copy in record.asked:
        assert isinstance(candidate, tuple)
        assert candidate == copy
        assert len(copy) == len(most)
        assert all(1 <= number <= largest for number, largest in zip(copy, most, strict=True))
    a_round = options["mutants"] + options["crossovers"]
    assert len(record.asked) == min(a_round * (options["rounds"] + 1), math.prod(most))
    if found is None:
        return
    tried = record.tried
    assert found.best == ranked(tried)[0]
    assert found.fitness == tried[found.best] == max(tried.values())
    assert found.evaluated == len(tried)
    values = list(tried.values())
    sizes = [min(a_round * (number + 1), len(tried)) for number in range(1, len(seen) + 1)]
    assert found.history == [(size, max(values[:size])) for size in sizes]
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))
    for number, so_far in seen:
        assert so_far.history == found.history[:number]
        assert so_far.best == ranked(dict(list(tried.items())[: so_far.evaluated]))[0]


@given(searches, st.integers(0, 2**32), st.data())
@settings(max_examples=200, deadline=None)
def test_a_search_goes_on_where_it_was_cut_short_and_ends_the_same(options, salt, data):
    whole = Recorder(salt)
    found = search(whole, options)
    cut = data.draw(st.integers(0, len(whole.asked)), label="cut")
    # In any order: a file of them need not be in that of the trials.
    known = data.draw(st.permutations(list(whole.tried.items())[:cut]), label="known")
    again = Recorder(salt)
    assert search(again, options, known=dict(known)) == found
    assert again.asked == whole.asked[cut:]


@given(searches, st.integers(0, 2**32), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_nothing_outside_is_drawn_from(options, salt, outside):
    random.seed(outside)
    np.random.seed(outside)
    state = random.getstate()
    one, other = Recorder(salt), Recorder(salt)
    assert search(one, options) == search(other, options)
    assert one.asked == other.asked
    assert random.getstate() == state


def test_another_seed_searches_elsewhere():
    one, other = Recorder(), Recorder()
    evolve(one, [50] * 8, seed=1)
    evolve(other, [50] * 8, seed=2)
    assert len(one.tried.keys() & other.tried.keys()) < 10


def rounds_of(record, first, a_round):
    """Yield for each round what was tried before it and its children."""
    order = list(record.tried)
    for start in range(first, len(order), a_round):
        yield {candidate: record.tried[candidate] for candidate in order[:start]}, order[start : start + a_round]


def test_mutants_come_from_the_best_so_far_and_change_the_share_asked_for():
    record, changed = Recorder(), []
    evolve(record, [1000] * 20, rounds=40, mutants=10, crossovers=0, parents=4, mutation=0.1)
    for before, children in rounds_of(record, 10, 10):
        for child in children:
            distances = [sum(map(int.__ne__, child, parent)) for parent in ranked(before)[:4]]
            changed.append(min(distances))
    assert min(changed) == 1
    # 20 numbers at 0.1 each, and one number where chance would have changed none.
    assert np.mean(changed) == pytest.approx(2 + 0.9**20, abs=0.25)


def test_a_mutation_of_zero_still_changes_one_number():
    record = Recorder()
    evolve(record, [1000] * 20, rounds=20, mutants=10, crossovers=0, parents=4, mutation=0)
    for before, children in rounds_of(record, 10, 10):
        for child in children:
            assert min(sum(map(int.__ne__, child, parent)) for parent in ranked(before)[:4]) == 1


def test_children_of_two_have_each_number_from_either():
    record, shares = Recorder(), []
    evolve(record, [1000] * 20, rounds=3, mutants=0, crossovers=10, parents=4)
    for before, children in rounds_of(record, 10, 10):
        elite = ranked(before)[:4]
        for child in children:
            pairs = [(one, other) for one in elite for other in elite if one != other]
            mixes = [
                sum(number == a for number, a in zip(child, one, strict=True))
                for one, other in pairs
                if all(number in (a, b) for number, a, b in zip(child, one, other, strict=True))
            ]
            assert mixes
            assert all(0 < share < 20 for share in mixes)
            shares += mixes[:1]
    assert np.mean(shares) > 8  # nobody's copy with a number changed


def test_only_possible_candidates_have_children_once_there_are_any():
    possible = [(5,) * 12, (7,) * 12]
    record = Recorder()

    def evaluate(candidate):
        record(candidate)
        return 1.0 if set(candidate) <= {5, 7} else -math.inf

    evolve(evaluate, [1000] * 12, rounds=1, mutants=0, crossovers=8, start=possible)
    order = list(record.tried)
    assert order[:2] == possible
    assert len(order) == 16
    assert all(set(child) == {5, 7} for child in order[8:])


def test_impossible_candidates_have_children_while_there_are_no_others():
    calls = []

    def evaluate(candidate):
        calls.append(candidate)
        return 0.0 if len(calls) == 21 else math.nan

    found = evolve(evaluate, [1000] * 12, rounds=1)
    assert found.best == calls[20]
    # A mutant of what was impossible, not just anything.
    assert min(sum(map(int.__ne__, found.best, parent)) for parent in calls[:15]) < 6


def test_a_search_begins_with_what_it_is_given():
    record = Recorder()
    given_first = [(3, 3, 3), (1, 2, 3), (3, 3, 3)]
    evolve(record, [9, 9, 9], rounds=1, mutants=2, crossovers=2, start=given_first)
    assert [copy for _, copy in record.asked][:2] == [(3, 3, 3), (1, 2, 3)]
    assert len(record.asked) == len(record.tried) == 8
    many = [(number, 1, 1) for number in range(1, 10)]
    record = Recorder()
    evolve(record, [9, 9, 9], rounds=1, mutants=2, crossovers=2, start=many)
    assert list(record.tried)[:9] == many
    assert len(record.tried) == 13


def test_numbers_of_numpy_come_out_as_plain_ones():
    most = np.array([64, 64], dtype=np.int64)
    start = [tuple(np.array([64, 64]))]
    known = {tuple(np.array([64, 64])): np.float32(9.0)}
    found = evolve(lambda candidate: np.float32(1.0), most, rounds=1, start=start, known=known)
    assert json.loads(json.dumps(vars(found)))["best"] == [64, 64]
    assert found.fitness == 9.0


def test_what_is_known_to_be_best_is_found_even_where_the_search_does_not_come():
    found = evolve(lambda candidate: 0.0, [1000] * 10, rounds=1, known={(500,) * 10: 1.0, (501,) * 10: math.nan})
    assert (found.best, found.fitness) == ((500,) * 10, 1.0)
    assert found.evaluated == 40
    assert found.history == [(40, 0.0)]


@pytest.mark.parametrize("most", [[2, 3], [1, 1, 1], [6, 1, 5], [7] * 2])
def test_a_small_space_is_searched_to_its_end_and_no_further(most):
    record = Recorder(impossible=0.0)
    found = evolve(record, most, rounds=100, mutants=3, crossovers=3)
    assert found.evaluated == len(record.asked) == math.prod(most)
    assert len(found.history) == max(0, -(-math.prod(most) // 6) - 1)
    assert found.fitness == max(record.tried.values())


def landscape():
    """Make a fitness of 39 widths from 1 to 64: gains that saturate, a cost, and some interactions."""
    draw = np.random.default_rng(39)
    gain = draw.lognormal(0.0, 1.0, FIELDS)
    pace = draw.uniform(1.0, 24.0, FIELDS)
    ones, others = draw.choice(FIELDS, (2, 12), replace=False)
    strength = draw.normal(0.0, 1.0, 12)

    def fitness(candidate):
        reached = 1 - np.exp(-np.array(candidate) / pace)
        together = strength @ np.sqrt(reached[ones] * reached[others])
        return float(gain @ reached + together - 0.012 * sum(candidate))

    return fitness


@pytest.mark.parametrize("seed", range(20))
def test_over_39_fields_the_best_tried_is_found_and_beats_random_search(seed):
    fitness, tried = landscape(), {}

    def evaluate(candidate):
        tried[candidate] = fitness(candidate)
        return tried[candidate]

    found = evolve(evaluate, [WIDEST] * FIELDS, seed=seed)
    assert found.evaluated == len(tried) == 620
    assert found.fitness == max(tried.values()) == fitness(found.best)
    draw, chosen = random.Random(1000 + seed), set()
    while len(chosen) < found.evaluated:
        chosen.add(tuple(draw.randint(1, WIDEST) for _ in range(FIELDS)))
    assert found.fitness >= max(map(fitness, chosen))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"most": []}, r"most=\[\] must have a whole number"),
        ({"most": [3, 0]}, r"most=\[3, 0\] must have a whole number"),
        ({"most": [3, 1.5]}, r"most=\[3, 1.5\] must have a whole number"),
        ({"rounds": 0}, "rounds=0 is too small; .* at least 1"),
        ({"mutants": -1}, "mutants=-1 is too small; .* at least 0"),
        ({"crossovers": -1}, "crossovers=-1 is too small; .* at least 0"),
        ({"parents": 1}, "parents=1 is too small; .* at least 2"),
        ({"parents": 0, "crossovers": 0}, "parents=0 is too small; .* at least 1"),
        ({"mutants": 0, "crossovers": 0}, "make no children; give 1 or more"),
        ({"mutation": 1.1}, "mutation=1.1 is a probability"),
        ({"mutation": math.nan}, "mutation=nan is a probability"),
        ({"start": [(1, 2), (4, 1)]}, r"start has the candidate \(4, 1\); .* from 1 to at most \(3, 3\)"),
        ({"start": [(0, 1)]}, r"start has the candidate \(0, 1\)"),
        ({"start": [(1,)]}, r"start has the candidate \(1,\); .* each of the 2 features"),
        ({"start": [(1, 1.5)]}, r"start has the candidate \(1, 1.5\)"),
        ({"known": {(1, 2, 3): 0.5}}, r"known has the candidate \(1, 2, 3\)"),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_is_tried(options, sentence):
    record = Recorder()
    with pytest.raises(RecembError, match=sentence):
        evolve(record, **{"most": [3, 3], **options})
    assert not record.asked


def test_a_search_with_nothing_possible_says_so():
    with pytest.raises(RecembError, match="none of the 60 candidates that were tried is possible; loosen"):
        evolve(lambda candidate: math.nan, [64] * 39, rounds=2)
    with pytest.raises(RecembError, match="none of the 9 candidates"):
        evolve(lambda candidate: -math.inf, [3, 3], rounds=20)
