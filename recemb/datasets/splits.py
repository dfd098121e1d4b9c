"""The named protocols: which rows are for training, which for validation, which for the test.

A protocol answers for any range of rows without looking at the others, so that no array as long as the data set is
ever held.
"""

from collections.abc import Callable

import numpy as np

from recemb.datasets.counter import key_of, random_bits

SPLITS = ("train", "valid", "test")

Protocol = Callable[[int, int, int, int], np.ndarray]


def last_day(start: int, stop: int, total: int, seed: int) -> np.ndarray:  # noqa: ARG001 - one signature for all
    """Split by time: the first 6/7 of the rows train, the rest is halved into validation and test.

    The files hold seven days in time order, so this is "train on six days, test on the seventh" of the DLRM paper
    (Naumov et al., arXiv:1906.00091).

    Returns:
        (stop - start,) uint8, indices into `SPLITS`.
    """
    train = total * 6 // 7
    valid = train + (total - train) // 2
    codes = np.zeros(stop - start, dtype=np.uint8)
    codes[max(train - start, 0) :] = 1
    codes[max(valid - start, 0) :] = 2
    return codes


def random(start: int, stop: int, total: int, seed: int) -> np.ndarray:  # noqa: ARG001 - one signature for all
    """Draw for every row by itself: 8 in 10 train, 1 validation, 1 test.

    The draw depends on (seed, row number) alone, so the three sizes are 8:1:1 in expectation and not to the row.

    Returns:
        (stop - start,) uint8, indices into `SPLITS`.
    """
    rows = np.arange(start, stop, dtype=np.uint64)
    draws = random_bits(key_of(seed, 0x5B117), rows) % np.uint64(10)
    codes = np.zeros(stop - start, dtype=np.uint8)
    codes[draws == 8] = 1
    codes[draws == 9] = 2
    return codes


PROTOCOLS: dict[str, Protocol] = {"last_day": last_day, "random": random}
