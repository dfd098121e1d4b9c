"""One number for a series of tables, and what quality costs in it: areas and crossings of quality over log2(bytes)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

CHANCE = 0.5  # the AUC of a coin

SizeAndQuality = tuple[float, float]


class Reached(NamedTuple):
    """Bytes at which a series reaches a quality; `at_most` where its smallest table already does."""

    bytes: float
    at_most: bool


def hypervolume(points: Sequence[SizeAndQuality], low: float, high: float, reference: float = CHANCE) -> float | None:
    """Mean height above a reference of the best that a series buys with a number of bytes, over all numbers of bytes.

    That is the area under the series' own Pareto staircase over log2(bytes) between two bounds, divided by their
    distance: the hypervolume indicator of Zitzler & Thiele, "Multiobjective Optimization Using Evolutionary
    Algorithms", PPSN 1998, in units of AUC. Sizes below a series' smallest table count as nothing.

    Args:
        points: bytes and mean AUC of each table.
        low: bytes from which, the same for all series that are compared.
        high: bytes up to which, likewise.
        reference: AUC that counts as nothing.

    Returns:
        The mean height, None where the bounds leave no room.

    Example:
        >>> hypervolume([(2, 0.7), (8, 0.8)], low=1, high=16)
        0.175
    """
    if not 0 < low < high:
        return None
    area, best = 0.0, reference
    inside = sorted((min(max(size, low), high), quality) for size, quality in points if size <= high)
    for (size, quality), following in zip(inside, [*(size for size, _ in inside[1:]), high], strict=True):
        best = max(best, quality)
        area += (best - reference) * math.log2(following / size)
    return area / math.log2(high / low)


def bytes_to_reach(points: Sequence[SizeAndQuality], target: float) -> Reached | None:
    """Find the fewest bytes at which the line through a series reaches a quality; lines are straight over log2(bytes).

    Args:
        points: bytes and mean AUC of each table.
        target: AUC to reach.

    Returns:
        The bytes, None where no table of the series is as good.

    Example:
        >>> bytes_to_reach([(4, 0.70), (16, 0.74)], 0.72)
        Reached(bytes=8.0, at_most=False)
    """
    # Of tables of one size the best counts.
    best: dict[float, float] = {}
    for size, quality in points:
        best[size] = max(quality, best.get(size, -math.inf))
    last: SizeAndQuality | None = None
    for size, quality in sorted(best.items()):
        if quality >= target:
            if last is None:
                return Reached(size, at_most=True)
            share = (target - last[1]) / (quality - last[1])
            return Reached(last[0] * (size / last[0]) ** share, at_most=False)
        last = (size, quality)
    return None
