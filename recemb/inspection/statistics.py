"""Measures of counts by id: skew, tails, drift, and what ids tell about the label.

Counts are (V,) int64 by id: 0 is out of vocabulary, the others fall from 1 on. Sums over ids go piece by piece, so that
a feature of many ids needs no further arrays of its size.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.special import entr, rel_entr

from recemb.inspection.records import FEWER_THAN, Coverage, Drift, Tail

SMOOTHING = 20.0
"""Rows at the overall rate that each id's own rows are mixed with (Micci-Barreca, "A Preprocessing Scheme for
High-Cardinality Categorical Attributes", SIGKDD Explorations 2001)."""

PSI_IDS = 20
_PIECE = 1 << 20
_DRAWN_IDS = 2_000_000  # over all random splits of one feature
_MOST_DRAWS, _LEAST_DRAWS = 20, 2


def coverage_curve(counts: np.ndarray) -> list[Coverage]:
    """Say which share of the cells the k most frequent ids hold, for k = 1, 2, 4, ..., V - 1 and V.

    The last point is 1. Out-of-vocabulary cells come last: the values behind them are rarer than all that have an id.
    """
    values = len(counts) - 1
    sizes = sorted({*(1 << power for power in range(values.bit_length())), values} - {0})
    held, points, total, at = 0, [], int(counts.sum()), 0
    for size in sizes:
        held += int(counts[1 + at : 1 + size].sum())
        at = size
        points.append(Coverage(ids=size, cells=held / total))
    return [*points, Coverage(ids=values + 1, cells=1.0)]


def ids_holding(counts: np.ndarray, shares: tuple[float, ...] = (0.5, 0.9, 0.99)) -> list[Coverage]:
    """Say how many of the most frequent ids hold each share of the cells; `Coverage.cells` is that share."""
    held, total = np.cumsum(counts[1:]), int(counts.sum())
    return [Coverage(ids=int(np.searchsorted(held, share * total)) + 1, cells=share) for share in shares]


def tails_of(counts: np.ndarray, least_count: int) -> list[Tail]:
    """Say which share of cells and ids are values seen fewer than k times, for each k in `FEWER_THAN`.

    Out-of-vocabulary training cells are values seen fewer than `least_count` times, which is all that is known of them.
    """
    total, values = int(counts.sum()), len(counts) - 1
    tails = []
    for bound in FEWER_THAN:
        frequent = int(np.searchsorted(-counts[1:], -bound, side="right"))
        cells = int(counts[1 + frequent :].sum()) + int(counts[0])
        known = bound >= least_count or counts[0] == 0
        tails.append(
            Tail(
                fewer_than=bound,
                cells=cells / total if known else None,
                ids=(values - frequent) / values if values else 0.0,
            )
        )
    return tails


