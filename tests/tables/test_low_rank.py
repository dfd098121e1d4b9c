"""Low rank: the product of two factors, ranks that spend a budget, and what two factors can and cannot fit."""

import numpy as np
import pytest
import torch
from tables_samples import make_specs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.tables.low_rank import LowRankConfig


def test_the_table_is_the_product_of_its_factors():
    spec = TableSpec(name="C1", num_embeddings=50, embedding_dim=8)
    tables = CompressedEmbeddingBagCollection([spec], LowRankConfig(rank=3)).double()
    (tall,) = (weight.detach().numpy() for weight in tables.tables.parameters())
    (small,) = (weight.detach().numpy() for weight in tables.method.parameters())
    assert tall.shape == (50, 3)
    assert small.shape == (3, 8)
    np.testing.assert_allclose(small @ small.T, np.eye(3) * 8 / 3, atol=1e-6)
    ids = torch.arange(50)
    out = tables(KeyedJaggedTensor(keys=["C1"], values=ids, lengths=torch.ones_like(ids))).values()
    np.testing.assert_allclose(out.detach().numpy(), tall @ small, atol=1e-12)


def test_a_fraction_of_a_rank_goes_to_the_smallest_tables():
    specs = make_specs()  # 3, 307, 5000 and 1201 ids
    assert LowRankConfig(rank=3).ranks_of(specs) == [16, 3, 3, 3]
    ids = 3 + 307 + 1201 + 5000
    assert LowRankConfig(rank=3 + (3 + 307 + 0.5) / ids).ranks_of(specs) == [16, 4, 3, 3]
    assert LowRankConfig(rank=3 + (3 + 307 + 1201 + 0.5) / ids).ranks_of(specs) == [16, 4, 3, 4]


def test_two_factors_find_a_table_of_their_rank_and_no_other():
    """The best error is that of the singular values left out (Eckart & Young, 1936)."""
    spec = TableSpec(name="C1", num_embeddings=200, embedding_dim=8, init_std=0.3, max_length=1)
    random = torch.Generator().manual_seed(0)
    target = torch.randn(200, 3, generator=random) @ torch.randn(3, 8, generator=random)
    singular = torch.linalg.svdvals(target)
    ids = torch.arange(200)
    batch = KeyedJaggedTensor(keys=["C1"], values=ids, lengths=torch.ones_like(ids))
    for rank in (2, 3):
        tables = CompressedEmbeddingBagCollection([spec], LowRankConfig(rank=rank))
        optimizer = torch.optim.Adam(tables.parameters(), lr=0.05)
        for _ in range(400):
            loss = (tables(batch).values() - target).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() == pytest.approx(singular[rank:].square().sum().item(), abs=0.02 * singular[2].item() ** 2)


def test_a_rank_past_the_width_and_a_budget_past_one_float_an_id_are_explained():
    specs = make_specs()
    with pytest.raises(RecembError, match=r"table.rank=17 is more than the width of the vectors, 16"):
        LowRankConfig(rank=17).layout(specs)
    with pytest.raises(RecembError, match=r"table=low_rank cannot be made as small as .*: the least possible is"):
        LowRankConfig().fit(specs, sum(spec.full_bytes for spec in specs) // 64)
    with pytest.raises(RecembError, match=r"table.rank is 0.5; it must be at least 1"):
        LowRankConfig(rank=0.5)


def test_tables_of_other_widths_get_ranks_up_to_their_own():
    specs = [
        TableSpec(name="wide", num_embeddings=100_000, embedding_dim=64),
        TableSpec(name="b", num_embeddings=10, embedding_dim=2),
    ]
    config = LowRankConfig().fit(specs, specs[0].full_bytes // 2)
    assert config.layout(specs).serving_bytes > 0.45 * specs[0].full_bytes
    assert [table.dim for table in config.layout(specs).tables][1] == 2
    assert LowRankConfig(rank=6).layout(specs).dims == [64, 2]
