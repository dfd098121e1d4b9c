"""What the tests of the backbones share: numbers with gaps, models of large weights, numpy's layers."""

import dataclasses

import numpy as np
import torch
from tables_samples import make_specs
from torch import nn

from recemb import CompressedEmbeddingBagCollection, TableSpec
from recemb.models import ModelConfig
from recemb.tables.base import TableConfig


def numbers_of(rows: int, numbers: int) -> torch.Tensor:
    """(rows, numbers) float32, a fifth of them missing."""
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(rows, numbers, generator=random)
    dense[torch.rand(rows, numbers, generator=random) < 0.2] = torch.nan
    return dense


def specs_of(*widths: int) -> list[TableSpec]:
    """Four tables of these widths, or all of one; the second one is read by two features."""
    given = widths * 4 if len(widths) == 1 else widths
    specs = [dataclasses.replace(spec, embedding_dim=dim) for spec, dim in zip(make_specs(), given, strict=True)]
    specs[1].feature_names = ["home", "work"]
    return specs


def build(config: ModelConfig, numbers: int, specs: list[TableSpec], table: TableConfig) -> nn.Module:
    """A model whose weights are large enough for every term to show."""
    torch.manual_seed(0)
    model = config.build(CompressedEmbeddingBagCollection(specs, table), numbers_of(500, numbers))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def layer_norm(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5) * array(layer.weight) + array(layer.bias)


def through(x: np.ndarray, layers: nn.Sequential) -> np.ndarray:
    """Run a stack of plain layers in numpy."""
    for layer in layers:
        if isinstance(layer, nn.LayerNorm):
            x = layer_norm(x, layer)
        elif isinstance(layer, nn.Linear):
            x = x @ array(layer.weight).T + array(layer.bias)
        else:
            assert isinstance(layer, nn.ReLU)
            x = np.maximum(x, 0)
    return x
