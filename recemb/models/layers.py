"""What the backbones share: plain layers, and the checks of the widths they are given."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recemb.models.base import Tables
from recemb.options import RecembError


def mlp(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Stack linear layers of these widths, each followed by a ReLU: (B, inputs) to (B, widths[-1])."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


def tower(inputs: int, widths: Sequence[int], normalize: bool) -> nn.Sequential:
    """Stack a LayerNorm, if asked for, an MLP of these widths and a last layer of width 1: (B, inputs) to (B, 1)."""
    first = [nn.LayerNorm(inputs)] if normalize else []
    return nn.Sequential(*first, *mlp(inputs, widths), nn.Linear(widths[-1], 1))


class InnerProducts(nn.Module):
    """Inner products of all pairs of F vectors.

    The upper triangle is read by index_select, twice as fast on CPU as by indexing, backward included.

    Args:
        vectors: F.
    """

    upper: Tensor

    def __init__(self, vectors: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("upper", first * vectors + second, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Multiply: (B, F, D) to (B, F (F - 1) / 2), pairs in the order (0, 1), (0, 2), ..., (F - 2, F - 1)."""
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.upper)


def widths_of_features(tables: Tables) -> list[int]:
    """List the widths of the vectors that a collection gives, one for each feature, in the order of its result."""
    return [table.embedding_dim for table in tables.embedding_bag_configs() for _ in table.feature_names]


def check_one_width(model: str, widths: Sequence[int], why: str) -> None:
    """Raise unless all vectors have one width; `why` says what the model does with them."""
    if len(set(widths)) > 1:
        raise RecembError(
            f"model={model} {why}: all tables must have one width, not {sorted(set(widths))}; model=dcn_v2 takes "
            "several."
        )


def check_first_order(model: str, widths: Sequence[int]) -> None:
    """Raise unless every vector has room for a first-order weight and at least one factor."""
    if min(widths) < 2:
        raise RecembError(
            f"model={model} reads an id's first-order weight and its vector from one row, which must be at least 2 "
            f"wide, not {min(widths)}; give a larger budget or model.embedding_dim, or take another table method."
        )


def check_widths(option_name: str, widths: Sequence[int]) -> None:
    """Raise unless an option is a list of at least one width, each at least 1."""
    if not widths or any(width < 1 for width in widths):
        raise RecembError(f"model.{option_name}={list(widths)} must be a list of widths of at least 1.")


def check_at_least(option_name: str, value: int, least: int) -> None:
    """Raise where an option is smaller than makes sense."""
    if value < least:
        raise RecembError(f"model.{option_name}={value} is too small; it must be at least {least}.")
