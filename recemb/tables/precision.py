"""How the rows of a physical table are held when they are served: whole floats, or row-wise integer codes.

Row-wise min-max quantization (Guan et al., "Post-Training 4-bit Quantization on Embedding Tables", arXiv 1911.02079,
sections 2 and 3): a row is held as codes of 8, 4 or 2 bits and two half-precision numbers, what a code step is worth
and what code 0 stands for, as FBGEMM's inference tables hold it. With 4 and 2 bits the range of a row is narrowed where
that makes its squared error smaller, since most of a row lies far inside its extremes.

Rows are whole bytes with no padding between them. Two half-precision numbers are as much as four codes of 8 bits, so
narrow rows are smaller as plain halves: a table asked to take N bits takes the fewest bytes among N bits and everything
finer, and of two that take as many the finer one.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recemb.options import RecembError

PRECISIONS = ("fp32", "fp16", "int8", "int4", "int2")
"""From fine to coarse."""

_BITS = {"int8": 8, "int4": 4, "int2": 2}
_FLOATS = {"fp32": torch.float32, "fp16": torch.float16}
_SCALE_BYTES = 4
_LARGEST_HALF = 65504.0
_ROWS_AT_ONCE = 1 << 18
# How much of a row's range is kept, tried in turn where codes are few.
_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)


class Held(Protocol):
    """A physical table: so many rows of a width, held in some way; see `recemb.tables.base.PhysicalTable`."""

    @property
    def rows(self) -> int:
        """V."""

    @property
    def dim(self) -> int:
        """Numbers in a row."""

    @property
    def held(self) -> str:
        """As `held_as` says."""


def check_precision(precision: str) -> None:
    """Raise unless a precision is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise RecembError(f"precision={precision} is not known; choose one of {', '.join(PRECISIONS)}.")


def held_as(dim: int, precision: str) -> str:
    """Name how rows of this width are held when a precision is asked for: see this module."""
    finer = PRECISIONS[: PRECISIONS.index(precision) + 1]
    return min(finer, key=lambda one: _plain_bytes(dim, one))


def row_bytes(dim: int, precision: str) -> int:
    """Bytes of a row of `dim` numbers when a precision is asked for."""
    return min(_plain_bytes(dim, one) for one in PRECISIONS[: PRECISIONS.index(precision) + 1])


def mean_row_bytes(dim: float, precision: str) -> float:
    """Bytes of a row of so many numbers on average, between those of the whole widths below and above."""
    below = int(dim)
    if dim == below:
        return float(row_bytes(below, precision))
    return row_bytes(below, precision) + (dim - below) * (row_bytes(below + 1, precision) - row_bytes(below, precision))


def _plain_bytes(dim: int, precision: str) -> int:
    if precision in _FLOATS:
        return dim * _FLOATS[precision].itemsize
    return -(-dim * _BITS[precision] // 8) + _SCALE_BYTES


def empty_rows(table: Held, device: str = "cpu") -> dict[str, Tensor]:
    """Give tensors of the shapes and types that `pack_rows` gives for a table, without their values."""
    if table.held in _FLOATS:
        return {"rows": torch.empty(table.rows, table.dim, dtype=_FLOATS[table.held], device=device)}
    width = -(-table.dim * _BITS[table.held] // 8)
    return {
        "codes": torch.empty(table.rows, width, dtype=torch.uint8, device=device),
        "scales": torch.empty(table.rows, 2, dtype=torch.float16, device=device),
    }


def pack_rows(weight: Tensor, held: str) -> dict[str, Tensor]:
    """Pack rows.

    Args:
        weight: (V, d) float32.
        held: of `held_as`.

    Returns:
        `rows` (V, d) of floats; or `codes` (V, bytes) uint8, the first number in the lowest bits, and `scales` (V, 2)
        float16: the worth of a code step, and the number that code 0 stands for.

    Raises:
        RecembError: a number is not finite, or too large for half precision.
    """
    if held == "fp32":
        return {"rows": weight.detach().float().clone()}
    largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
    if not largest <= _LARGEST_HALF:
        raise RecembError(
            f"rows with numbers up to {largest:g} cannot be held in {held}, whose halves reach {_LARGEST_HALF:g}; keep "
            "precision=fp32, and look at why training let them grow."
        )
    if held == "fp16":
        return {"rows": weight.detach().half()}
    parts = [_pack_codes(part, _BITS[held]) for part in weight.detach().float().split(_ROWS_AT_ONCE)]
    codes, scales = zip(*parts, strict=True)
    return {"codes": torch.cat(codes), "scales": torch.cat(scales)}


def read_rows(tensors: Mapping[str, Tensor], rows: Tensor, dim: int, held: str) -> Tensor:
    """Read rows of what `pack_rows` gave.

    Args:
        tensors: of `pack_rows`.
        rows: (N,) int64 row numbers.
        dim: d.
        held: how they are held.

    Returns:
        (N, d) float32.
    """
    if held in _FLOATS:
        return tensors["rows"].index_select(0, rows).float()
    codes, scales = tensors["codes"].index_select(0, rows), tensors["scales"].index_select(0, rows).float()
    if held != "int8":
        codes = _unpack(codes, _BITS[held])[:, :dim]
    return torch.addcmul(scales[:, 1:], codes.float(), scales[:, :1])


def _pack_codes(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Choose scales and codes of (n, d) rows: (n, bytes) uint8 and (n, 2) float16."""
    most = 2**bits - 1
    low, high = rows.aminmax(dim=1, keepdim=True)
    middle, half_range = (low + high) / 2, (high - low) / 2
    best = torch.full_like(low, torch.inf)
    codes, scales = torch.zeros_like(rows), torch.zeros(len(rows), 2, dtype=torch.float16, device=rows.device)
    for share in _RANGES if bits < 8 else _RANGES[:1]:
        # Codes are chosen for the halves that are stored, so that their rounding does no harm of its own.
        start = (middle - share * half_range).half()
        step = (2 * share * half_range / most).half()
        wide = step.float()
        tried = ((rows - start.float()) / torch.where(wide > 0, wide, 1.0)).round().clamp(0, most)
        error = (torch.addcmul(start.float(), tried, wide) - rows).square().sum(dim=1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        codes = torch.where(better, tried, codes)
        scales = torch.where(better, torch.cat([step, start], dim=1), scales)
    codes = codes.to(torch.uint8)
    return (codes if bits == 8 else _pack(codes, bits)), scales


def _pack(codes: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    padded = F.pad(codes, (0, -codes.shape[1] % per_byte)).view(len(codes), -1, per_byte).int()
    return (padded << torch.arange(0, 8, bits, dtype=torch.int32)).sum(dim=2).to(torch.uint8)


def _unpack(codes: Tensor, bits: int) -> Tensor:
    """Read what `_pack` wrote: (n, bytes) uint8 to (n, bytes * 8 / bits) int32."""
    places = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device)
    return (torch.bitwise_right_shift(codes.int().unsqueeze(2), places) & (2**bits - 1)).flatten(1)


def round_rows_(tables: Sequence[Held], weights: Sequence[Tensor]) -> None:
    """Round weights (V, d) of physical tables, in place, to what their rows will be once they are served."""
    for table, weight in zip(tables, weights, strict=True):
        if table.held != "fp32":
            for part in weight.detach().split(_ROWS_AT_ONCE):
                packed = {name: tensor.to(part.device) for name, tensor in pack_rows(part, table.held).items()}
                part.copy_(read_rows(packed, torch.arange(len(part), device=part.device), table.dim, table.held))
