"""The hidden teacher of the generated rows: what decides how likely a row is a click."""

import math

import numpy as np

from recemb.datasets.counter import key_of
from recemb.datasets.synthetic_shape import Shape

# Shares of the variance of the logit.
_VALUES, _PAIRS, _DENSE = 0.6, 0.2, 0.2
_PAIR_COUNT = 24
_LATENT_BITS = np.uint64(0xFF)


class Teacher:
    """A logit that adds a weight for every categorical value, products of latent vectors, and curves of the integers.

    A value's hash is all it needs: 48 bits give its weight, nearly normal (how many of them are set), and 8 bits its
    latent vector of eight signs, whose inner product with another is a matter of counting bits that differ.

    Args:
        shape: of the data set.
        seed: of the data set.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        self._integers = list(shape.integers.values())
        random = np.random.default_rng(key_of(seed, 6))
        pairs = [(f, g) for g in range(len(shape.categories)) for f in range(g)]
        self._pairs = [pairs[i] for i in random.choice(len(pairs), min(_PAIR_COUNT, len(pairs)), replace=False)]
        self._slopes = random.choice([-1.0, 1.0], len(self._integers)) * random.uniform(0.7, 1.3, len(self._integers))
        self._missing = random.normal(0.0, 0.7, len(self._integers))
        self._centers = [math.log1p(each.median) for each in self._integers]
        self._parts = [(0.0, 1.0)] * 3
        self._scale = 1.0
        self._bias = 0.0

    def probability(self, hashes: list[np.ndarray], dense: list[np.ndarray]) -> np.ndarray:
        """Return the (n,) float64 probability of label 1.

        Args:
            hashes: F arrays (n,) uint64, of the categorical values.
            dense: K arrays (n,) float32, NaN = missing.
        """
        return _sigmoid(self._score(hashes, dense) * self._scale + self._bias)

    def calibrate(self, hashes: list[np.ndarray], dense: list[np.ndarray], auc: float, positive_rate: float) -> None:
        """Set strength and bias such that the given rows have this AUC and this share of ones, in expectation."""
        self._parts = [
            (float(part.mean()), math.sqrt(share) / max(float(part.std()), 1e-12))
            for part, share in zip(self._raw(hashes, dense), (_VALUES, _PAIRS, _DENSE), strict=True)
        ]
        score = np.sort(self._score(hashes, dense))
        low, high = 0.0, 16.0
        for _ in range(30):
            self._scale = (low + high) / 2
            self._bias = _bias_for(score * self._scale, positive_rate)
            below = _expected_auc(_sigmoid(score * self._scale + self._bias)) < auc
            low, high = (self._scale, high) if below else (low, self._scale)

    def _score(self, hashes: list[np.ndarray], dense: list[np.ndarray]) -> np.ndarray:
        score = np.zeros(len(hashes[0]))
        for part, (mean, scale) in zip(self._raw(hashes, dense), self._parts, strict=True):
            score += (part - mean) * scale
        return score

    def _raw(self, hashes: list[np.ndarray], dense: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the three parts of the logit, each (n,), before they are centred and scaled."""
        n = len(hashes[0])
        values, differing = np.zeros(n, dtype=np.int16), np.zeros(n, dtype=np.int16)
        for bits in hashes:
            values += np.bitwise_count(bits >> np.uint64(16))
        for f, g in self._pairs:
            differing += np.bitwise_count((hashes[f] ^ hashes[g]) & _LATENT_BITS)
        curves = np.zeros(n)
        for j, column in enumerate(dense):
            curves += self._curve(j, column)
        return values, -differing, curves

    def _curve(self, feature: int, column: np.ndarray) -> np.ndarray:
        """Return the (n,) effect of one integer feature: straight, one hump, or a wave, in turns."""
        x = (column.astype(np.float64) - self._centers[feature]) / self._integers[feature].spread
        if feature % 3 == 0:
            effect = np.clip(x / 1.5, -2.0, 2.0)
        elif feature % 3 == 1:
            effect = 1.0 - np.minimum(x * x / 2.0, 2.0)
        else:
            effect = np.sin(1.5 * x)
        effect *= self._slopes[feature]
        effect[np.isnan(column)] = self._missing[feature]
        return effect


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


def _bias_for(logit: np.ndarray, positive_rate: float) -> float:
    low, high = -64.0, 64.0
    for _ in range(36):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(logit + middle).mean() < positive_rate else (low, middle)
    return (low + high) / 2


def _expected_auc(probability: np.ndarray) -> float:
    """Return the AUC of (n,) rising probabilities when labels are drawn from them."""
    negative = 1.0 - probability
    below = np.cumsum(negative) - negative / 2
    return float((probability * below).sum() / (probability.sum() * negative.sum()))
