"""Products of blocks of columns, without the copies that splitting a tensor and joining the results would take."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def multiplied(columns: Tensor, widths: Sequence[int], factors: Sequence[Sequence[int]]) -> Tensor:
    """Multiply blocks of columns element by element.

    Args:
        columns: (B, W), blocks side by side.
        widths: of the blocks, W together.
        factors: for each block of the result the blocks of equal width that it is the product of; every block is a
            factor once.

    Returns:
        (B, sum of the widths of the products).
    """
    ends = list(accumulate(widths))
    spans = [[slice(ends[block] - widths[block], ends[block]) for block in blocks] for blocks in factors]
    result: Tensor = _Multiplied.apply(columns, spans)
    return result


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, factors: list[list[slice]]) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.factors = factors
        products = columns.new_empty(len(columns), sum(spans[0].stop - spans[0].start for spans in factors))
        for spans, product in zip(factors, _targets(factors, products), strict=True):
            _multiply([columns[:, span] for span in spans], product)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (columns,) = ctx.saved_tensors
        of_columns = torch.empty_like(columns)
        for spans, gradient in zip(ctx.factors, _targets(ctx.factors, gradients[0]), strict=True):
            for span in spans:
                others = [columns[:, other] for other in spans if other is not span]
                _multiply([gradient, *others], of_columns[:, span])
        return of_columns, None


def _targets(factors: list[list[slice]], products: Tensor) -> tuple[Tensor, ...]:
    return products.split([spans[0].stop - spans[0].start for spans in factors], dim=1)


def _multiply(factors: list[Tensor], product: Tensor) -> None:
    """Write the product of (B, w) tensors into another one."""
    if len(factors) == 1:
        product.copy_(factors[0])
        return
    torch.mul(factors[0], factors[1], out=product)
    for factor in factors[2:]:
        product.mul_(factor)
