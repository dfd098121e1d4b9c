"""Quantized rows inside torchrec: what a live collection of rounded rows gives, in the bytes the layout promises."""

import copy
import pickle

import pytest
import torch
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec
from recemb.packing.serving import ServingTables
from recemb.tables.bags import flat_ids
from recemb.tables.base import PhysicalTable
from recemb.tables.full import FullConfig
from recemb.tables.pep import PepConfig
from recemb.tables.precision import PRECISIONS, pack_rows, read_rows, round_rows_
from recemb.tables.quantized import QuantizedTables
from tests.tables_samples import VARIANTS, Variant, make_batch, make_specs

each_precision = pytest.mark.parametrize("precision", PRECISIONS[1:])
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def specs_in(*precisions: str, dim: int = 16, max_length: int | None = None) -> list[TableSpec]:
    """Tables held in these precisions, in turn."""
    specs = make_specs(dim=dim, max_length=max_length)
    for number, spec in enumerate(specs):
        spec.precision = precisions[number % len(precisions)]
    return specs


def live_tables(specs: list[TableSpec], config: object, **options: object) -> CompressedEmbeddingBagCollection:
    live = CompressedEmbeddingBagCollection(specs, config, **options)
    with torch.no_grad():
        for number, weight in enumerate([*live.weights, *live.method.parameters()]):  # every row its own
            weight.normal_(generator=torch.Generator().manual_seed(number))
    return live


def of_variant(variant: Variant, specs: list[TableSpec], share: float = 0.2) -> CompressedEmbeddingBagCollection:
    return live_tables(specs, variant.config().fit(specs, int(sum(spec.full_bytes for spec in specs) * share)))


def rounded(live: CompressedEmbeddingBagCollection, batch: KeyedJaggedTensor) -> torch.Tensor:
    """What the live collection gives once its own rows are rounded."""
    with torch.no_grad():
        round_rows_(live.method.layout.tables, live.weights)
        return live(batch).values()


def nothing(bags: int) -> KeyedJaggedTensor:
    keys = [spec.name for spec in make_specs()]
    ids = torch.zeros(0, dtype=torch.int64)
    return KeyedJaggedTensor(keys=keys, values=ids, lengths=torch.zeros(len(keys) * bags, dtype=torch.int64))


