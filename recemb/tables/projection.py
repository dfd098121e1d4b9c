"""Narrow rows and the projections that widen them: what low_rank and mixed_dimension share."""

import math

from torch import Tensor

from recemb.tables.base import DenseParameter, TableSpec


def narrower(num_rows: int, width: int, dim: int) -> int:
    """Give the width that rows should have: the given one, or D where a projection would cost what it saves."""
    return width if num_rows * width + width * dim < num_rows * dim else dim


def projection(name: str, spec: TableSpec, spec_index: int, width: int) -> DenseParameter:
    """Describe the bias-free projection (d, D) of rows of width d.

    Its entries start with variance 1/d, so that rows with the variance of a full table's give vectors of the same.
    """
    return DenseParameter(name, (width, spec.embedding_dim), 1 / math.sqrt(width), spec_index)


def project(rows: list[Tensor], projections: list[Tensor | None]) -> Tensor:
    """Add up the projected rows.

    Args:
        rows: for each lookup (N, d).
        projections: for each lookup (d, D), or None where rows have width D already.

    Returns:
        (N, D).
    """
    vectors = [part if matrix is None else part @ matrix for part, matrix in zip(rows, projections, strict=True)]
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total
