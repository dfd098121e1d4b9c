"""The backbone against numpy, torchrec, and what it must refuse."""

import numpy as np
import pytest
import torch
from tables_samples import make_batch, make_specs
from torchrec.models.dlrm import InteractionArch

from recemb import CompressedEmbeddingBagCollection, RecembError
from recemb.models import DLRMConfig
from recemb.models.dense import DenseEncoder
from recemb.models.dlrm import PairwiseProducts
from recemb.tables.full import FullConfig


def sample(rows: int = 1000) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(rows, 3, generator=random)
    dense[:, 1] = torch.randint(0, 3, (rows,), generator=random).float()
    dense[torch.rand(rows, 3, generator=random) < 0.2] = torch.nan
    return dense


def test_numbers_are_scaled_and_binned_as_numpy_does():
    dense = sample()
    encoder = DenseEncoder(dense, bins=8, dim=4, init_std=1.0)
    scaled, vectors = encoder(dense)
    columns = dense.double().numpy()
    weight = encoder.bins.weight.detach().numpy()
    for j in range(3):
        column = columns[:, j]
        known = column[~np.isnan(column)]
        expected = np.where(np.isnan(column), 0, (column - known.mean()) / known.std())
        np.testing.assert_allclose(scaled[:, j], expected, atol=1e-5)
        np.testing.assert_array_equal(scaled[:, 3 + j], np.isnan(column))
        edges = np.unique(np.quantile(known, np.arange(1, 8) / 8).astype(np.float32))
        bins = np.where(np.isnan(column), 0, 1 + np.searchsorted(edges, column.astype(np.float32), side="right"))
        np.testing.assert_array_equal(vectors[:, j].detach().numpy(), weight[j * 9 + bins])


def test_cuts_that_coincide_count_once():
    dense = torch.tensor([0.0] * 60 + [1.0] * 40).unsqueeze(1)
    encoder = DenseEncoder(dense, bins=4, dim=2, init_std=1.0)
    assert encoder.edges.isfinite().sum() == 2
    assert len(torch.unique(encoder(dense)[1][:, 0], dim=0)) == 2


def test_a_feature_without_a_known_value_is_harmless():
    dense = torch.full((10, 2), torch.nan)
    scaled, vectors = DenseEncoder(dense, bins=4, dim=2, init_std=1.0)(torch.tensor([[torch.nan, 3.0]]))
    assert torch.isfinite(scaled).all()
    assert torch.isfinite(vectors).all()


def test_pairwise_products_are_torchrecs():
    dense, sparse = torch.randn(5, 4), torch.randn(5, 6, 4)
    torch.testing.assert_close(PairwiseProducts(6)(dense, sparse), InteractionArch(6)(dense, sparse))


@pytest.mark.parametrize("width", [1, 4, 16])
@pytest.mark.parametrize("numbers", [0, 3])
def test_every_weight_learns_at_any_width(width: int, numbers: int):
    specs = make_specs()
    tables = CompressedEmbeddingBagCollection(specs, FullConfig(width=width))
    dense = sample()[:, :numbers]
    torch.manual_seed(0)
    model = DLRMConfig(bottom_layers=[8], top_layers=[8]).build(tables, dense)
    batch = make_batch(specs, bags=1000)
    logits = model(dense, batch)
    assert logits.shape == (1000,)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if parameter.numel():
            assert parameter.grad.abs().sum() > 0, name


def test_options_out_of_range_are_named():
    for options, said in (
        ({"embedding_dim": 0}, "model.embedding_dim=0"),
        ({"init_std": -1.0}, "model.init_std"),
        ({"dense_bins": 1}, "model.dense_bins=1"),
        ({"top_layers": []}, "model.top_layers"),
    ):
        with pytest.raises(RecembError, match=said):
            DLRMConfig(**options)
