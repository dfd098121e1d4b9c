"""Narrow rows and the projections that widen them: what low_rank and mixed_dimension share."""

import math

import torch
from torch import Tensor

from recemb.tables.base import DenseParameter, TableSpec


def narrower(num_rows: int, width: int, dim: int) -> int:
    """Give the width that rows should have: the given one, or D where a projection would cost what it saves.

    In floats, so that a config means the same tables in every precision.
    """
    return width if num_rows * width + width * dim < num_rows * dim else dim


def projection(name: str, spec: TableSpec, spec_index: int, width: int) -> DenseParameter:
    """Describe the bias-free projection (d, D) of rows of width d.

    Its entries start with variance 1/d, so that rows with the variance of a full table's give vectors of the same.
    """
    return DenseParameter(name, (width, spec.embedding_dim), 1 / math.sqrt(width), spec_index)


def widened(rows: Tensor, matrix: Tensor | None) -> Tensor:
    """Multiply rows (N, d) by their projection (d, D); None stands for rows that have width D already."""
    return rows if matrix is None else rows @ matrix


def factorized(vectors: Tensor, popularity: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Find the rows and the projection whose product is nearest to given vectors.

    By the theorem of Eckart & Young (Psychometrika 1936) on rows that are scaled by the root of their weight: the
    projection is the leading right singular vectors, and rows are what the vectors project to.

    Args:
        vectors: (V, D) float32.
        popularity: (V,) float64, the weight of each vector's squared error.
        width: d.

    Returns:
        (V, d) rows and (d, D) projection, float32, scaled as in training: the projection's entries have the root mean
        square 1 / sqrt(d), so that fine-tuning takes steps of the usual size.
    """
    # D x D instead of V x D; float64, since squaring costs half of the digits.
    exact = vectors.double()
    _, directions = torch.linalg.eigh(exact.T @ (exact * popularity.unsqueeze(1)))  # ascending
    matrix = directions.flip(1)[:, :width].T
    scale = math.sqrt(vectors.shape[1] / width)
    return (exact @ matrix.T / scale).float(), (matrix * scale).float()


def with_shared_row(vectors: Tensor, popularity: Tensor, end: int) -> Tensor:
    """Give the first `end` of vectors (V, D), the first one replaced by the mean of it and of all those left out.

    That is the row which ids without one of their own read.
    """
    kept = vectors[:end].clone()
    if end < len(vectors):
        shared = torch.cat([torch.tensor([0]), torch.arange(end, len(vectors))])
        weights = popularity[shared]
        kept[0] = (vectors[shared].double() * weights.unsqueeze(1)).sum(dim=0).div(weights.sum()).float()
    return kept
