"""The paired bootstrap: against scikit-learn on repeated rows, and its error rates where the truth is known."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recemb.report import bootstrap
from recemb.report.bootstrap import Replicates, auc_components, compare, compare_two, row_losses, row_replicates

SIMULATIONS, ROWS, REPLICATES = 300, 300, 250


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(1, 3)), min_size=2, max_size=60))
def test_auc_of_repeated_and_tied_rows_is_scikit_learns(rows):
    scores, labels, counts = (np.array(column) for column in zip(*rows, strict=True))
    if len(set(labels)) < 2:
        return
    scores, labels = np.repeat(scores / 6, counts), np.repeat(labels, counts)
    components = auc_components(labels, scores)
    for label in (0, 1):
        assert components[labels == label].mean() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert row_losses(labels, scores * 0.9 + 0.05).mean() == pytest.approx(
        log_loss(labels, scores * 0.9 + 0.05, labels=[0, 1])
    )


def two_models(rows=1500, seed=0, digits=None):
    random = np.random.default_rng(seed)
    truth = random.normal(-1, 1, rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(-truth))).astype(int)
    logits = [truth + random.normal(0, noise, rows) for noise in (0.5, 0.6)]
    scores = [1 / (1 + np.exp(-logit)) for logit in logits]
    return labels, *(np.round(score, digits) if digits else score for score in scores)


@pytest.mark.parametrize("digits", [None, 2])
def test_replicates_are_the_metrics_of_the_drawn_rows(digits):
    labels, one, other = two_models(digits=digits)
    one, other = np.clip(one, 0.01, 0.99), np.clip(other, 0.01, 0.99)
    drawn = bootstrap._draws(len(labels), 60, 0)
    found = [row_replicates(labels, score, 60) for score in (one, other)]
    for metric, exact in (("auc", roc_auc_score), ("logloss", log_loss)):
        wanted = [[exact(labels, score, sample_weight=count) for count in drawn] for score in (one, other)]
        changes = found[1][metric].resampled - found[0][metric].resampled
        exactly = np.subtract(wanted[1], wanted[0])
        assert found[0][metric].value == pytest.approx(exact(labels, one))
        # The remainder of the AUC's linear form is small against what the rows leave open.
        assert (changes - exactly).std() < 0.1 * exactly.std()
        assert changes.std() == pytest.approx(exactly.std(), rel=0.03)


def test_groups_of_rows_leave_the_same_interval_as_single_rows(monkeypatch):
    labels, one, other = two_models(rows=6000)
    single = compare_two(labels, one, other)
    monkeypatch.setattr(bootstrap, "MOST_GROUPS", 1000)
    grouped = compare_two(labels, one, other)
    for metric in single:
        assert grouped[metric].mean == single[metric].mean
        assert grouped[metric].reach == pytest.approx(single[metric].reach, rel=0.1)


def test_one_class_has_no_auc_to_compare():
    labels, one, other = two_models(rows=100)
    found = compare_two(np.ones_like(labels), one, other)
    assert math.isnan(found["auc"].mean)
    assert found["logloss"].low < found["logloss"].mean < found["logloss"].high


def test_a_model_does_not_differ_from_itself():
    labels, one, _ = two_models(rows=200)
    found = compare_two(labels, one, one)["auc"]
    assert (found.mean, found.low, found.high, found.told_apart) == (0, 0, 0, False)


def test_without_rows_the_interval_is_students_over_paired_seeds():
    one = {seed: Replicates(value, np.full(2000, value)) for seed, value in enumerate((0.71, 0.74, 0.72))}
    other = {seed: Replicates(0.7, np.full(2000, 0.7)) for seed in (0, 1, 2, 7)}
    found = compare(one, other)
    reach = 4.303 * np.std([0.71, 0.74, 0.72], ddof=1) / math.sqrt(3)
    assert (found.seeds, found.paired) == (3, True)
    assert found.mean == pytest.approx(0.07 / 3)
    assert found.reach == pytest.approx(reach, rel=0.02)
    assert found.error_of_rows == 0


def test_seeds_in_common_are_paired_and_others_vary_by_themselves():
    random = np.random.default_rng(0)
    luck = random.normal(0, 0.01, 6)

    def point(auc, seeds):
        return {seed: Replicates(auc + luck[seed], auc + luck[seed] + np.zeros(2000)) for seed in seeds}

    paired = compare(point(0.71, (0, 1, 2)), point(0.7, (0, 1, 2, 3)))
    alone = compare(point(0.71, (0, 1, 2)), point(0.7, (3, 4, 5)))
    single = compare(point(0.71, (0, 1, 2)), point(0.7, (2,)))
    assert (paired.seeds, paired.paired, alone.seeds, alone.paired, single.seeds) == (3, True, 3, False, 1)
    assert paired.reach < 1e-9 < 0.01 < alone.reach
    assert single.mean == pytest.approx(0.01)


class World:
    """Labels and scores of two methods over seeds, whose expected AUCs are known.

    A row's score is its class's mean, plus luck of the row that all models share, plus luck of the row with one model.
    A seed moves the classes apart for both methods alike, and for each by itself. With normal effects the AUC of an
    average seed is the normal distribution's at the distance over the root of all variances.
    """

    def __init__(self, *, distances=(1.0, 1.0), own=0.7, shared=0.7, of_seed=0.3, of_run=0.1, seeds=3):
        self.distances, self.own, self.shared = distances, own, shared
        self.of_seed, self.of_run, self.seeds = of_seed, of_run, seeds

    @property
    def difference(self):
        spread = math.sqrt(2 * (self.own**2 + self.shared**2) + self.of_seed**2 + self.of_run**2)
        one, other = (NormalDist().cdf(distance / spread) for distance in self.distances)
        return one - other

    def draw(self, random):
        labels = (random.random(ROWS) < 0.3).astype(int)
        of_row, of_seed = random.normal(0, self.shared, ROWS), random.normal(0, self.of_seed, self.seeds)
        points = []
        for distance in self.distances:
            runs = {}
            for seed in range(self.seeds):
                distance_here = distance + of_seed[seed] + random.normal(0, self.of_run)
                score = labels * distance_here + of_row + random.normal(0, self.own, ROWS)
                runs[seed] = row_replicates(labels, 1 / (1 + np.exp(-score)), REPLICATES)
            points.append(runs)
        return points

    def share_of_intervals(self, interval, wanted, metric="auc"):
        """Give the share of simulated intervals that hold a value."""
        random = np.random.default_rng(0)
        held = 0
        for _ in range(SIMULATIONS):
            one, other = ({seed: run[metric] for seed, run in runs.items()} for runs in self.draw(random))
            low, high = interval(one, other)
            held += low <= wanted <= high
        return held / SIMULATIONS


def ours(one, other):
    found = compare(one, other)
    return found.low, found.high


def rows_only(one, other):
    return np.quantile(np.mean([one[s].resampled - other[s].resampled for s in one], axis=0), [0.025, 0.975])


def unpaired(one, other):
    shuffled = {seed + 100: run._replace(resampled=np.random.default_rng(seed).permutation(run.resampled))
                for seed, run in other.items()}  # fmt: skip
    return ours(one, shuffled)


def both_drawn(one, other):
    """Draw rows and seeds with replacement, the textbook's two-way percentile interval."""
    random = np.random.default_rng(0)
    resampled = np.stack([one[seed].resampled - other[seed].resampled for seed in one])
    seeds = random.integers(len(resampled), size=(resampled.shape[1], len(resampled)))
    return np.quantile(np.take_along_axis(resampled.T, seeds, axis=1).mean(axis=1), [0.025, 0.975])


