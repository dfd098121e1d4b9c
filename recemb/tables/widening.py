"""Makes vectors of rows of many widths on a GPU: one kernel each way for all tables together.

Rows were looked up one by one, those of a lookup side by side. A vector is its row times the matrix of its lookup; or,
where there is none, its row and zeros up to full width, or its numbers where bits say and zeros elsewhere. Torch has no
product of many small matrices of different sizes with differently many rows: one operation for each lookup keeps the
host busy for longer than the device.

The work is cut into tasks of up to `_ROWS` rows of one lookup. Products are in float32, or in three passes of tf32,
whose error is no larger than float32's.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_NO_MATRIX = -1


class _Shape(NamedTuple):
    """How a kernel works: rows at once, floats of a row that are multiplied at once, warps, and precision."""

    tile: int
    inner: int
    warps: int
    precision: str


# What took the least time on an H100: rows of a task, and shapes for vectors of up to 32 floats and for wider ones.
_ROWS = 1024
_FORWARD = (_Shape(32, 16, 4, "ieee"), _Shape(16, 16, 4, "tf32x3"))
_BACKWARD = (_Shape(32, 16, 4, "tf32x3"), _Shape(32, 32, 8, "tf32x3"))


class Widened(NamedTuple):
    """A lookup, as the kernels know it.

    Attributes:
        width: of its rows, d.
        stored: width of its stored rows, which hold one row or several.
        multiplied: whether there is a matrix.
    """

    width: int
    stored: int
    multiplied: bool


class Widening:
    """Widens the rows of these lookups to vectors.

    Args:
        lookups: in the order of their rows.
        dim: D, the width of the vectors.
        adds: several rows may go to one vector, which is their sum.
    """

    def __init__(self, lookups: Sequence[Widened], dim: int, adds: bool) -> None:
        self.lookups = list(lookups)
        self.dim = dim
        self.adds = adds
        self.padded = any(one.stored > one.width for one in lookups)
        sizes = [one.width * dim if one.multiplied else 0 for one in lookups]
        begins = [0, *accumulate(sizes)][:-1]
        matrix = [at if one.multiplied else _NO_MATRIX for at, one in zip(begins, lookups, strict=True)]
        self._fixed = [[one.width for one in lookups], [one.stored for one in lookups], matrix]
        self._plan: tuple[list[int], Tensor, int] | None = None

    def __call__(
        self,
        stored: Tensor,
        counts: list[int],
        lane: Tensor | None,
        bits: Tensor | None,
        place: Tensor,
        matrices: Sequence[Tensor],
        vectors: int,
    ) -> Tensor:
        """Widen.

        Args:
            stored: the stored rows, flat, lookup after lookup.
            counts: how many rows each lookup has, N together.
            lane: (N,) int64, where in its stored row each row lies; None for at its beginning.
            bits: (N, ceil(D / 8)) uint8, where the numbers of each row go, lowest bit first; None for to the front.
                Not looked at for rows of full width.
            place: (N,) int64, the vector that each row belongs to.
            matrices: (d, D) of those lookups that have one, in their order.
            vectors: how many there are; those that no row belongs to are zero.

        Returns:
            (vectors, D).
        """
        result: Tensor = _Widen.apply(stored, lane, bits, place, self, counts, vectors, *matrices)
        return result

    def plan(self, counts: list[int], device: torch.device) -> tuple[Tensor, int]:
        """Give for each lookup (6, L + 1) where tasks, rows and numbers begin, and what is fixed; count the tasks."""
        if self._plan is None or self._plan[0] != counts or self._plan[1].device != device:
            tasks = [0, *accumulate(-(-count // _ROWS) for count in counts)]
            rows = [0, *accumulate(counts)]
            numbers = [0, *accumulate(count * one.stored for count, one in zip(counts, self.lookups, strict=True))]
            made = torch.tensor([tasks, rows, numbers, *([*one, 0] for one in self._fixed)])
            if device.type == "cuda":
                made = made.pin_memory().to(device, non_blocking=True)
            self._plan = (counts, made, tasks[-1])
        return self._plan[1], self._plan[2]

    def options(self, shapes: tuple[_Shape, _Shape]) -> dict[str, Any]:
        """What kernels of these shapes are told beside the tensors."""
        shape = shapes[self.dim > 32]
        return {
            "lookups": len(self.lookups),
            "LOOKUPS": triton.next_power_of_2(len(self.lookups) + 1),
            "DIM": self.dim,
            "COLUMNS": max(16, triton.next_power_of_2(self.dim)),
            "INNER": shape.inner,
            "BYTES": -(-self.dim // 8),
            "ROWS": _ROWS,
            "TILE": shape.tile,
            "PRECISION": shape.precision,
            "MULTIPLIES": any(one.multiplied for one in self.lookups),
            "num_warps": shape.warps,
            "num_stages": 1,
        }


class _Widen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stored: Tensor,
        lane: Tensor | None,
        bits: Tensor | None,
        place: Tensor,
        widening: Widening,
        counts: list[int],
        vectors: int,
        *matrices: Tensor,
    ) -> Tensor:
        whole = not widening.adds and len(place) == vectors  # every vector is written
        out = stored.new_empty(vectors, widening.dim) if whole else stored.new_zeros(vectors, widening.dim)
        flat = torch.cat([matrix.view(-1) for matrix in matrices]) if matrices else stored.new_zeros(1)
        plan, tasks = widening.plan(counts, stored.device)
        if tasks:
            _forward[(tasks,)](
                stored, flat, _or(lane, place), _or(bits, place), place, plan, out,
                HAS_LANE=lane is not None, HAS_BITS=bits is not None, ADDS=widening.adds,
                **widening.options(_FORWARD),
            )  # fmt: skip
        ctx.save_for_backward(stored, flat, lane, bits, place)
        ctx.rest = widening, plan, tasks, [matrix.shape for matrix in matrices]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        stored, flat, lane, bits, place = ctx.saved_tensors
        widening, plan, tasks, shapes = ctx.rest
        # What was not asked for of a stored row has no gradient.
        of_stored = torch.zeros_like(stored) if widening.padded else torch.empty_like(stored)
        of_flat = torch.zeros_like(flat)
        if tasks:
            options = widening.options(_BACKWARD)
            widest = max((one.width for one in widening.lookups if one.multiplied), default=1)
            parts = -(-widest // options["INNER"])
            _backward[(tasks, parts)](
                stored, flat, _or(lane, place), _or(bits, place), place, plan, gradients[0].contiguous(),
                of_stored, of_flat, HAS_LANE=lane is not None, HAS_BITS=bits is not None, **options,
            )  # fmt: skip
        of_matrices = of_flat.split([shape.numel() for shape in shapes]) if shapes else ()
        shaped = [one.view(shape) for one, shape in zip(of_matrices, shapes, strict=True)]
        return of_stored, None, None, None, None, None, None, *shaped


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """What a kernel is handed in the place of a tensor that it will not read."""
    return other if tensor is None else tensor


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
def _found(lane, place, first_row, first_number, row, here, width, wide, HAS_LANE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Say where rows of a lookup begin among the stored numbers, and to which vectors they belong."""
    at = first_number + row.to(tl.int64) * wide
    if HAS_LANE:
        at += tl.load(lane + first_row + row, mask=here, other=0) * width
    return at, tl.load(place + first_row + row, mask=here, other=0)


