"""Numbers as a click model takes them: scaled, and as embedded quantile bins; a missing value is a value of its own."""

from typing import Any

import torch
from torch import Tensor, nn

from recemb.tables.casting import keep_types


class DenseEncoder(nn.Module):
    """Scales K dense features and looks their quantile bins up in one small embedding.

    Bins let a model bend at any count, which counts of clicks and visits ask for (Gorishniy et al., "On Embeddings for
    Numerical Features in Tabular Deep Learning", NeurIPS 2022, arXiv 2203.05556), and let numbers interact with
    categorical features like one of them.

    Args:
        sample: (n, K) float32 of training rows, NaN = missing; n at most 16 million, as torch.quantile takes.
        bins: at most this many bins a feature; cuts that coincide, as with many equal values, count once.
        dim: width of the bins' vectors.
        init_std: standard deviation of their entries before training.
    """

    mean: Tensor
    std: Tensor
    edges: Tensor
    first: Tensor

    def __init__(self, sample: Tensor, bins: int, dim: int, init_std: float) -> None:
        super().__init__()
        features = sample.shape[1]
        known = [column[~column.isnan()] for column in sample.double().T]
        quantiles = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
        edges = torch.full((features, max(bins - 1, 0)), torch.inf)
        for row, column in zip(edges, known, strict=True):
            if len(column):
                cuts = torch.unique(torch.quantile(column, quantiles)).float()
                row[: len(cuts)] = cuts
        mean = torch.tensor([float(column.mean()) if len(column) else 0.0 for column in known])
        std = torch.tensor([float(column.std(correction=0)) if len(column) else 1.0 for column in known])
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))
        self.register_buffer("edges", edges)
        # A feature's vectors: the missing value's, then its bins'.
        self.register_buffer("first", torch.arange(features) * (bins + 1), persistent=False)
        self.bins = nn.Embedding(features * (bins + 1), dim)
        nn.init.normal_(self.bins.weight, std=init_std)

    def _apply(self, fn: Any, recurse: bool = True) -> "DenseEncoder":
        """Cast the vectors with the model, but not what raw numbers are compared with: counts overflow in half."""
        statistics = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, tensor in statistics.items():
            self._buffers[name] = None if tensor is None else keep_types(fn)(tensor)
        return self

    def forward(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch.

        Args:
            dense: (B, K) float32, NaN = missing.

        Returns:
            (B, 2 K) scaled values (missing = mean) followed by 1 where missing, and (B, K, D) vectors of the bins; both
            of the type of the weights.
        """
        missing = dense.isnan()
        scaled = torch.where(missing, 0.0, (dense - self.mean) / self.std)
        bin_of = (dense.unsqueeze(2) >= self.edges).sum(dim=2) + 1
        vectors = self.bins(self.first + torch.where(missing, 0, bin_of))
        numbers = torch.cat([scaled, missing.to(scaled.dtype)], dim=1)
        return numbers.to(self.bins.weight.dtype), vectors
