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


def widened(rows: Tensor, matrix: Tensor | None) -> Tensor:
    """Multiply rows (N, d) by their projection (d, D); None stands for rows that have width D already."""
    return rows if matrix is None else rows @ matrix