@pytest.mark.parametrize("max_length", [1, None])
@each_precision
@each_variant
def test_vectors_are_those_of_rounded_rows(variant: Variant, precision: str, max_length: int | None):
    specs = specs_in(precision, max_length=max_length)
    live = of_variant(variant, specs)
    quantized, served = live.quantized(), ServingTables(live.method, live.weights)
    for empty in (False, True):
        batch = make_batch(specs, bags=9, empty=empty)
        out = quantized(batch).values()
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, rounded(live, batch), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out, served(*flat_ids(batch, served.features)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("max_length", [1, None])
@each_precision
@each_variant
def test_bytes_held_are_those_promised(variant: Variant, precision: str, max_length: int | None):
    live = of_variant(variant, specs_in(precision, max_length=max_length))
    layout = live.method.layout
    quantized = live.quantized()
    assert quantized.tables.stored_bytes() == sum(table.bytes for table in layout.tables) == layout.parts["rows"]
    assert quantized.tables.optimizer_bytes() == 0
    assert sum(tensor.nbytes for tensor in quantized.serving_tensors().values()) == layout.serving_bytes
    # One entry a table, whose bytes are no copy beside those that the kernel reads.
    entries = quantized.tables.state_dict()
    assert list(entries) == [f"embedding_bags.{table.name}.packed" for table in layout.tables]
    assert [entry.nbytes for entry in entries.values()] == [table.bytes for table in layout.tables]
    memory = {entry.untyped_storage().data_ptr(): entry.untyped_storage().nbytes() for entry in entries.values()}
    assert sum(memory.values()) == layout.parts["rows"]


@pytest.mark.parametrize("max_length", [1, None])
@each_variant
def test_empty_bags_are_zero_and_an_empty_batch_is_empty(variant: Variant, max_length: int | None):
    quantized = of_variant(variant, specs_in("int4", max_length=max_length)).quantized()
    out = quantized(nothing(3)).values()
    assert out.shape == (3, sum(quantized.method.layout.dims))
    assert not out.any()
    assert quantized(nothing(0)).values().shape == (0, sum(quantized.method.layout.dims))


@pytest.mark.parametrize("precisions", [("int2", "fp32", "int4", "int8"), ("int4", "fp16")], ids="-".join)
@pytest.mark.parametrize("max_length", [1, None])
@each_variant
def test_precisions_may_differ_by_table(variant: Variant, max_length: int | None, precisions: tuple[str, ...]):
    specs = specs_in(*precisions, max_length=max_length)
    live = of_variant(variant, specs)
    batch = make_batch(specs, bags=9)
    out = live.quantized()(batch).values()
    torch.testing.assert_close(out, rounded(live, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dim", [3, 6, 30, 57])
@each_precision
def test_rows_of_fused_tables_are_packed_too(precision: str, dim: int):
    specs = specs_in(precision, dim=dim)
    live = live_tables(specs, FullConfig(), optimizer=FusedOptimizer())
    batch = make_batch(specs)
    out = live.quantized()(batch).values()
    torch.testing.assert_close(out, rounded(live, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_width_is_read(precision: str, by_value: bool):
    """Widths 1 to 33 of tables side by side, two of each width and each read twice, against plain torch."""
    random = torch.Generator().manual_seed(0)
    tables = [PhysicalTable(f"t{n}", 11, 1 + n // 2, 0.0, precision) for n in range(66)]
    weights = [torch.randn(table.rows, table.dim, generator=random) for table in tables]
    lookups = [index for index in range(66) for _ in range(2)]
    host = QuantizedTables(tables, lookups, weights, by_value=by_value)
    assert host.stored_bytes() == sum(table.bytes for table in tables)
    assert host.widths == [tables[index].dim for index in lookups]
    lengths = torch.randint(0, 4, (len(lookups), 5), generator=random)
    counts = lengths.sum(dim=1).tolist()
    rows = torch.randint(0, 11, (sum(counts),), generator=random)
    expected = [
        read_rows(pack_rows(weights[index], tables[index].held), part, tables[index].dim, tables[index].held)
        for index, part in zip(lookups, rows.split(counts), strict=True)
    ]
    if by_value:
        for one, other in zip(host.values(rows, counts), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
        return
    bags = [
        torch.stack([bag.sum(dim=0) for bag in part.split(of_lookup.tolist())])
        for part, of_lookup in zip(expected, lengths, strict=True)
    ]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
    torch.testing.assert_close(host(rows, offsets), torch.cat(bags, dim=1), atol=2e-6, rtol=1e-6)


def some_tables(max_length: int | None) -> tuple[CompressedEmbeddingBagCollection, KeyedJaggedTensor]:
    specs = specs_in("int4", dim=6, max_length=max_length)
    by_ids = {variant.name: variant for variant in VARIANTS}["mixed_dimension"]
    live = of_variant(by_ids, specs, 0.1) if max_length is None else live_tables(specs, FullConfig())
    return live, make_batch(specs)


@pytest.mark.parametrize("max_length", [1, None])
def test_nothing_is_trained_or_shared_with_the_live_tables(max_length: int | None):
    live, batch = some_tables(max_length)
    quantized = live.quantized()
    before = quantized(batch).values()
    assert not before.requires_grad
    assert not any(parameter.requires_grad for parameter in quantized.parameters())
    assert all(parameter.requires_grad for parameter in live.parameters())
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.zero_()
    assert torch.equal(quantized(batch).values(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
@pytest.mark.parametrize("max_length", [1, None])
def test_copies_are_whole_and_their_own(copied: object, max_length: int | None):
    live, batch = some_tables(max_length)
    quantized = live.quantized()
    before = quantized(batch).values()
    twin = copied(quantized)
    assert torch.equal(twin(batch).values(), before)
    for rows in twin.tables.state_dict().values():
        rows.zero_()
    assert not twin(batch).values().any()
    assert torch.equal(quantized(batch).values(), before)
    assert len(pickle.dumps(quantized.tables)) < quantized.tables.stored_bytes() + 20_000


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("max_length", [1, None])
def test_rows_load_by_name_into_the_kernels_memory(max_length: int | None, assign: bool):
    live, batch = some_tables(max_length)
    first = live.quantized()
    with torch.no_grad():
        for weight in live.weights:
            weight.mul_(-3)
    other = live.quantized()
    assert not torch.equal(first(batch).values(), other(batch).values())
    other.load_state_dict(first.state_dict(), assign=assign)
    assert torch.equal(first(batch).values(), other(batch).values())
    # Rows of 8 numbers take 8 bytes in int4, so that floats would fit by their shape.
    floats = live_tables(specs_in("int4", dim=8), FullConfig())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*gender\.weight"):
        floats.quantized().load_state_dict(floats.state_dict())


def test_it_takes_the_place_of_torchrecs_collection():
    """In torchrec's own DLRM, where it gives the logits of that model with rounded tables."""
    specs = specs_in("int8", dim=8)
    configs = [
        EmbeddingBagConfig(
            name=spec.name, num_embeddings=spec.num_embeddings, embedding_dim=8, feature_names=[spec.name]
        )
        for spec in specs
    ]
    model = DLRM(EmbeddingBagCollection(tables=configs), 5, [16, 8], [16, 1]).eval()
    live = CompressedEmbeddingBagCollection(specs, FullConfig())
    weights = [bag.weight for bag in model.sparse_arch.embedding_bag_collection.embedding_bags.values()]
    with torch.no_grad():
        for mine, its in zip(live.weights, weights, strict=True):
            mine.copy_(its.normal_())
    swapped = DLRM(live.quantized(), 5, [16, 8], [16, 1]).eval()
    swapped.dense_arch, swapped.inter_arch, swapped.over_arch = model.dense_arch, model.inter_arch, model.over_arch
    dense, batch = torch.rand(7, 5), make_batch(specs)
    with torch.no_grad():
        whole = model(dense, batch)
        round_rows_(live.method.layout.tables, weights)
        torch.testing.assert_close(swapped(dense, batch), model(dense, batch), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(swapped(dense, batch), whole, atol=1e-5)
    assert [one.name for one in swapped.sparse_arch.embedding_bag_collection.embedding_bag_configs()] == [
        one.name for one in configs
    ]


@pytest.mark.parametrize("wrong", [-1, 307, 2**31 + 5, 2**62])
@pytest.mark.parametrize("max_length", [1, None])
def test_an_id_out_of_range_is_named(max_length: int | None, wrong: int):
    live, batch = some_tables(max_length)
    values = batch.values().clone()
    values[batch.offset_per_key()[1]] = wrong
    batch = KeyedJaggedTensor(keys=batch.keys(), values=values, lengths=batch.lengths())
    with pytest.raises(RecembError, match=rf"feature city: id {wrong} is out of range; its table has 307 ids"):
        live.quantized()(batch)


def test_what_cannot_be_is_refused_in_words():
    specs = specs_in("int8")
    live = CompressedEmbeddingBagCollection(specs, FullConfig())
    quantized = live.quantized()
    with pytest.raises(RecembError, match=r"give float32 on the CPU, and cannot be moved to torch\.float64"):
        quantized.double()
    assert quantized.float() is quantized
    with pytest.raises(RecembError, match="packed rows and no weights"):
        quantized.quantized()
    for options in ({}, {"optimizer": FusedOptimizer()}):
        config = live.method if options else FullConfig()
        with pytest.raises(RecembError, match="pass their own module, and no optimizer"):
            CompressedEmbeddingBagCollection(specs, config, rows=live.weights, **options)
    with pytest.raises(RecembError, match="still being pruned"):
        CompressedEmbeddingBagCollection(specs, PepConfig().pruning_table(specs)).quantized()
    with torch.no_grad():
        live.weights[1][3, 2] = 1e6
    with pytest.raises(RecembError, match="rows with numbers up to 1e"):
        live.quantized()
