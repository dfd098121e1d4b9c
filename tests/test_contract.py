"""Every registered method, and variants of some, through one suite: what any table of the family promises."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tables_samples import VARIANTS, Variant, make_batch, make_specs, zipf_counts
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec, list_tables
from recemb.tables.base import TableConfig, total_full_bytes
from recemb.tables.registry import Method, config_from_dict, config_to_dict, create_table, get_table

SHARES = [1.0, 0.25, 0.07]
each_method = pytest.mark.parametrize("method", VARIANTS, ids=lambda variant: variant.name)
each_share = pytest.mark.parametrize("share", SHARES)


def fitted(method: Variant, specs: list[TableSpec], share: float) -> TableConfig:
    return method.config().fit(specs, int(total_full_bytes(specs) * share))


def collection(method: Variant, specs: list[TableSpec], share: float, **options: object):
    return CompressedEmbeddingBagCollection(specs, fitted(method, specs, share), **options)


def reference(tables: CompressedEmbeddingBagCollection, batch: KeyedJaggedTensor) -> np.ndarray:
    """Bag by bag and id by id: remap one id, read its rows, combine, add up."""
    layout = tables.method.layout
    weights = [tables.tables.get_parameter(f"embedding_bags.{table.name}.weight") for table in layout.tables]
    columns = []
    for index, spec in enumerate(tables.specs):
        for feature in spec.feature_names:
            jagged = batch[feature]
            vectors = np.zeros((len(jagged.lengths()), layout.dims[index]))
            for bag, ids in enumerate(jagged.to_dense()):
                for one in ids:
                    vectors[bag] += vector_of(tables, weights, one.view(1), index).detach().numpy()[0]
            columns.append(vectors)
    return np.concatenate(columns, axis=1)


def vector_of(
    tables: CompressedEmbeddingBagCollection, weights: list[torch.Tensor], one: torch.Tensor, index: int
) -> torch.Tensor:
    """The vector (1, D) of one id (1,) of one logical table."""
    method, layout = tables.method, tables.method.layout
    first = sum(map(len, layout.lookups[:index]))
    if layout.alternatives:
        table, row = method.route(one, torch.tensor([index]))
        if method.drops_ids and int(row) == -1:
            return torch.zeros(1, layout.dims[index])
        assert int(table) in layout.lookups[index]
        assert 0 <= int(row) < layout.tables[int(table)].rows
        return method.widen(weights[int(table)][row], int(table), row)
    rows = []
    for position, table in enumerate(layout.lookups[index]):
        row = method.remap(one, torch.tensor([first + position]))
        if method.drops_ids and int(row) == -1:
            return torch.zeros(1, layout.dims[index])
        assert 0 <= int(row) < layout.tables[table].rows
        rows.append(weights[table][row])
    return method.combine(rows, index)


@each_method
@each_share
@pytest.mark.parametrize("max_length", [1, None])
@pytest.mark.parametrize("fused", [False, True])
def test_a_batch_is_its_bags_one_by_one(method: Variant, share: float, max_length: int | None, fused: bool):
    specs = make_specs(max_length=max_length)
    tables = collection(method, specs, share, optimizer=FusedOptimizer() if fused else None)
    batch = make_batch(specs)
    np.testing.assert_allclose(tables(batch).values().detach().numpy(), reference(tables, batch), atol=1e-6)


@each_method
@each_share
def test_empty_bags_are_zero_and_an_empty_batch_is_empty(method: Variant, share: float):
    specs = make_specs()
    tables = collection(method, specs, share)
    keys = [spec.name for spec in specs]
    nothing = torch.zeros(0, dtype=torch.int64)
    out = tables(KeyedJaggedTensor(keys=keys, values=nothing, lengths=torch.zeros(4 * 3, dtype=torch.int64)))
    assert out.values().shape == (3, sum(tables.method.layout.dims))
    assert not out.values().any()


@each_method
@each_share
def test_predicted_bytes_are_the_bytes_held(method: Variant, share: float):
    specs = make_specs()
    for optimizer in (None, FusedOptimizer()):
        tables = collection(method, specs, share, optimizer=optimizer)
        layout = tables.method.config.layout(specs)
        assert sum(layout.bytes_per_table(specs).values()) == layout.parts["rows"] + layout.parts["parameters"]
        assert tables.kept == layout.serving_bytes / total_full_bytes(specs)
        # While they are trained rows are in fp32, however they will be held.
        in_full = dataclasses.replace(layout, tables=[one._replace(precision="fp32") for one in layout.tables])
        assert sum(tensor.nbytes for tensor in tables.serving_tensors().values()) == in_full.serving_bytes
        served = tables.quantized()
        assert sum(tensor.nbytes for tensor in served.serving_tensors().values()) == layout.serving_bytes


@each_method
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    dim=st.sampled_from([1, 3, 8, 16]),
    share=st.floats(0.001, 1.5),
    counts=st.booleans(),
)
def test_a_budget_is_never_exceeded_and_little_is_left(
    method: Variant, sizes: list[int], dim: int, share: float, counts: bool
):
    specs = [
        TableSpec(
            name=f"t{i}",
            num_embeddings=size,
            embedding_dim=dim,
            counts=torch.arange(size, 0, -1) if counts else None,
        )
        for i, size in enumerate(sizes)
    ]
    assume(dim % method.divides == 0)
    full = total_full_bytes(specs)
    budget = max(1, int(full * share))
    try:
        config = method.config().fit(specs, budget)
    except RecembError as error:
        # The least that the sentence names must be possible, and anything less must not.
        least = int(str(error).split("least possible is ")[1].split(" bytes")[0].replace(",", ""))
        assert least > budget
        assert method.config().fit(specs, least).layout(specs).serving_bytes <= least
        return
    used = config.layout(specs).serving_bytes
    assert used <= budget
    if method.coarse:
        return
    # What stays unused is less than one step of the method's size knob: a row a table, or one column of everything.
    step = max(full // dim, sum(dim * 4 + 16 for _ in specs))
    assert used == full or used + 2 * step > min(budget, full)


@each_method
@pytest.mark.parametrize("share", [1 / 4, 1 / 20, 1 / 64])
def test_a_budget_is_spent(method: Variant, share: float):
    """On tables as click logs have them: few with nearly all ids, most of which were seen once."""
    specs = [
        TableSpec(name=f"t{size}", num_embeddings=size, embedding_dim=16, counts=zipf_counts(size))
        for size in (3, 18, 305, 5_000, 40_000, 200_000)
    ]
    budget = int(total_full_bytes(specs) * share)
    try:
        used = method.config().fit(specs, budget).layout(specs).serving_bytes
    except RecembError:
        return  # what cannot be had at all is another test
    # One float more for every id of the largest table may be too much for full and low_rank, and blocks=feature.
    wide_steps = method.coarse or method.method in ("full", "low_rank") or method.options.get("blocks") == "feature"
    least = 0.5 if wide_steps else 0.97
    assert least * budget <= used <= budget


@each_method
def test_the_whole_budget_keeps_the_whole_table(method: Variant):
    specs = make_specs()
    assert collection(method, specs, 1.0).kept == 1.0


@each_method
@each_share
def test_vectors_start_with_the_variance_of_a_full_row(method: Variant, share: float):
    specs = [
        TableSpec(name=name, num_embeddings=20_000, embedding_dim=16, init_std=0.02, max_length=1) for name in "abc"
    ]
    tables = collection(method, specs, share)
    squares = []
    lookups = iter(range(100))
    ids = torch.arange(20_000)
    for index, (spec, of_spec) in enumerate(zip(specs, tables.method.layout.lookups, strict=True)):
        # One id for each combination of rows: ids that share all of theirs are one drawing.
        if tables.method.layout.alternatives:
            rows = tables.method.route(ids, torch.full_like(ids, index))
        else:
            rows = [tables.method.remap(ids, torch.full_like(ids, next(lookups))) for _ in of_spec]
        alone = torch.from_numpy(np.unique(torch.stack(tuple(rows)).numpy(), axis=1, return_index=True)[1])
        lengths = torch.cat([torch.full_like(alone, int(spec is other)) for other in specs])
        out = tables(KeyedJaggedTensor(keys=["a", "b", "c"], values=alone, lengths=lengths))
        squares.append(out[spec.name].detach().square().flatten())
    variance = torch.cat(squares).mean().item()
    # The least table decides how exact the sample can be; a product of several uniform laws has a kurtosis of 5.8 at
    # most, an average of rows 1.8.
    drawn = [table.rows * table.dim for table in tables.method.layout.tables if table.init_std]
    drawn = min(drawn) * len(specs)
    assert variance == pytest.approx(0.02**2, rel=5 * (4.8 / drawn) ** 0.5)


@each_method
@each_share
def test_gradients_reach_every_physical_table(method: Variant, share: float):
    specs = make_specs()
    tables = collection(method, specs, share)
    keys = [spec.name for spec in specs]
    ids = [torch.arange(spec.num_embeddings) for spec in specs]
    lengths = torch.tensor([len(one) for one in ids])
    tables(KeyedJaggedTensor(keys=keys, values=torch.cat(ids), lengths=lengths)).values().sum().backward()
    for name, parameter in tables.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@each_method
def test_gradients_are_right_in_double_precision(method: Variant):
    specs = [TableSpec(name=name, num_embeddings=70, embedding_dim=4, init_std=0.3) for name in "ab"]
    tables = collection(method, specs, 0.7).double()
    batch = make_batch(specs, bags=3)
    names = [name for name, _ in tables.named_parameters()]

    def run(*weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(tables, dict(zip(names, weights, strict=True)), (batch,)).values()

    assert torch.autograd.gradcheck(run, tuple(p.detach().requires_grad_() for p in tables.parameters()))


@each_method
@each_share
@pytest.mark.parametrize("name", ["rowwise_adagrad", "adagrad", "sgd"])
@pytest.mark.parametrize("dim", [16, 30])
def test_fused_rows_learn_like_plain_ones(method: Variant, share: float, name: str, dim: int):
    """One step of the fused optimizer equals the textbook step on the plain gradients."""
    specs = make_specs(dim, max_length=1)
    optimizer = FusedOptimizer(name, lr=0.1, eps=1e-6)
    plain, fused = collection(method, specs, share), collection(method, specs, share, optimizer=optimizer)
    fused.load_state_dict(plain.state_dict())
    batch = make_batch(specs)
    target = torch.randn_like(plain(batch).values())
    for tables in (plain, fused):
        ((tables(batch).values() - target) ** 2).sum().backward()
    for (key, weight), table in zip(plain.tables.named_parameters(), plain.method.layout.tables, strict=True):
        gradient = weight.grad
        if name == "sgd":
            step = gradient
        elif name == "adagrad":
            step = gradient / (gradient.abs() + 1e-6)
        else:
            # Narrow rows that share a stored row share its accumulator too: the mean square over the stored row. Wide
            # ones have a stored row each.
            lanes = 4 // np.gcd(table.dim, 4) if table.dim <= 16 else 1
            width = -(-table.dim // 4) * 4 if lanes == 1 else table.dim
            padded = torch.zeros(-(-table.rows // lanes) * lanes, width)
            padded[: table.rows, : table.dim] = gradient
            mean = padded.view(-1, lanes * width).square().mean(dim=1).repeat_interleave(lanes)[: table.rows]
            step = gradient / (mean.sqrt().unsqueeze(1) + 1e-6)
        expected = weight.detach() - 0.1 * step
        torch.testing.assert_close(fused.tables.get_parameter(key).data, expected, atol=2e-5, rtol=1e-4)


@each_method
def test_one_seed_one_start_and_another_seed_another(method: Variant):
    specs = make_specs()
    first, again, other = (collection(method, specs, 0.25, seed=seed) for seed in (1, 1, 2))
    for (name, one), two, three in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
        assert not torch.equal(one, three) or not one.any(), name


@each_method
@pytest.mark.parametrize("dim", [6, 30])
def test_weights_move_by_name_between_hosts(method: Variant, dim: int):
    specs = make_specs(dim=dim)
    plain = collection(method, specs, 0.4)
    fused = collection(method, specs, 0.4, optimizer=FusedOptimizer(), seed=9)
    assert list(plain.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    batch = make_batch(specs)
    torch.testing.assert_close(plain(batch).values(), fused(batch).values())
    back = collection(method, specs, 0.4, seed=5)
    back.load_state_dict(fused.state_dict())
    assert torch.equal(plain(batch).values(), back(batch).values())


@each_method
@each_share
def test_a_config_survives_json(method: Variant, share: float):
    config = fitted(method, make_specs(), share)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize("method", list_tables(), ids=lambda method: method.name)
def test_a_method_explains_itself(method: Method):
    assert method.summary
    assert method.table.__module__ == f"recemb.tables.{method.name}"
    assert method.config.__doc__
    for field in dataclasses.fields(method.config):
        assert field.metadata["help"], field.name


@each_method
def test_features_may_share_a_table_and_come_in_any_order(method: Variant):
    specs = make_specs()[:2]
    specs[1] = dataclasses.replace(specs[1], feature_names=["home", "work"])
    tables = collection(method, specs, 0.5)
    batch = make_batch(specs)
    out = tables(batch)
    assert out.keys() == ["gender", "home", "work"]
    np.testing.assert_allclose(out.values().detach().numpy(), reference(tables, batch), atol=1e-6)
    shuffled = tables(batch.permute([2, 0, 1]))
    for key in out.keys():  # noqa: SIM118 - a KeyedTensor is no dict
        torch.testing.assert_close(shuffled[key], out[key])


@each_method
@pytest.mark.parametrize("wrong", [-1, 307, 2**24 + 1, 2**31 + 5, 2**62])
@pytest.mark.parametrize("max_length", [1, None])
def test_an_id_out_of_range_is_named(method: Variant, wrong: int, max_length: int | None):
    specs = make_specs(max_length=max_length)
    tables = collection(method, specs, 0.25)
    batch = make_batch(specs, empty=max_length is None)
    values = batch.values().clone()
    values[batch.offset_per_key()[1]] = wrong
    batch = KeyedJaggedTensor(keys=batch.keys(), values=values, lengths=batch.lengths())
    with pytest.raises(RecembError, match=rf"feature city: id {wrong} is out of range; its table has 307 ids"):
        tables(batch)


@each_method
@each_share
def test_the_order_inside_a_bag_does_not_matter(method: Variant, share: float):
    specs = make_specs()
    tables = collection(method, specs, share)
    keys = [spec.name for spec in specs]
    one, other = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
    bags = [
        tables(KeyedJaggedTensor(keys=keys, values=ids.repeat(4), lengths=torch.full((4,), 3))).values()
        for ids in (one, other)
    ]
    torch.testing.assert_close(*bags)
    alone = tables(KeyedJaggedTensor(keys=keys, values=one.repeat(4), lengths=torch.ones(12, dtype=torch.int64)))
    torch.testing.assert_close(bags[0][0], alone.values().sum(dim=0))


@each_method
def test_an_id_is_64_bits_wide(method: Variant):
    """Rows of ids past 2**24 and 2**31 are those that the same ids get one by one, within their table."""
    specs = [
        TableSpec(name="huge", num_embeddings=2**33, embedding_dim=8),
        TableSpec(name="b", num_embeddings=9, embedding_dim=8),
    ]
    config = method.config().fit(specs, total_full_bytes(specs) // 5)
    if config.layout(specs).parts["constants"] > 2**30:
        pytest.skip("holds something for every id, more than a test has memory for; see its own tests")
    table = create_table(config, specs)
    ids = torch.tensor([0, 2**24 + 1, 2**31 - 1, 2**31 + 5, 2**33 - 2, 2**33 - 1])
    if table.layout.alternatives:
        tables, rows = table.route(ids, torch.zeros_like(ids))
        for one, found in zip(ids, zip(tables.tolist(), rows.tolist(), strict=True), strict=True):
            assert tuple(map(int, table.route(one.view(1), torch.tensor([0])))) == found
            assert 0 <= found[1] < table.layout.tables[found[0]].rows
        return
    for position, index in enumerate(table.layout.lookups[0]):
        rows = table.remap(ids, torch.full_like(ids, position))
        alone = [int(table.remap(one.view(1), torch.tensor([position]))) for one in ids]
        assert rows.tolist() == alone
        assert int(rows.min()) >= (-1 if table.drops_ids else 0)
        assert int(rows.max()) < table.layout.tables[index].rows
    assert table.layout.serving_bytes <= total_full_bytes(specs) // 5


@each_method
def test_raw_ids_are_taken_or_refused_in_words(method: Variant):
    specs = [
        TableSpec(name=name, num_embeddings=500, embedding_dim=4, raw_ids=name == "raw", init_std=1.0)
        for name in ("raw", "numbered")
    ]
    if not get_table(method.method).table.takes_raw_ids:
        with pytest.raises(RecembError, match=rf"table={method.method} needs ids from a vocabulary, and those of raw"):
            collection(method, specs, 0.3)
        return
    for share in (1.1, 0.3):
        tables = collection(method, specs, share)
        ids = torch.tensor([-(2**63), -1, 2**31 + 5, 2**63 - 1, 1, 2, 3, 4])
        out = tables(KeyedJaggedTensor(keys=["raw", "numbered"], values=ids, lengths=torch.ones(8, dtype=torch.int64)))
        assert len(torch.unique(out["raw"], dim=0)) == 4
        wrong = KeyedJaggedTensor(
            keys=["raw", "numbered"], values=ids.flip(0), lengths=torch.ones(8, dtype=torch.int64)
        )
        with pytest.raises(RecembError, match="feature numbered: id 9223372036854775807 is out of range"):
            tables(wrong)
