"""The values that weights start from, the same wherever and in whatever parts they are held."""

import math

import torch
from torch import Tensor, nn

from recemb.hashing import salt_of

# Rows that one generator fills. A process that holds some rows of a table fills no more than the blocks they are in.
_BLOCK_ROWS = 1 << 20


def init_uniform_(
    weight: Tensor,
    std: float,
    name: str,
    seed: int,
    *,
    size: tuple[int, int] | None = None,
    at: tuple[int, int] = (0, 0),
) -> None:
    """Fill a weight uniformly with zero mean and a standard deviation, from the seed and the weight's own name.

    What stands beside it does not matter: a table starts the same in any collection. Nor does it matter how it is cut:
    each part of a table gets what it has in the whole.

    Args:
        weight: (n, d), a table or the part of one.
        std: the standard deviation.
        name: of the table.
        seed: of the collection.
        size: (rows, width) of the table, where `weight` is only a part.
        at: row and column of the table where the part begins.
    """
    rows, width = size or (weight.shape[0], weight.shape[1])
    first, column = at
    last, columns = first + weight.shape[0], slice(column, column + weight.shape[1])
    bound = math.sqrt(3.0) * std
    with torch.no_grad():
        for block in range(first // _BLOCK_ROWS, -(-last // _BLOCK_ROWS)):
            begin, end = block * _BLOCK_ROWS, min((block + 1) * _BLOCK_ROWS, rows)
            generator = _generator(weight, f"{name}/{block}" if block else name, seed)
            here = weight[max(begin - first, 0) : end - first]
            if here.shape == (end - begin, width) and here.is_contiguous():
                here.uniform_(-bound, bound, generator=generator)
                continue
            whole = torch.empty(end - begin, width, device=weight.device, dtype=weight.dtype)
            whole.uniform_(-bound, bound, generator=generator)
            here.copy_(whole[max(first - begin, 0) : last - begin, columns])


def init_orthogonal_(weight: Tensor, std: float, name: str, seed: int) -> None:
    """Fill a matrix (d, D), d <= D, with orthogonal rows whose entries have the root mean square `std`."""
    gain = std * math.sqrt(weight.shape[1])
    nn.init.orthogonal_(weight, gain, generator=_generator(weight, name, seed))


def _generator(weight: Tensor, name: str, seed: int) -> torch.Generator:
    return torch.Generator(device=weight.device).manual_seed(salt_of(name, seed) & (2**63 - 1))