def jensen_shannon_bits(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon divergence of the distributions of two (V,) counts, in bits: 0 to 1.

    The mean divergence of each from their mean (Lin, "Divergence Measures Based on the Shannon Entropy", IEEE
    Transactions on Information Theory 1991).
    """
    totals, nats = (first.sum(), second.sum()), 0.0
    for piece in _pieces(len(first)):
        p, q = first[piece] / totals[0], second[piece] / totals[1]
        middle = (p + q) / 2
        nats += float(rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2
    return min(max(nats / math.log(2), 0.0), 1.0)


def drift_between(train: np.ndarray, test: np.ndarray, least_count: int, seed: int = 0) -> Drift | None:
    """Measure how the ids of test cells are distributed otherwise than those of training cells.

    Two finite samples of one distribution differ, and more so the longer its tail. What that comes to is measured on
    the training cells alone: a random part of them as large as test (half of them at most) stands for test, the rest
    for training, and values that the rest holds fewer than `least_count` times fall out of the vocabulary. That
    rest is smaller than the training rows, and so more values fall out; the same is done with still fewer cells, and
    the expectation under no drift is extrapolated from both in the logarithm of the number of cells. The cells of a
    value are drawn independently (binomial), as those of independent rows are.

    Returns:
        None where there is no cell in training or test.
    """
    totals = int(train.sum()), int(test.sum())
    if not all(totals):
        return None
    random, share = np.random.default_rng(seed), min(totals[1] / totals[0], 0.5)
    draws = range(min(max(_DRAWN_IDS // len(train), _LEAST_DRAWS), _MOST_DRAWS))
    chance = [_by_chance(train, share, 1.0, least_count, random) for _ in draws]
    # Training and test together are 1 + share times the training cells; this is as far below as they are above.
    fewer = [_by_chance(train, share, 1 / (1 + share), least_count, random) for _ in draws]
    bits, expected = jensen_shannon_bits(train, test), max(2 * float(np.mean(chance)) - float(np.mean(fewer)), 0.0)
    psi, psi_expected = _stability(train, test)
    return Drift(
        bits=bits,
        expected=expected,
        expected_std=float(np.std(chance, ddof=1)),
        excess=max(bits - expected, 0.0),
        psi=psi,
        psi_expected=psi_expected,
    )


def _by_chance(counts: np.ndarray, share: float, kept: float, least_count: int, random: np.random.Generator) -> float:
    """Keep a random part of the cells, take `share` of all cells from it, and measure how far the rest is from that."""
    apart, rest = np.empty_like(counts), np.empty_like(counts)
    for piece in _pieces(len(counts)):
        pool = counts[piece] if kept == 1 else random.binomial(counts[piece], kept)
        apart[piece] = random.binomial(pool, min(share / kept, 1.0))
        rest[piece] = pool - apart[piece]
    rare = rest < least_count
    rare[0] = False
    for one in (apart, rest):
        one[0] += one[rare].sum()
        one[rare] = 0
    return jensen_shannon_bits(rest, apart) if apart.any() and rest.any() else 0.0


def _stability(train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Population stability index, Σ (q - p) ln(q / p), and its expectation when both are samples of one distribution.

    Half a cell is added to each bin, so that none is empty. The expectation is that of a chi-squared variable
    (Yurdakul, "Statistical Properties of Population Stability Index", Western Michigan University 2018).
    """
    bins = [np.append(counts[1 : 1 + PSI_IDS], counts[0] + counts[1 + PSI_IDS :].sum()) for counts in (train, test)]
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in bins)
    number = int(np.count_nonzero(bins[0] + bins[1]))
    expected = (number - 1) * (1 / bins[0].sum() + 1 / bins[1].sum())
    return float(((q - p) * np.log(q / p)).sum()), float(expected)


def mutual_information_bits(counts: np.ndarray, positives: np.ndarray) -> float:
    """Mutual information of id and binary label, in bits, less the bias of finite samples; at least 0.

    The estimate from observed shares is too high by about (ids seen - 1) / 2N nats, which is taken off (Miller, "Note
    on the Bias of Information Estimates", 1955). With many ids seen once or twice that is too little, and the gain in
    validation logloss is what to go by.
    """
    total, seen, conditional = int(counts.sum()), 0, 0.0
    for piece in _pieces(len(counts)):
        n = counts[piece]
        there = n > 0
        rate = positives[piece][there] / n[there]
        seen += int(np.count_nonzero(there))
        conditional += float((n[there] * (entr(rate) + entr(1 - rate))).sum())
    rate = positives.sum() / total
    nats = float(entr(rate) + entr(1 - rate)) - conditional / total - (seen - 1) / (2 * total)
    return max(nats / math.log(2), 0.0)


def encode_target(counts: np.ndarray, positives: np.ndarray, rate: float) -> np.ndarray:
    """Give each id its positive rate in training, mixed with `SMOOTHING` rows at the overall rate: (V,) float32."""
    encoded = np.empty(len(counts), dtype=np.float32)
    for piece in _pieces(len(counts)):
        encoded[piece] = (positives[piece] + SMOOTHING * rate) / (counts[piece] + SMOOTHING)
    return encoded


def _pieces(length: int) -> Iterator[slice]:
    for start in range(0, length, _PIECE):
        yield slice(start, start + _PIECE)
