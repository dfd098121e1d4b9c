"""What the collection and its hosts refuse, and what they keep together."""

import copy
from pathlib import Path

import pytest
import torch
from tables_samples import make_batch, make_specs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec
from recemb.tables.base import PhysicalTable
from recemb.tables.full import FullConfig
from recemb.tables.storage import FusedTables
from recemb.training.checkpoint import load_tensors, save_tensors


def fused(dim: int = 16) -> CompressedEmbeddingBagCollection:
    return CompressedEmbeddingBagCollection(make_specs(dim), FullConfig(), optimizer=FusedOptimizer(lr=0.1))


def of_widths(widths: list[int], name: str, seed: int = 0) -> CompressedEmbeddingBagCollection:
    """Tables of 11, 12, ... rows, under an optimizer; `plain` for none."""
    specs = [TableSpec(name=f"t{n}", num_embeddings=11 + n, embedding_dim=width) for n, width in enumerate(widths)]
    optimizer = None if name == "plain" else FusedOptimizer(name, lr=0.1)
    return CompressedEmbeddingBagCollection(specs, FullConfig(), optimizer=optimizer, seed=seed)


def learn(tables: CompressedEmbeddingBagCollection, steps: int) -> None:
    for step in range(steps):
        tables(make_batch(tables.specs, seed=step)).values().square().sum().backward()


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


@pytest.mark.parametrize(
    ("width", "stored"), [(1, (5, 4)), (6, (10, 12)), (15, (5, 60)), (16, (19, 16)), (17, (19, 20)), (57, (19, 60))]
)
@pytest.mark.parametrize("name", ["rowwise_adagrad", "adagrad", "sgd"])
def test_narrow_rows_lie_side_by_side_and_wide_ones_have_unused_floats(width: int, stored: tuple[int, int], name: str):
    rows, floats = stored
    host = FusedTables([PhysicalTable("t0", 19, width, 0.01)], [0], FusedOptimizer(name))
    assert host.stored_bytes() == 4 * rows * floats
    assert host.optimizer_bytes() == {"rowwise_adagrad": 4 * rows, "adagrad": 4 * rows * floats, "sgd": 0}[name]
    weight = host.read("t0")
    assert weight.shape == (19, width)
    assert weight.stride() == ((floats if width > 16 else width), 1)
    shapes = [tensor.shape for tensor in host.optimizer_tensors().values()]
    assert shapes == {"rowwise_adagrad": [(rows,)], "adagrad": [(19, width)], "sgd": []}[name]


@pytest.mark.parametrize("widths", [[17, 16, 30, 57, 6], [57, 16], [57]], ids=str)
@pytest.mark.parametrize("name", ["adagrad", "sgd"])
def test_rows_of_any_width_are_read_and_learn_like_plain_ones(widths: list[int], name: str):
    plain, tables = of_widths(widths, "plain"), of_widths(widths, name)
    assert all(map(torch.equal, plain.weights, tables.weights))
    optimizer: torch.optim.Optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    if name == "adagrad":
        optimizer = torch.optim.Adagrad(plain.parameters(), lr=0.1, eps=FusedOptimizer().eps)
    for step in range(3):
        batch = make_batch(plain.specs, seed=step)
        ours, theirs = plain(batch).values(), tables(batch).values()
        torch.testing.assert_close(ours, theirs)
        optimizer.zero_grad()
        for vectors in (ours, theirs):
            vectors.square().sum().backward()
        optimizer.step()
    for one, other in zip(plain.weights, tables.weights, strict=True):
        torch.testing.assert_close(one, other)
    sums = tables.tables.optimizer_tensors()
    if name == "adagrad":
        for key, weight in plain.tables.named_parameters():
            torch.testing.assert_close(sums[key.replace(".weight", ".momentum1")], optimizer.state[weight]["sum"])


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adagrad", "sgd"])
def test_what_is_saved_has_no_padding_and_comes_back(name: str, tmp_path: Path):
    widths = [17, 16, 57, 6]
    tables, other, plain = of_widths(widths, name), of_widths(widths, name, seed=1), of_widths(widths, "plain", seed=2)
    learn(tables, 2)
    save_tensors(tables.state_dict() | tables.tables.optimizer_tensors(), tmp_path / "saved")
    load_tensors(other.state_dict() | other.tables.optimizer_tensors(), tmp_path / "saved", "{folder} cannot be read.")
    load_tensors(plain.state_dict(), tmp_path / "saved", "{folder} cannot be read.")
    assert [weight.shape[1] for weight in plain.weights] == widths
    assert all(map(torch.equal, tables.weights, plain.weights))
    learn(tables, 1)
    learn(other, 1)
    assert all(map(torch.equal, tables.weights, other.weights))
    learn(tables, 1)
    plain.load_state_dict(tables.state_dict())
    other.load_state_dict(plain.state_dict())
    assert all(map(torch.equal, tables.weights, other.weights))
    other.write([torch.ones_like(weight) for weight in other.weights])
    assert bool((other(make_batch(other.specs, empty=False)).values() >= 1).all())


@pytest.mark.parametrize("width", [1, 3, 16, 57])
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
    with pytest.raises(RecembError, match="other memory"):
        tables.to_empty(device="cpu")


@pytest.mark.parametrize("dim", [16, 57])
def test_a_deep_copy_learns_on_its_own_from_where_it_was(dim: int):
    tables, batch = fused(dim), make_batch(make_specs())
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
