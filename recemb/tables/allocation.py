"""Spends one budget of bytes over many blocks of rows: how wide the rows of each are, and how finely they are held.

Every choice for a block has a cost, the training loss that what it leaves out would have saved, and bytes. Of all plans
within a budget the one of the least total cost is sought with a Lagrange multiplier, the price of a byte (Shoham &
Gersho, "Efficient Bit Allocation for an Arbitrary Set of Quantizers", IEEE Transactions on Acoustics, Speech, and
Signal Processing 1988): at a price every block chooses for itself, and the lowest price that fits is bisected. What
that leaves over goes to the upgrades that save the most for a byte, the last of them for a part of its block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from recemb.budget import too_small
from recemb.tables.precision import PRECISIONS, held_as, row_bytes
from recemb.tables.structure import entry_widths

ROUNDING = {"fp32": 0.0, "fp16": 1e-7, "int8": 1e-5, "int4": 4e-3, "int2": 8e-2}
"""Squared error of rows held in each precision, over their squared norm; measured on rows that were trained."""

_GROWTH = 1.6
_PRICES = 80
_TRIES = 64


class Worth(NamedTuple):
    """What the vectors of a table's ids are worth, by blocks of popularity.

    Attributes:
        stops: (n,) int64, the last id + 1 of each block, ascending; the last one is V.
        losses: (n, D) float64, not negative: what the loss over all training rows rises by where a column of the
            block's vectors is left out, the most valuable column first.
    """

    stops: np.ndarray
    losses: np.ndarray

    def total(self) -> float:
        """What the whole table is worth."""
        return float(self.losses.sum())


class Held(NamedTuple):
    """Ids up to `stop` - 1, from where the one before stops, have rows of `width` numbers held in `precision`."""

    stop: int
    width: int
    precision: str


class Choice(NamedTuple):
    """A way to hold a row; width 0 is no row."""

    width: int
    precision: str
    bytes: int


def block_stops(num_ids: int) -> np.ndarray:
    """Cut V ids into blocks that grow by a factor, id 0 being one of its own: (n,) int64, where each stops."""
    stops = [1]
    while stops[-1] < num_ids:
        stops.append(min(num_ids, max(stops[-1] + 1, int(stops[-1] * _GROWTH))))
    return np.array(stops)


def choices(dim: int, coarsest: str) -> list[Choice]:
    """List the ways to hold a row of up to D numbers, in no precision coarser than this one."""
    finer = PRECISIONS[: PRECISIONS.index(coarsest) + 1]
    found = [Choice(0, "fp32", 0)]
    for width in entry_widths(dim):
        # One that another takes no more bytes than, and is finer, is no choice.
        found += [Choice(width, one, row_bytes(width, one)) for one in finer if held_as(width, one) == one]
    return found


def allocate(
    worths: Sequence[Worth],
    budget: int,
    coarsest: str,
    overhead: Callable[[Sequence[Sequence[Held]]], int],
    what: str,
) -> list[list[Held]]:
    """Find the plan of the least cost within a budget.

    Args:
        worths: of each table, all of one D.
        budget: in bytes.
        coarsest: of `PRECISIONS`; rows are held in this one or a finer one.
        overhead: bytes beside the rows that a plan takes.
        what: is planned for, for the error.

    Returns:
        For each table its neighbouring runs, from id 0 on, of which there is one at least; ids past the last one have
        no row.

    Raises:
        TooSmallBudgetError: not even one number for each table fits.
    """
    plan = _Plan(worths, coarsest, overhead)
    least = plan.bytes()
    if least > budget:
        raise too_small(what, budget, least)
    plan.buy(budget)
    plan.spend_rest(budget)
    return plan.runs()


class _Plan:
    """A choice for each block of each table; at first the least there is.

    Args: see `allocate`.
    """

    def __init__(
        self, worths: Sequence[Worth], coarsest: str, overhead: Callable[[Sequence[Sequence[Held]]], int]
    ) -> None:
        dim = worths[0].losses.shape[1]
        self._overhead = overhead
        self._choices = choices(dim, coarsest)
        self._row_bytes = np.array([choice.bytes for choice in self._choices])
        self._stops = np.concatenate([worth.stops for worth in worths])
        self._table = np.repeat(np.arange(len(worths)), [len(worth.stops) for worth in worths])
        self._first = np.concatenate([[True], self._table[1:] != self._table[:-1]])
        before = np.where(self._first, 0, np.concatenate([[0], self._stops[:-1]]))
        self._rows = self._stops - before
        self._cost = self._costs(np.concatenate([worth.losses for worth in worths]))
        # The narrowest rows, and of those the coarsest.
        self._least = int(np.argmin(np.where(self._row_bytes > 0, self._row_bytes, np.inf)))
        self._chosen = np.where(self._first, self._least, 0)

    def _costs(self, losses: np.ndarray) -> np.ndarray:
        """(blocks, choices): what each choice leaves out of each block, rounding included."""
        kept = np.concatenate([np.zeros((len(losses), 1)), losses.cumsum(axis=1)], axis=1)
        widths = [choice.width for choice in self._choices]
        rounding = np.array([ROUNDING[choice.precision] for choice in self._choices])
        return kept[:, -1:] - kept[:, widths] * (1 - rounding)

    def buy(self, budget: int) -> None:
        """Take the best plan at the lowest price of a byte at which it fits."""
        size = self._rows[:, None] * self._row_bytes[None, :]
        low, high = -40.0, 60.0  # powers of two; at the highest nothing is worth its bytes
        for _ in range(_PRICES):
            price = (low + high) / 2
            chosen = self._without_holes(np.argmin(self._cost + 2.0**price * size, axis=1))
            if self.bytes(chosen) <= budget:
                self._chosen, high = chosen, price
            else:
                low = price

    def _without_holes(self, chosen: np.ndarray) -> np.ndarray:
        """Give the least row to blocks without one that come before others with rows, and to first blocks."""
        filled = chosen.copy()
        behind = False
        for block in range(len(chosen) - 1, -1, -1):
            if not filled[block] and (behind or self._first[block]):
                filled[block] = self._least
            behind = bool(filled[block]) and not self._first[block]
        return filled

    def spend_rest(self, budget: int) -> None:
        """Buy the upgrades that save the most for a byte, until none fits."""
        while self._upgrade(budget):
            pass

    def _upgrade(self, budget: int) -> bool:
        left = budget - self.bytes()
        now = self._chosen
        extra = self._row_bytes[None, :] - self._row_bytes[now][:, None]
        saved = self._cost[np.arange(len(now)), now][:, None] - self._cost
        behind = np.concatenate([[0], now[:-1]])
        grows = (now > 0) | (behind > 0) | self._first  # rows follow on rows
        possible = (extra > 0) & (extra <= left) & (saved > 0) & grows[:, None]
        rate = np.where(possible, saved / np.maximum(extra * self._rows[:, None], 1), -1.0)
        for at in np.argsort(rate, axis=None)[::-1][:_TRIES]:
            block, choice = divmod(int(at), len(self._choices))
            if not possible[block, choice]:
                return False
            if self._try(block, choice, int(left // extra[block, choice]), budget):
                return True
        return False

    def _try(self, block: int, choice: int, rows: int, budget: int) -> bool:
        """Upgrade as many rows of a block as fit, the first ones, and say whether any do."""
        before = self._state()
        while rows > 0:
            self._apply(block, choice, rows)
            over = self.bytes() - budget
            if over <= 0:
                return True
            self._stops, self._table, self._first, self._rows, self._cost, self._chosen = before
            rows = min(rows, int(self._rows[block])) - max(
                1, -(-over // int(self._row_bytes[choice] - self._row_bytes[self._chosen[block]]))
            )
        return False

    def _state(self) -> tuple[np.ndarray, ...]:
        return self._stops, self._table, self._first, self._rows, self._cost, self._chosen

    def _apply(self, block: int, choice: int, rows: int) -> None:
        chosen = self._chosen.copy()
        if rows < self._rows[block]:
            # The block becomes two, of which the first has the upgrade.
            share = rows / self._rows[block]
            self._stops = np.insert(self._stops, block, self._stops[block] - self._rows[block] + rows)
            self._table = np.insert(self._table, block, self._table[block])
            self._first = np.insert(self._first, block + 1, False)
            self._rows = np.insert(self._rows, block, rows)
            self._rows[block + 1] -= rows
            self._cost = np.insert(self._cost, block, self._cost[block] * share, axis=0)
            self._cost[block + 1] *= 1 - share
            chosen = np.insert(chosen, block, chosen[block])
        chosen[block] = choice
        self._chosen = chosen

    def bytes(self, chosen: np.ndarray | None = None) -> int:
        """Bytes of rows and of what lies beside them."""
        chosen = self._chosen if chosen is None else chosen
        return int((self._rows * self._row_bytes[chosen]).sum()) + self._overhead(self.runs(chosen))

    def runs(self, chosen: np.ndarray | None = None) -> list[list[Held]]:
        """Join neighbouring blocks that are held alike."""
        chosen = self._chosen if chosen is None else chosen
        runs: list[list[Held]] = []
        for stop, first, choice in zip(self._stops.tolist(), self._first.tolist(), chosen.tolist(), strict=True):
            if first:
                runs.append([])
            if not choice:
                continue
            width, precision, _ = self._choices[choice]
            if runs[-1] and runs[-1][-1][1:] == (width, precision):
                runs[-1].pop()
            runs[-1].append(Held(stop, width, precision))
        return runs
