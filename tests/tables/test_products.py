"""Products of blocks of columns: what splitting, multiplying and joining would give, and its gradients."""

import pytest
import torch

from recemb.tables.products import multiplied


@pytest.mark.parametrize(
    ("widths", "factors"),
    [
        ([3], [[0]]),
        ([2, 2], [[1, 0]]),
        ([2, 3, 2, 3], [[0, 2], [3, 1]]),
        ([4, 2, 2, 2, 5, 5, 5, 5], [[1, 2, 3], [0], [7, 4, 6, 5]]),
    ],
)
def test_products_of_blocks(widths: list[int], factors: list[list[int]]):
    random = torch.Generator().manual_seed(sum(widths))
    columns = torch.randn(6, sum(widths), generator=random, dtype=torch.float64, requires_grad=True)
    blocks = columns.split(widths, dim=1)
    expected = torch.cat([torch.stack([blocks[one] for one in of]).prod(dim=0) for of in factors], dim=1)
    found = multiplied(columns, widths, factors)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda one: multiplied(one, widths, factors), columns)
    # The gradient may come in any layout.
    target = torch.randn(found.shape[::-1], generator=random, dtype=torch.float64).T
    (mine,) = torch.autograd.grad(found, columns, target)
    (theirs,) = torch.autograd.grad(expected, columns, target)
    torch.testing.assert_close(mine, theirs)


def test_rows_of_no_bags():
    assert multiplied(torch.zeros(0, 4), [2, 2], [[0, 1]]).shape == (0, 2)
