"""Compositional tables: complementary partitions at every size, the paper's parameter counts, exact integer rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables_samples import make_batch, make_specs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.datasets import DATASETS
from recemb.tables.compositional import SCHEMES, CompositionalConfig
from recemb.tables.hashing import HashingConfig
from recemb.tables.registry import create_table


def one_table(num_embeddings: int, config: CompositionalConfig, dim: int = 4):
    spec = TableSpec(name="C1", num_embeddings=num_embeddings, embedding_dim=dim, max_length=1)
    return create_table(config, [spec])


def buckets_of(ids: torch.Tensor, config: CompositionalConfig, num_embeddings: int) -> torch.Tensor:
    """(N, k) row numbers of ids."""
    table = one_table(num_embeddings, config)
    lookups = range(len(table.layout.lookups[0]))
    return torch.stack([table.remap(ids, torch.full_like(ids, lookup)) for lookup in lookups], dim=1)


configs = st.builds(
    CompositionalConfig,
    scheme=st.sampled_from(SCHEMES[1:]),
    partitions=st.integers(2, 5),
    threshold=st.just(0),
    collisions=st.one_of(st.none(), st.integers(1, 300)),
) | st.builds(
    CompositionalConfig,
    scheme=st.sampled_from(SCHEMES[:2]),
    large=st.sampled_from(["remainder", "quotient"]),
    threshold=st.just(0),
    rows=st.integers(1, 3000),
)


@given(config=configs, num_embeddings=st.integers(1, 3000))
def test_any_two_ids_differ_in_a_partition(config: CompositionalConfig, num_embeddings: int):
    buckets = buckets_of(torch.arange(num_embeddings), config, num_embeddings)
    assert len(torch.unique(buckets, dim=0)) == num_embeddings


@given(
    config=configs,
    num_embeddings=st.integers(2**24, 2**35),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=30),
)
def test_any_two_huge_ids_differ_in_a_partition(config: CompositionalConfig, num_embeddings: int, draws: list[float]):
    drawn = {int(draw * num_embeddings) for draw in draws}
    ids = torch.tensor(sorted(drawn | {one - 1 for one in drawn if one} | {num_embeddings - 1}))
    table = one_table(num_embeddings, config)
    buckets = buckets_of(ids, config, num_embeddings)
    assert len(torch.unique(buckets, dim=0)) == len(ids)
    rows = torch.tensor([table.layout.tables[index].rows for index in table.layout.lookups[0]])
    assert bool(((buckets >= 0) & (buckets < rows)).all())


def test_moduli_of_the_chinese_remainder_are_coprime():
    table = one_table(10**6, CompositionalConfig(scheme="chinese_remainder", partitions=4, collisions=1000))
    moduli = [one.rows for one in table.layout.tables]
    assert len(moduli) == 4
    assert math.prod(moduli) >= 10**6
    assert all(math.gcd(one, other) == 1 for i, one in enumerate(moduli) for other in moduli[:i])


@pytest.mark.parametrize(
    ("collisions", "parameters"),
    [
        (1, 540_201_232), (2, 270_102_928), (3, 180_070_256), (4, 135_054_048), (5, 108_044_448), (6, 90_038_160),
        (7, 77_176_592), (10, 54_026_128), (60, 9_024_032),
    ],
)  # fmt: skip
def test_criteos_parameter_counts_are_the_published_ones(collisions: int, parameters: int):
    features = DATASETS["criteo_kaggle_shape"]().describe_features()
    specs = [TableSpec(name=f.name, num_embeddings=f.num_embeddings, embedding_dim=16) for f in features]
    layout = CompositionalConfig(collisions=collisions, large="quotient").layout(specs)
    assert layout.parts["rows"] // 4 == parameters
    # The other way round no row is left unused, which at 60 saves fourteen of them.
    other = CompositionalConfig(collisions=collisions, large="remainder").layout(specs)
    assert other.parts["rows"] // 4 == (parameters if collisions < 60 else 9_023_808)


def test_rows_are_exact_where_float32_is_not():
    """In float32 arithmetic a third of these ids get a neighbour's quotient."""
    num_embeddings, ids = 40_000_000, torch.arange(32_000_000, 32_100_000)
    buckets = buckets_of(ids, CompositionalConfig(collisions=1000), num_embeddings).numpy()
    np.testing.assert_array_equal(buckets[:, 0], ids.numpy() % 40_000)
    np.testing.assert_array_equal(buckets[:, 1], ids.numpy() // 40_000)


def test_the_most_frequent_ids_share_their_large_row_with_rarer_ones_only_or_with_neighbours():
    ids = torch.arange(1000)
    remainder = buckets_of(ids, CompositionalConfig(collisions=10), 1000)
    assert remainder[:100, 0].tolist() == list(range(100))
    quotient = buckets_of(ids, CompositionalConfig(collisions=10, large="quotient"), 1000)
    assert quotient[:100, 0].tolist() == [number // 10 for number in range(100)]


def reference(ids: np.ndarray, weights: list[np.ndarray], combine: str, hidden: int) -> np.ndarray:
    """QR of 5000 ids with 500 remainders, as in the paper."""
    remainder, quotient = ids % 500, ids // 500
    first = weights[0][remainder]
    if combine == "multiply":
        return first * weights[1][quotient]
    if combine == "add":
        return first + weights[1][quotient]
    if combine == "concat":
        return np.concatenate([first, weights[1][quotient]], axis=1)
    vectors = []
    for vector, bucket in zip(first, quotient, strict=True):
        matrix, bias = weights[1][bucket], weights[2][bucket]
        into, out = matrix[: 8 * hidden].reshape(hidden, 8), matrix[8 * hidden :].reshape(8, hidden)
        vectors.append(out @ np.maximum(into @ vector + bias[:hidden], 0) + bias[hidden:])
    return np.array(vectors)


@pytest.mark.parametrize("combine", ["multiply", "add", "concat", "path"])
def test_vectors_are_those_of_the_paper(combine: str):
    spec = TableSpec(name="C1", num_embeddings=5000, embedding_dim=8, init_std=0.5)
    config = CompositionalConfig(combine=combine, collisions=10, hidden=3)
    tables = CompressedEmbeddingBagCollection([spec], config).double()
    ids = torch.randint(0, 5000, (200,))
    weights = [weight.detach().numpy() for weight in tables.tables.parameters()]
    if combine == "path":
        weights[2] += 0.3  # biases start at zero and would hide a mistake
    batch = KeyedJaggedTensor(keys=["C1"], values=ids, lengths=torch.ones_like(ids))
    expected = reference(ids.numpy(), weights, combine, 3)
    np.testing.assert_allclose(tables(batch).values().detach().numpy(), expected, atol=1e-12)


def test_a_bag_multiplies_each_id_before_it_is_pooled():
    specs = make_specs()
    tables = CompressedEmbeddingBagCollection(specs, CompositionalConfig(collisions=4, threshold=10))
    batch = make_batch(specs, bags=50)
    weights = dict(tables.tables.named_parameters())
    out = tables(batch)
    for spec in specs[1:]:
        rows = -(-spec.num_embeddings // 4)
        remainder, quotient = (
            weights[f"embedding_bags.{spec.name}:{part}.weight"] for part in ("remainder", "quotient")
        )
        for bag, ids in enumerate(batch[spec.name].to_dense()):
            expected = (remainder[ids % rows] * quotient[ids // rows]).sum(dim=0)
            torch.testing.assert_close(out[spec.name][bag], expected, atol=1e-6, rtol=0)


def test_every_id_can_be_told_apart_where_hashing_cannot():
    """The paper's claim: at equal bytes unique vectors fit what merged ones cannot."""
    spec = TableSpec(name="C1", num_embeddings=1000, embedding_dim=16, init_std=0.3, max_length=1)
    ids = torch.arange(1000)
    batch = KeyedJaggedTensor(keys=["C1"], values=ids, lengths=torch.ones_like(ids))
    target = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    losses = {}
    for config in (CompositionalConfig(), HashingConfig()):
        torch.manual_seed(0)
        fitted = config.fit([spec], spec.full_bytes // 4)
        model = torch.nn.Sequential(CompressedEmbeddingBagCollection([spec], fitted), torch.nn.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(300):
            loss = (model[1](model[0](batch).values()).squeeze(1) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[type(config)] = loss.item()
    assert losses[CompositionalConfig] < 0.2 * losses[HashingConfig]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "qr"}, "table.scheme=qr is not known; choose one of quotient_remainder, mixed_radix"),
        ({"combine": "sum"}, "table.combine=sum is not known; choose one of multiply, add, concat, path"),
        ({"partitions": 3}, "quotient_remainder has two partitions, not 3; take mixed_radix or chinese_remainder"),
        ({"collisions": 2, "rows": 7}, "both say how large"),
        ({"scheme": "chinese_remainder", "large": "quotient"}, "chinese_remainder has remainders only"),
        ({"collisions": 0}, "table.collisions is 0; it must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_explained(options: dict[str, object], message: str):
    with pytest.raises(RecembError, match=message):
        CompositionalConfig(**options)


def test_a_width_that_does_not_divide_is_explained():
    specs = make_specs(dim=9)
    with pytest.raises(RecembError, match="2 rows side by side cannot make a vector 9 wide"):
        CompositionalConfig(combine="concat", collisions=4).layout(specs)
