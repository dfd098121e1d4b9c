"""Mixed-dimension tables: the paper's widths and ratios, blocks of equal popularity, popular ids fitted best."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables_samples import make_batch, make_specs, zipf_counts
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec
from recemb.datasets import DATASETS
from recemb.tables.low_rank import LowRankConfig
from recemb.tables.mixed_dimension import MixedDimensionConfig


@pytest.mark.parametrize(("alpha", "smaller"), [(0.1, 3.98), (0.2, 15.70), (0.3, 15.99)])
def test_criteos_ratios_are_the_known_ones(alpha: float, smaller: float):
    features = DATASETS["criteo_kaggle_shape"]().describe_features()
    specs = [TableSpec(name=f.name, num_embeddings=f.num_embeddings, embedding_dim=16) for f in features]
    layout = MixedDimensionConfig(alpha=alpha, blocks="feature").layout(specs)
    assert sum(spec.full_bytes for spec in specs) / layout.serving_bytes == pytest.approx(smaller, abs=0.005)


@given(
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=400).map(lambda counts: sorted(counts, reverse=True)),
    unknown=st.integers(0, 1000),
    blocks=st.integers(1, 16),
)
def test_blocks_of_a_feature_are_looked_up_equally_often(counts: list[int], unknown: int, blocks: int):
    spec = TableSpec(
        name="C1", num_embeddings=len(counts) + 1, embedding_dim=8, counts=torch.tensor([unknown, *counts])
    )
    (cut,) = MixedDimensionConfig(num_blocks=blocks, threshold=0).blocks_of([spec])
    assert [block.first for block in cut] == [0, *(block.stop for block in cut[:-1])]
    assert cut[-1].stop == spec.num_embeddings
    if sum(counts) + unknown == 0:
        return
    totals = [block.popularity * block.rows for block in cut]
    assert sum(totals) == pytest.approx(sum(counts) + unknown)
    # No block can be more exact than the id that ends it.
    assert max(totals) <= (sum(counts) + unknown) / blocks + max(counts[0], unknown) + 1e-6
    assert len(cut) <= blocks


def test_widths_follow_the_popularity_of_a_row_and_not_of_a_block():
    """The formula of the paper; its prose would give every block here, being looked up equally often, one width."""
    spec = TableSpec(name="C1", num_embeddings=5001, embedding_dim=64, counts=zipf_counts(5001))
    config = MixedDimensionConfig(alpha=0.5, num_blocks=8)
    (blocks,) = config.blocks_of([spec])
    layout = config.layout([spec])
    expected = [round(64 * (block.popularity / blocks[0].popularity) ** 0.5) for block in blocks]
    # A projection must not cost more than it saves, so blocks of few rows keep full width.
    expected = [d if b.rows * d + d * 64 < b.rows * 64 else 64 for d, b in zip(expected, blocks, strict=True)]
    assert [table.dim for table in layout.tables] == [width for width, _ in itertools.groupby(expected)]
    assert len(set(expected)) > 4
    assert layout.tables[-1].dim < 8
    powers = MixedDimensionConfig(alpha=0.5, num_blocks=8, power_of_two=True).layout([spec])
    assert {table.dim for table in powers.tables} <= {1, 2, 4, 8, 16, 32, 64}


def test_vectors_are_those_of_the_paper():
    spec = TableSpec(name="C1", num_embeddings=2000, embedding_dim=8, counts=zipf_counts(2000))
    tables = CompressedEmbeddingBagCollection([spec], MixedDimensionConfig(alpha=0.4, least_width=1)).double()
    weights = {name.split(".")[1]: weight.detach().numpy() for name, weight in tables.tables.named_parameters()}
    matrices = {name: weight.detach().numpy() for name, weight in tables.method.named_parameters()}
    ids = torch.arange(2000)
    out = tables(KeyedJaggedTensor(keys=["C1"], values=ids, lengths=torch.ones_like(ids))).values().detach().numpy()
    start = 0
    assert len(weights) > 3
    for name, rows in weights.items():
        expected = rows @ matrices.get(f"projection:{name}", np.eye(8))
        np.testing.assert_allclose(out[start : start + len(rows)], expected, atol=1e-12)
        start += len(rows)
    assert start == 2000


def test_the_rarest_ids_share_the_row_of_unknown_values():
    specs = make_specs(max_length=1)
    full = sum(spec.full_bytes for spec in specs)
    config = MixedDimensionConfig().fit(specs, full // 64)
    tables = CompressedEmbeddingBagCollection(specs, config)
    rows = sum(table.rows for table in tables.method.layout.tables)
    assert rows < sum(spec.num_embeddings for spec in specs)
    batch = KeyedJaggedTensor(
        keys=[spec.name for spec in specs],
        values=torch.tensor([[0, spec.num_embeddings - 1] for spec in specs]).flatten(),
        lengths=torch.ones(8, dtype=torch.int64),
    )
    out = tables(batch)
    assert torch.equal(out["item"][0], out["item"][1])
    assert not torch.equal(out["gender"][0], out["gender"][1])
    with pytest.raises(RecembError, match="the least possible is"):
        MixedDimensionConfig(least_width=1).fit(specs, full // 64)


def test_powers_of_two_drop_no_ids_that_plain_rounding_keeps():
    counts = torch.tensor([0] + [100] * 10 + [1] * 990)
    spec = TableSpec(name="C1", num_embeddings=1001, embedding_dim=8, counts=counts)
    for powers in (False, True):
        config = MixedDimensionConfig(alpha=0.56, num_blocks=2, power_of_two=powers)
        assert sum(table.rows for table in config.layout([spec]).tables) == 1001


def test_a_feature_that_was_never_seen_is_one_block():
    spec = TableSpec(name="C1", num_embeddings=10, embedding_dim=4, counts=torch.zeros(10, dtype=torch.int64))
    assert MixedDimensionConfig(threshold=0).layout([spec]).tables[0].rows == 10


def test_a_given_alpha_is_kept_under_a_budget():
    specs = make_specs()
    full = sum(spec.full_bytes for spec in specs)
    free, given = (MixedDimensionConfig(alpha=alpha).fit(specs, full // 8) for alpha in (None, 0.15))
    assert given.alpha == pytest.approx(0.15, abs=1e-4)
    assert given.scale is not None
    assert free.alpha != given.alpha
    assert given.layout(specs).serving_bytes <= full // 8


def test_narrow_rows_take_no_more_memory_than_they_say():
    spec = TableSpec(name="C1", num_embeddings=4001, embedding_dim=16, counts=zipf_counts(4001))
    layout = MixedDimensionConfig(alpha=0.6, least_width=1).layout([spec])
    assert {1, 2} <= {table.dim for table in layout.tables}
    assert layout.parts["rows"] == sum(table.rows * table.dim * 4 for table in layout.tables)


def test_popular_ids_are_fitted_better_than_by_equal_widths():
    """The paper's claim: at equal bytes, less error where the lookups are."""
    counts = zipf_counts(3000)
    spec = TableSpec(name="C1", num_embeddings=3000, embedding_dim=16, counts=counts, init_std=0.3, max_length=1)
    ids = torch.arange(3000)
    batch = KeyedJaggedTensor(keys=["C1"], values=ids, lengths=torch.ones_like(ids))
    target = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    traffic = (counts / counts.sum()).unsqueeze(1)
    losses = {}
    for config in (MixedDimensionConfig(least_width=1), LowRankConfig()):
        tables = CompressedEmbeddingBagCollection([spec], config.fit([spec], spec.full_bytes // 4))
        optimizer = torch.optim.Adam(tables.parameters(), lr=0.05)
        for _ in range(200):
            loss = ((tables(batch).values() - target).square() * traffic).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[type(config)] = loss.item()
    assert losses[MixedDimensionConfig] < 0.7 * losses[LowRankConfig]


@pytest.mark.parametrize("fused", [False, True])
def test_features_that_share_a_table_share_its_blocks(fused: bool):
    specs = make_specs()
    specs[2] = TableSpec(
        name="item", num_embeddings=5000, embedding_dim=8, counts=zipf_counts(5000), feature_names=["seen", "bought"]
    )
    config = MixedDimensionConfig(alpha=0.5)
    tables = CompressedEmbeddingBagCollection(specs, config, optimizer=FusedOptimizer() if fused else None)
    batch = make_batch(specs)
    out = tables(batch)
    swapped = KeyedJaggedTensor(
        keys=[{"seen": "bought", "bought": "seen"}.get(key, key) for key in batch.keys()],  # noqa: SIM118
        values=batch.values(),
        lengths=batch.lengths(),
    )
    again = tables(swapped)
    torch.testing.assert_close(out["seen"], again["bought"])
    assert out["seen"].shape[1] == 8  # beside tables of width 16
    assert out["city"].shape[1] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "table.alpha is 1.5; it must lie between 0 and 1"),
        ({"blocks": "row"}, "table.blocks=row is not known; choose one of feature, popularity"),
        ({"num_blocks": 0}, "table.num_blocks is 0"),
        ({"scale": 0.0}, "table.scale is 0.0"),
        ({"least_width": -1}, "table.least_width is -1"),
    ],
)
def test_options_that_make_no_sense_are_explained(options: dict[str, object], message: str):
    with pytest.raises(RecembError, match=message):
        MixedDimensionConfig(**options)