# Three binomial standard errors of 300 simulations around 95 %, but for rows whose luck is small beside few seeds'.
NOMINAL = (0.915, 0.985)

WORLDS = {
    "different": World(distances=(1.2, 1.0)),
    "five seeds": World(distances=(1.2, 1.0), seeds=5),
    "seeds differ much": World(distances=(1.1, 1.0), of_run=0.3),
    "rows differ much from seed to seed": World(own=1.5, of_run=0.0, seeds=4),
    "rows are all there is": World(own=0.1, of_run=0.0),
}


@pytest.mark.wide
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_its_intervals_hold_the_known_difference_as_often_as_they_say(world):
    assert NOMINAL[0] <= world.share_of_intervals(ours, world.difference) <= NOMINAL[1]


@pytest.mark.wide
@pytest.mark.parametrize("metric", ["auc", "logloss"])
def test_equal_methods_are_told_apart_one_time_in_twenty(metric):
    told_apart = 1 - World().share_of_intervals(ours, 0.0, metric)
    assert 1 - NOMINAL[1] <= told_apart <= 1 - NOMINAL[0]


@pytest.mark.wide
def test_a_real_difference_is_found():
    assert World(distances=(1.8, 1.0), seeds=5).share_of_intervals(ours, 0.0) < 0.2


@pytest.mark.wide
@pytest.mark.parametrize(
    ("interval", "world"),
    [
        (rows_only, World()),  # as if other seeds would show the same: too narrow
        (unpaired, World(of_run=0.0, own=0.1)),  # as if the shared luck were not shared: too wide
        (both_drawn, World(of_run=0.3)),  # three seeds know ten samples: too narrow
        (both_drawn, World(own=1.5, of_run=0.0, seeds=5)),  # the interaction counted three times: too wide
    ],
)
def test_what_it_is_not_would_be_caught(interval, world):
    share = world.share_of_intervals(interval, world.difference)
    assert not NOMINAL[0] <= share <= NOMINAL[1]
