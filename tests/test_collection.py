"""What the collection and its hosts refuse, and what they keep together."""

import copy
import pickle

import pytest
import torch
from tables_samples import make_batch, make_specs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec
from recemb.tables.full import FullConfig


def fused(width: int | None = None) -> CompressedEmbeddingBagCollection:
    return CompressedEmbeddingBagCollection(make_specs(), FullConfig(width=width), optimizer=FusedOptimizer(lr=0.1))


def one_table(**options: object) -> TableSpec:
    return TableSpec(**{"name": "a", "num_embeddings": 5, "embedding_dim": 4} | options)


@pytest.mark.parametrize("host", [None, FusedOptimizer()])
def test_batches_it_cannot_serve_are_refused(host: FusedOptimizer | None):
    tables = CompressedEmbeddingBagCollection([one_table()], FullConfig(), optimizer=host)
    ids, lengths = torch.tensor([1, 2]), torch.tensor([1, 1])
    with pytest.raises(RecembError, match="per-id weights"):
        tables(KeyedJaggedTensor(keys=["a"], values=ids, lengths=lengths, weights=torch.ones(2)))
    with pytest.raises(RecembError, match="ids must be integers"):
        tables(KeyedJaggedTensor(keys=["a"], values=ids.float(), lengths=lengths))
    with pytest.raises(RecembError, match="lacks feature 'a'"):
        tables(KeyedJaggedTensor(keys=["b"], values=ids, lengths=lengths))


def test_a_bag_longer_than_promised_is_refused():
    tables = CompressedEmbeddingBagCollection([one_table(max_length=1)], FullConfig())
    with pytest.raises(RecembError, match="a bag holds 2 ids"):
        tables(KeyedJaggedTensor(keys=["a"], values=torch.tensor([1, 2]), lengths=torch.tensor([2, 0])))


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([], "at least one table"),
        ([one_table(), one_table()], "named 2 times"),
        ([one_table(), one_table(name="b", feature_names=["a"])], "feature 'a' is named 2 times"),
        ([one_table(name="type")], "cannot be used"),
        ([one_table(name="a.b")], "cannot be used"),
    ],
)
def test_names_that_cannot_be_are_refused(specs: list[TableSpec], said: str):
    with pytest.raises(RecembError, match=said):
        CompressedEmbeddingBagCollection(specs, FullConfig())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_embeddings": 0}, "num_embeddings is 0"),
        ({"counts": torch.tensor([1, 2])}, "counts has shape"),
        ({"counts": torch.tensor([9, 1, 2, 1, 1])}, "counts must fall"),
        ({"init_std": float("nan")}, "init_std"),
    ],
)
def test_specs_that_cannot_be_are_refused(options: dict, said: str):
    with pytest.raises(RecembError, match=said):
        one_table(**options)


@pytest.mark.parametrize("width", [1, 3, 16])
def test_batches_without_an_id_or_a_row_are_fine(width: int):
    tables = fused(width)
    keys = [spec.name for spec in tables.specs]
    nothing = torch.zeros(0, dtype=torch.int64)
    for bags in (0, 3):
        out = tables(KeyedJaggedTensor(keys=keys, values=nothing, lengths=torch.zeros(len(keys) * bags).long()))
        assert out.values().shape == (bags, len(keys) * width)


def test_fused_weights_never_part_from_the_kernels_memory():
    tables = fused()
    for move in (torch.nn.Module.double, torch.nn.Module.half, torch.nn.Module.bfloat16):
        with pytest.raises(RecembError, match="stay float32"):
            move(tables)
    tables.float().to("cpu")
    ones = {name: torch.ones_like(weight) for name, weight in tables.state_dict().items()}
    tables.load_state_dict(ones, assign=True)
    assert tables(make_batch(tables.specs)).values().max() >= 1
    with pytest.raises(RecembError, match="state_dict"):
        pickle.dumps(tables)


def test_a_deep_copy_learns_on_its_own_from_where_it_was():
    tables, batch = fused(), make_batch(make_specs())
    tables(batch).values().square().sum().backward()
    twin = copy.deepcopy(tables)
    frozen = {name: weight.clone() for name, weight in tables.state_dict().items()}
    twin(batch).values().sum().backward()
    assert all(torch.equal(weight, frozen[name]) for name, weight in tables.state_dict().items())
    assert not torch.equal(
        twin.state_dict()["tables.embedding_bags.city.weight"], frozen["tables.embedding_bags.city.weight"]
    )
    tables(batch).values().sum().backward()
    for name, weight in tables.state_dict().items():
        assert torch.equal(weight, twin.state_dict()[name]), name