@triton.jit
def _spread(bits, row, here, column, DIM: tl.constexpr, BYTES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Say for all columns of rows whether they hold a number, and which of the row's it is."""
    within = here[:, None] & (column < DIM)[None, :]
    byte = tl.load(bits + row[:, None] * BYTES + (column // 8)[None, :], mask=within, other=0).to(tl.int32)
    holds = (byte >> (column % 8)[None, :]) & 1
    return holds > 0, tl.cumsum(holds, axis=1) - 1


@triton.jit
def _places(bits, row, here, column, width, DIM: tl.constexpr, BYTES: tl.constexpr, HAS_BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Say for all columns of rows that are not multiplied whether they hold a number, and which of the row's it is."""
    holds = here[:, None] & (column < width)[None, :]
    number = tl.zeros_like(holds).to(tl.int32) + column[None, :]
    if HAS_BITS:
        if width < DIM:
            holds, number = _spread(bits, row, here, column, DIM, BYTES)
    return holds, number


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    stored, matrices, lane, bits, place, plan, out,
    lookups, LOOKUPS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, BYTES: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr, MULTIPLIES: tl.constexpr, HAS_LANE: tl.constexpr,
    HAS_BITS: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    task, first_row, count, first_number, width, wide, matrix = _task(plan, tl.program_id(0), lookups, LOOKUPS)
    column = tl.arange(0, COLUMNS)
    for start in range(task * ROWS, min(task * ROWS + ROWS, count), TILE):
        row = start + tl.arange(0, TILE)
        here = row < count
        at, target = _found(lane, place, first_row, first_number, row, here, width, wide, HAS_LANE)
        vector = tl.zeros((TILE, COLUMNS), dtype=tl.float32)
        if matrix < 0:
            holds, number = _places(bits, first_row + row, here, column, width, DIM, BYTES, HAS_BITS)
            vector = tl.load(stored + at[:, None] + number, mask=holds, other=0.0)
        if MULTIPLIES:
            if matrix >= 0:
                for first in range(0, width, INNER):
                    inner = first + tl.arange(0, INNER)
                    within = here[:, None] & (inner < width)[None, :]
                    rows = tl.load(stored + at[:, None] + inner[None, :], mask=within, other=0.0)
                    within = (inner < width)[:, None] & (column < DIM)[None, :]
                    part = tl.load(matrices + matrix + inner[:, None] * DIM + column[None, :], mask=within, other=0.0)
                    vector = tl.dot(rows, part, vector, input_precision=PRECISION)
        aim = out + target[:, None] * DIM + column[None, :]
        within = here[:, None] & (column < DIM)[None, :]
        if ADDS:
            tl.atomic_add(aim, vector, mask=within, sem="relaxed")
        else:
            tl.store(aim, vector, mask=within)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    stored, matrices, lane, bits, place, plan, gradient, of_stored, of_matrices,
    lookups, LOOKUPS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, BYTES: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr, MULTIPLIES: tl.constexpr, HAS_LANE: tl.constexpr,
    HAS_BITS: tl.constexpr,
):  # fmt: skip
    task, first_row, count, first_number, width, wide, matrix = _task(plan, tl.program_id(0), lookups, LOOKUPS)
    first = tl.program_id(1) * INNER
    # Rows that are not multiplied are done by the first of the programs that share a task.
    if (matrix < 0 and first > 0) or first >= width:
        return
    inner = first + tl.arange(0, INNER)
    column = tl.arange(0, COLUMNS)
    of_matrix = (inner < width)[:, None] & (column < DIM)[None, :]
    if MULTIPLIES:
        of_part = tl.zeros((INNER, COLUMNS), dtype=tl.float32)
        part = tl.zeros((INNER, COLUMNS), dtype=tl.float32)
        if matrix >= 0:
            part = tl.load(matrices + matrix + inner[:, None] * DIM + column[None, :], mask=of_matrix, other=0.0)
    for start in range(task * ROWS, min(task * ROWS + ROWS, count), TILE):
        row = start + tl.arange(0, TILE)
        here = row < count
        at, target = _found(lane, place, first_row, first_number, row, here, width, wide, HAS_LANE)
        source = gradient + target[:, None] * DIM + column[None, :]
        if matrix < 0:
            holds, number = _places(bits, first_row + row, here, column, width, DIM, BYTES, HAS_BITS)
            tl.store(of_stored + at[:, None] + number, tl.load(source, mask=holds), mask=holds)
        if MULTIPLIES:
            if matrix >= 0:
                of_rows = here[:, None] & (inner < width)[None, :]
                arrived = tl.load(source, mask=here[:, None] & (column < DIM)[None, :], other=0.0)
                rows = tl.load(stored + at[:, None] + inner[None, :], mask=of_rows, other=0.0)
                found = tl.dot(arrived, tl.trans(part), input_precision=PRECISION)
                tl.store(of_stored + at[:, None] + inner[None, :], found, mask=of_rows)
                of_part = tl.dot(tl.trans(rows), arrived, of_part, input_precision=PRECISION)
    if MULTIPLIES:
        if matrix >= 0:
            aim = of_matrices + matrix + inner[:, None] * DIM + column[None, :]
            tl.atomic_add(aim, of_part, mask=of_matrix, sem="relaxed")
