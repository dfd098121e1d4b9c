"""Makes vectors of rows of many widths on a GPU: one kernel each way for all tables together.

Rows were looked up one by one, those of a lookup side by side. A vector is its row times the matrix of its lookup, or,
where there is none, its row and zeros up to full width. Torch has no product of many small matrices of different sizes
with differently many rows: one operation for each lookup keeps the host busy for longer than the device.

The work is cut into tasks of up to `_ROWS` rows of one lookup. Products are in three passes of tf32, whose error is
that of float32.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 1024  # rows of a task, so that not every tile adds to the gradient of its matrix
_NO_MATRIX = -1


class Lookup(NamedTuple):
    """A lookup, as the kernels know it.

    Attributes:
        width: of its rows, d.
        stored: width of its stored rows, several rows side by side.
        matrix: where its (d, D) matrix begins among the numbers of all matrices; None for none.
    """

    width: int
    stored: int
    matrix: int | None


class Widening:
    """Widens the rows of these lookups to vectors.

    Args:
        lookups: in the order of their rows.
        dim: D, the width of the vectors.
        adds: several rows may go to one vector, which is their sum.
        device: of the rows.
    """

    def __init__(self, lookups: Sequence[Lookup], dim: int, adds: bool, device: torch.device) -> None:
        self.lookups = list(lookups)
        self.dim = dim
        self.adds = adds
        self.device = device
        self.packs = any(one.stored > one.width for one in lookups)
        self._last: tuple[list[int], Tensor, int] | None = None

    def __call__(
        self, stored: Tensor, lane: Tensor | None, counts: Sequence[int], place: Tensor, matrices: Tensor, vectors: int
    ) -> Tensor:
        """Widen.

        Args:
            stored: the stored rows, flat, lookup after lookup.
            lane: (N,) int64, where in its stored row each row lies; None for at its beginning.
            counts: how many rows each lookup has, N together.
            place: (N,) int64, the vector that each row belongs to.
            matrices: the numbers of all matrices, flat.
            vectors: how many there are; those that no row belongs to are zero.

        Returns:
            (vectors, D).
        """
        return _Widen.apply(stored, matrices, lane, place, self, list(counts), vectors)

    def plan(self, counts: list[int]) -> tuple[Tensor, int]:
        """Say for each lookup (5, L + 1) where tasks, rows and stored numbers begin, its widths; and give the tasks."""
        if self._last is None or self._last[0] != counts:
            tasks = [0, *accumulate(-(-count // _ROWS) for count in counts)]
            rows = [0, *accumulate(counts)]
            numbers = [0, *accumulate(count * one.stored for count, one in zip(counts, self.lookups, strict=True))]
            widths = [*(one.width for one in self.lookups), 0]
            stored = [*(one.stored for one in self.lookups), 0]
            matrix = [*(_NO_MATRIX if one.matrix is None else one.matrix for one in self.lookups), 0]
            plan = torch.tensor([tasks, rows, numbers, widths, stored, matrix])
            if self.device.type == "cuda":
                plan = plan.pin_memory().to(self.device, non_blocking=True)
            self._last = (counts, plan, tasks[-1])
        return self._last[1], self._last[2]

    def options(self) -> dict[str, Any]:
        """The arguments that are the same in both directions."""
        widest, wide = max((one.width for one in self.lookups if one.matrix is not None), default=16), self.dim > 64
        return {
            "lookups": len(self.lookups),
            "LOOKUPS": triton.next_power_of_2(len(self.lookups) + 1),
            "DIM": self.dim,
            "COLUMNS": max(16, triton.next_power_of_2(self.dim)),
            "INNER": 16 if widest <= 16 else 32,
            "ROWS": _ROWS,
            # Rows at once, and threads, such that registers suffice.
            "TILE": 32 if wide else 64,
            "num_warps": 8 if wide else 4,
            "num_stages": 1,
        }


class _Widen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stored: Tensor,
        matrices: Tensor,
        lane: Tensor | None,
        place: Tensor,
        widening: Widening,
        counts: list[int],
        vectors: int,
    ) -> Tensor:
        out = stored.new_zeros(vectors, widening.dim)
        plan, tasks = widening.plan(counts)
        if tasks:
            _forward[(tasks,)](
                stored, matrices, place if lane is None else lane, place, plan, out,
                HAS_LANE=lane is not None, ADDS=widening.adds, **widening.options(),
            )  # fmt: skip
        ctx.save_for_backward(stored, matrices, lane, place)
        ctx.rest = widening, plan, tasks
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        stored, matrices, lane, place = ctx.saved_tensors
        widening, plan, tasks = ctx.rest
        # The lanes of a stored row that were not asked for have no gradient.
        of_stored = torch.zeros_like(stored) if widening.packs else torch.empty_like(stored)
        of_matrices = torch.zeros_like(matrices)
        if tasks:
            sizes = widening.options()
            parts = -(-max(one.width for one in widening.lookups) // sizes["INNER"])
            _backward[(tasks, parts)](
                stored, matrices, place if lane is None else lane, place, plan, gradients[0].contiguous(),
                of_stored, of_matrices, HAS_LANE=lane is not None, **sizes,
            )  # fmt: skip
        return of_stored, of_matrices, None, None, None, None, None


@triton.jit
def _task(plan, task, lookups, LOOKUPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Find the lookup of a task, and read of the plan what is said of it."""
    step = lookups + 1
    each = tl.arange(0, LOOKUPS)
    first_tasks = tl.load(plan + each, mask=each <= lookups, other=2**62)
    lookup = tl.sum((first_tasks <= task).to(tl.int32)) - 1
    own = plan + lookup
    first_row = tl.load(own + step)
    return (
        task - tl.load(own),
        first_row,
        tl.load(own + step + 1) - first_row,
        tl.load(own + 2 * step),
        tl.load(own + 3 * step).to(tl.int32),
        tl.load(own + 4 * step).to(tl.int32),
        tl.load(own + 5 * step),
    )


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    stored, matrices, lane, place, plan, out,
    lookups, LOOKUPS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, HAS_LANE: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    task, first_row, count, first_number, width, wide, matrix = _task(plan, tl.program_id(0), lookups, LOOKUPS)
    column = tl.arange(0, COLUMNS)
    for start in range(task * ROWS, min(task * ROWS + ROWS, count), TILE):
        row = start + tl.arange(0, TILE)
        here = row < count
        at = first_number + row.to(tl.int64) * wide
        if HAS_LANE:
            at += tl.load(lane + first_row + row, mask=here, other=0) * width
        target = tl.load(place + first_row + row, mask=here, other=0)
        if matrix < 0:
            within = here[:, None] & (column < width)[None, :]
            vector = tl.load(stored + at[:, None] + column[None, :], mask=within, other=0.0)
        else:
            vector = tl.zeros((TILE, COLUMNS), dtype=tl.float32)
            for first in range(0, width, INNER):
                inner = first + tl.arange(0, INNER)
                within = here[:, None] & (inner < width)[None, :]
                rows = tl.load(stored + at[:, None] + inner[None, :], mask=within, other=0.0)
                within = (inner < width)[:, None] & (column < DIM)[None, :]
                part = tl.load(matrices + matrix + inner[:, None] * DIM + column[None, :], mask=within, other=0.0)
                vector = tl.dot(rows, part, vector, input_precision="tf32x3")
        aim = out + target[:, None] * DIM + column[None, :]
        within = here[:, None] & (column < DIM)[None, :]
        if ADDS:
            tl.atomic_add(aim, vector, mask=within, sem="relaxed")
        else:
            tl.store(aim, vector, mask=within)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    stored, matrices, lane, place, plan, gradient, of_stored, of_matrices,
    lookups, LOOKUPS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, HAS_LANE: tl.constexpr,
):  # fmt: skip
    task, first_row, count, first_number, width, wide, matrix = _task(plan, tl.program_id(0), lookups, LOOKUPS)
    first = tl.program_id(1) * INNER
    if first >= width:
        return
    inner = first + tl.arange(0, INNER)
    column = tl.arange(0, COLUMNS)
    of_matrix = (inner < width)[:, None] & (column < DIM)[None, :]
    of_part = tl.zeros((INNER, COLUMNS), dtype=tl.float32)
    part = tl.zeros((INNER, COLUMNS), dtype=tl.float32)
    if matrix >= 0:
        part = tl.load(matrices + matrix + inner[:, None] * DIM + column[None, :], mask=of_matrix, other=0.0)
    for start in range(task * ROWS, min(task * ROWS + ROWS, count), TILE):
        row = start + tl.arange(0, TILE)
        here = row < count
        at = first_number + row.to(tl.int64) * wide
        if HAS_LANE:
            at += tl.load(lane + first_row + row, mask=here, other=0) * width
        source = gradient + tl.load(place + first_row + row, mask=here, other=0)[:, None] * DIM
        of_rows = here[:, None] & (inner < width)[None, :]
        if matrix < 0:
            tl.store(of_stored + at[:, None] + inner[None, :], tl.load(source + inner[None, :], mask=of_rows), of_rows)
        else:
            arrived = tl.load(source + column[None, :], mask=here[:, None] & (column < DIM)[None, :], other=0.0)
            rows = tl.load(stored + at[:, None] + inner[None, :], mask=of_rows, other=0.0)
            found = tl.dot(arrived, tl.trans(part), input_precision="tf32x3")
            tl.store(of_stored + at[:, None] + inner[None, :], found, mask=of_rows)
            of_part = tl.dot(tl.trans(rows), arrived, of_part, input_precision="tf32x3")
    if matrix >= 0:
        aim = of_matrices + matrix + inner[:, None] * DIM + column[None, :]
        tl.atomic_add(aim, of_part, mask=of_matrix, sem="relaxed")
