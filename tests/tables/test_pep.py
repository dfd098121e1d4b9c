"""PEP's soft threshold against plain numpy, and its gradient where public code has none."""

import numpy as np
import pytest
import torch

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.tables.pep import PepConfig


def make(per: str, level: float):
    specs = [TableSpec(name=name, num_embeddings=20, embedding_dim=4, max_length=1, init_std=0.3) for name in "ab"]
    search = PepConfig(per=per).pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, search)
    search.level.fill_(level)
    search.thresholds.data.copy_(torch.randn_like(search.thresholds) / 2)
    return search, torch.stack([weight.detach() for weight in tables.weights])


@pytest.mark.parametrize(
    ("per", "shape"),
    [("global", (1, 1)), ("feature", (2, 1)), ("dimension", (1, 4)), ("feature_dimension", (2, 4))],
)
def test_entries_are_shrunk_by_the_sigmoid(per: str, shape: tuple[int, int]):
    search, vectors = make(per, level=-1.0)
    assert search.thresholds.shape == shape
    ids, spec = torch.arange(20).expand(2, 20), torch.tensor([[0], [1]])
    out = search.gate(vectors, ids, spec).detach().numpy()
    by = 1 / (1 + np.exp(1.0 - search.thresholds.detach().numpy()))
    by = np.broadcast_to(by, (2, 4))[:, None, :]
    v = vectors.numpy()
    np.testing.assert_allclose(out, np.sign(v) * np.maximum(np.abs(v) - by, 0), atol=1e-6)
    assert 0.05 < (out == 0).mean() < 0.95


@pytest.mark.parametrize("level", [-15.0, -1.0])
def test_thresholds_learn(level: float):
    search, vectors = make("feature", level)
    ids, spec = torch.arange(20).expand(2, 20), torch.tensor([[0], [1]])
    search.gate(vectors, ids, spec).square().sum().backward()
    assert bool((search.thresholds.grad < 0).all())  # a larger threshold makes the vectors smaller
    (adam,) = search.optimizers()
    before = search.thresholds.detach().clone()
    adam.step()
    assert bool((search.thresholds > before).all())


def test_unknown_kinds_of_thresholds_are_told():
    with pytest.raises(RecembError, match=r"table.per=row is not known; choose one of global, feature"):
        PepConfig(per="row")
    with pytest.raises(RecembError, match=r"table.threshold_lr=-1 must be"):
        PepConfig(threshold_lr=-1)
