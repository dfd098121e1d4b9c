"""Random numbers by position instead of by sequence: number i depends on (seed, stream, i) and on nothing drawn before.

This is what makes a split or a generated row independent of how rows are cut into chunks.
"""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix64(x: np.ndarray) -> np.ndarray:
    """Mix (n,) uint64 in place with splitmix64's finalizer (Steele, Lea & Flood, OOPSLA 2014) and return it."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def key_of(*parts: int) -> int:
    """Mix small integers (a seed, a stream, a feature) into one 64-bit key."""
    key = 0
    for part in parts:
        key = int(mix64(np.array([(key + (part & _MASK) * _GOLDEN + _GOLDEN) & _MASK], dtype=np.uint64))[0])
    return key


def random_bits(key: int, positions: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 random bits, one for each of (n,) uint64 `positions`."""
    bits = positions * np.uint64(_GOLDEN)
    bits += np.uint64(key)
    return mix64(bits)


def random_uniform(key: int, positions: np.ndarray) -> np.ndarray:
    """Return (n,) float64 in the open interval (0, 1), one for each of (n,) uint64 `positions`."""
    uniform = (random_bits(key, positions) >> np.uint64(11)).astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-53
    return uniform
