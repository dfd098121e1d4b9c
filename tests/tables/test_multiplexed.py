"""The multiplexed table: salted probes into one table, widths by probes, raw ids, small features spread out."""

import dataclasses

import numpy as np
import pytest
import torch
from tables_samples import SIZES, make_specs
from test_hashing import splitmix
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec
from recemb.hashing import salt_of
from recemb.tables.base import total_full_bytes
from recemb.tables.hashing import HashingConfig
from recemb.tables.multiplexed import MultiplexedConfig


@pytest.mark.parametrize("fused", [False, True])
def test_a_vector_is_its_probes_side_by_side(fused: bool):
    specs = make_specs(dim=8)
    config = MultiplexedConfig(rows=600, probes=2, probes_of={"user": 3}, threshold=10)
    tables = CompressedEmbeddingBagCollection(specs, config, optimizer=FusedOptimizer() if fused else None)
    shared = tables.tables.get_parameter("embedding_bags.shared.weight").detach().numpy()
    assert shared.shape == (600, 4)
    ids = np.array([0, 1, 2])
    keys = list(SIZES)
    values = torch.from_numpy(np.tile(ids, len(keys)))
    out = tables(KeyedJaggedTensor(keys=keys, values=values, lengths=torch.ones_like(values)))
    for name, probes in (("city", 2), ("item", 2), ("user", 3)):
        rows = [splitmix(ids, salt_of(name, probe)).astype(np.int64) % 600 for probe in range(probes)]
        expected = np.concatenate([shared[row] for row in rows], axis=1)
        np.testing.assert_allclose(out[name].detach().numpy(), expected, atol=1e-7)
    own = tables.tables.get_parameter("embedding_bags.gender.weight")
    torch.testing.assert_close(out["gender"], own)


def test_a_feature_more_or_less_moves_nobody_elses_rows():
    specs = make_specs()
    ids = torch.arange(300)
    config = MultiplexedConfig(rows=500, threshold=0)
    all_of_them = CompressedEmbeddingBagCollection(specs, config).method.remap(ids, torch.full_like(ids, 3))
    without_one = CompressedEmbeddingBagCollection(specs[1:], config).method.remap(ids, torch.full_like(ids, 2))
    reversed_ = CompressedEmbeddingBagCollection(specs[::-1], config).method.remap(ids, torch.zeros_like(ids))
    assert torch.equal(all_of_them, without_one)
    assert torch.equal(all_of_them, reversed_)


def test_small_features_collide_less_with_themselves_than_under_hashing_of_their_own():
    """Section 4 of the paper: every feature spreads over all rows, so its own ids rarely meet."""
    specs = make_specs()[1:]
    budget = total_full_bytes(specs) // 20
    alone = {}
    for config in (MultiplexedConfig(threshold=0), HashingConfig(threshold=0)):
        method = CompressedEmbeddingBagCollection(specs, config.fit(specs, budget)).method
        rows = method.remap(torch.arange(307), torch.zeros(307, dtype=torch.int64))
        alone[type(config)] = (torch.bincount(rows)[rows] == 1).float().mean().item()
    rows = budget // 64
    assert alone[MultiplexedConfig] == pytest.approx((1 - 1 / rows) ** 306, abs=0.12)
    assert alone[HashingConfig] < 0.05


def test_two_probes_keep_nearly_all_ids_apart():
    spec = TableSpec(name="C1", num_embeddings=5000, embedding_dim=8)
    ids = torch.arange(5000)
    apart = {}
    for probes in (1, 2):
        config = MultiplexedConfig(rows=1000 * probes, probes=probes, threshold=0)  # equal bytes
        method = CompressedEmbeddingBagCollection([spec], config).method
        rows = torch.stack([method.remap(ids, torch.full_like(ids, probe)) for probe in range(probes)])
        apart[probes] = torch.unique(rows, dim=1).shape[1] / 5000
    assert apart[1] < 0.21
    assert apart[2] > 0.99


def test_raw_ids_need_no_vocabulary():
    specs = [
        TableSpec(name=name, num_embeddings=1000, embedding_dim=8, raw_ids=True, max_length=1) for name in ("a", "b")
    ]
    tables = CompressedEmbeddingBagCollection(specs, MultiplexedConfig().fit(specs, 6400), optimizer=FusedOptimizer())
    ids = torch.randint(-(2**63), 2**63 - 1, (2, 4000))
    out = tables(KeyedJaggedTensor(keys=["a", "b"], values=ids.flatten(), lengths=torch.ones(8000, dtype=torch.int64)))
    assert tables.method.layout.serving_bytes <= 6400
    # Uniform over the rows: each is read some 20 times a feature.
    rows = tables.method.remap(ids, torch.tensor([[0], [1]]))
    counts = torch.bincount(rows.flatten(), minlength=tables.method.layout.tables[0].rows)
    assert counts.min() > 10
    assert out["a"].shape == (4000, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 3}, "table.probes=3 rows side by side cannot make a vector 16 wide"),
        ({"probes_of": {"sity": 2}}, "table.probes_of names sity, and there is no such table"),
    ],
)
def test_options_that_do_not_fit_the_tables_are_explained(options: dict[str, object], message: str):
    with pytest.raises(RecembError, match=message):
        MultiplexedConfig(**options).layout(make_specs())


def test_tables_of_several_widths_cannot_share_rows():
    specs = [TableSpec(name=f"t{dim}", num_embeddings=9, embedding_dim=dim, init_std=dim) for dim in (4, 8)]
    with pytest.raises(RecembError, match=r"the tables ask for embedding_dim \[4, 8\]; give all of them one"):
        MultiplexedConfig(rows=5, threshold=0).layout(specs)
    specs[1] = dataclasses.replace(specs[1], embedding_dim=4)
    with pytest.raises(RecembError, match=r"the tables ask for init_std \[4, 8\]"):
        MultiplexedConfig(rows=5, threshold=0).layout(specs)
    assert MultiplexedConfig(rows=5).layout(specs).dims == [4, 4]  # small tables share nothing
    with pytest.raises(RecembError, match=r"table.probes_of.t4 is 0; it must be at least 1"):
        MultiplexedConfig(probes_of={"t4": 0})
