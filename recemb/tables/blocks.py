"""Finds the block of numbers that each number is in, also where searchsorted has no counterpart."""

import torch
from torch import Tensor


def block_of(starts: Tensor, numbers: Tensor) -> Tensor:
    """Find the last start that is not greater.

    Args:
        starts: (n,) int64 where blocks begin, ascending, the first one not above any number.
        numbers: int64 of any shape.

    Returns:
        int64 block numbers of the same shape.
    """
    if not torch.compiler.is_exporting():
        return torch.searchsorted(starts, numbers, right=True) - 1
    # ONNX has no searchsorted: the answer is built bit by bit instead, from the highest one down.
    block = torch.zeros_like(numbers)
    last = starts.shape[0] - 1
    for bit in range(last.bit_length() - 1, -1, -1):
        ahead = block + (1 << bit)
        at = starts[ahead.clamp(max=last)]
        block = torch.where((ahead <= last) & (at <= numbers), ahead, block)
    return block
