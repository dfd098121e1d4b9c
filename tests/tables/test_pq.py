"""Product quantization: decoded by hand, k-means that finds what there is to find, and bytes that are counted first."""

import dataclasses
import itertools
import time
import tracemalloc

import numpy as np
import pytest
import torch
from tables_samples import make_specs, zipf_counts
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.hashing import hash_to_rows, salt_of
from recemb.tables import pq
from recemb.tables.base import total_full_bytes
from recemb.tables.pq import PQConfig, PQTable, product_quantize, with_codes


def decode(codebooks: list[np.ndarray], codes: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The reference: the vector of an id is, part by part, the codebook's row that its code names."""
    vectors = []
    for one in ids:
        parts = []
        for part, codebook in enumerate(codebooks):
            parts.append(codebook[int(codes[part][one])])
        vectors.append(np.concatenate(parts))
    return np.stack(vectors)


def squared_error(vectors: torch.Tensor, codebooks: list[torch.Tensor], codes: torch.Tensor) -> np.ndarray:
    """(V,) squared error of each row."""
    decoded = decode([book.numpy() for book in codebooks], codes.numpy(), np.arange(len(vectors)))
    return np.square(decoded - vectors.numpy()).sum(axis=1)


def gaussian(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def test_vectors_are_the_rows_that_codes_name():
    """Two quantized tables beside a whole one, with parts of uneven width and codes of our own."""
    specs = [
        TableSpec(name="a", num_embeddings=900, embedding_dim=7),
        TableSpec(name="whole", num_embeddings=5, embedding_dim=7),
        TableSpec(name="b", num_embeddings=400, embedding_dim=7),
    ]
    config = PQConfig(parts=3)
    layout = config.layout(specs)
    assert [(t.name, t.rows, t.dim) for t in layout.tables] == [
        ("a:part0", 96, 3), ("a:part1", 96, 2), ("a:part2", 96, 2),
        ("whole", 5, 7),
        ("b:part0", 42, 3), ("b:part1", 42, 2), ("b:part2", 42, 2),
    ]  # fmt: skip
    random = torch.Generator().manual_seed(0)
    codes = [
        torch.randint(0, 96, (3, 900), generator=random, dtype=torch.uint8),
        None,
        torch.randint(0, 42, (3, 400), generator=random, dtype=torch.uint8),
    ]
    tables = CompressedEmbeddingBagCollection(specs, PQTable(config, specs, with_codes(layout, codes)))
    weights = [weight.detach().numpy() for weight in tables.weights]
    ids = [torch.randint(0, spec.num_embeddings, (30,), generator=random) for spec in specs]
    batch = KeyedJaggedTensor(keys=["a", "whole", "b"], values=torch.cat(ids), lengths=torch.ones(90).long())
    out = tables(batch)
    np.testing.assert_array_equal(out["a"].detach(), decode(weights[:3], codes[0].numpy(), ids[0].numpy()))
    np.testing.assert_array_equal(out["whole"].detach(), weights[3][ids[1]])
    np.testing.assert_array_equal(out["b"].detach(), decode(weights[4:], codes[2].numpy(), ids[2].numpy()))


def test_codes_of_a_table_made_from_its_config_are_hashes_of_table_part_and_id(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pq, "_HASHED_AT_ONCE", 1000)
    specs = make_specs()  # 3, 307, 5000 and 1201 ids
    table = PQTable(PQConfig(parts=2, centroids=100), specs)
    lookups = [(spec, part, index) for spec, of in zip(specs, table.layout.lookups, strict=True)
               for part, index in enumerate(of)]  # fmt: skip
    assert [table.layout.tables[index].rows for _, _, index in lookups] == [3, 9, 9, 100, 100, 37, 37]
    for number, (spec, part, index) in enumerate(lookups):
        ids = torch.arange(spec.num_embeddings)
        rows = table.remap(ids, torch.tensor(number))
        expected = ids if number == 0 else hash_to_rows(ids, salt_of(spec.name, part), table.layout.tables[index].rows)
        assert torch.equal(rows, expected)


def test_ids_past_31_bits_read_their_own_code():
    specs = [TableSpec(name="huge", num_embeddings=2**31 + 9, embedding_dim=4)]
    config = PQConfig(parts=2)
    codes = np.zeros((2, 2**31 + 9), dtype=np.uint8)  # memory of zeros is not held before it is written
    codes[0, [5, 2**31 + 5]], codes[1, [5, 2**31 + 5]] = (1, 2), (3, 4)
    constants = {**config.layout(specs).constants, "codes": torch.from_numpy(codes).view(-1)}
    table = PQTable(config, specs, dataclasses.replace(config.layout(specs), constants=constants))
    rows = table.remap(torch.tensor([[5, 2**31 + 5]]).expand(2, 2), torch.tensor([[0], [1]]))
    assert rows.tolist() == [[1, 2], [3, 4]]


def test_codes_that_do_not_fit_are_refused():
    specs = [TableSpec(name="a", num_embeddings=900, embedding_dim=8)]
    specs += [TableSpec(name=name, num_embeddings=ids, embedding_dim=8) for name, ids in (("whole", 2), ("b", 400))]
    layout = PQConfig(parts=2, centroids=10).layout(specs)
    good = [torch.full((2, 900), 9, dtype=torch.uint8), None, torch.zeros(2, 400, dtype=torch.uint8)]
    assert torch.equal(with_codes(layout, good).constants["codes"], torch.cat([good[0].view(-1), good[2].view(-1)]))
    for number, wrong, name in (
        (0, good[0] + 1, "a:part0"),
        (0, good[0].view(3, 600), "a:part0"),
        (0, None, "a:part0"),
        (1, torch.zeros(1, 2, dtype=torch.uint8), "whole"),
        (2, good[2][:, 1:], "b:part0"),
    ):
        codes = [wrong if number == index else one for index, one in enumerate(good)]
        with pytest.raises(RecembError, match=f"the codes of {name} do not fit its codebooks"):
            with_codes(layout, codes)


def test_parts_of_few_distinct_values_are_reproduced_exactly():
    random = np.random.default_rng(0)
    left, right = random.normal(size=(9, 3)), random.normal(size=(16, 2))
    vectors = torch.from_numpy(
        np.concatenate([left[random.integers(9, size=500)], right[random.integers(16, size=500)]], axis=1)
    ).float()
    codebooks, codes = product_quantize(vectors, None, [3, 2], 16, seed=0)
    assert [tuple(book.shape) for book in codebooks] == [(16, 3), (16, 2)]
    assert codes.shape == (2, 500)
    assert codes.dtype == torch.uint8
    assert not squared_error(vectors, codebooks, codes).any()
    # One value too many, and something is lost.
    codebooks, codes = product_quantize(vectors, None, [3, 2], 15, seed=0)
    assert squared_error(vectors, codebooks, codes).any()


def test_values_that_differ_in_the_last_bit_keep_their_own_row():
    vectors = torch.full((40, 1), 1000.0)
    vectors[20:] = torch.nextafter(vectors[20:], torch.tensor(2000.0))
    codebooks, codes = product_quantize(vectors, None, [1], 2, seed=0)
    assert not squared_error(vectors, codebooks, codes).any()


def test_a_rare_value_of_a_table_that_is_drawn_from_is_not_lost():
    """Where all values fit the codebook no draw decides, although k-means would see few of the rows."""
    vectors = torch.zeros(200_000, 2)
    vectors[150_000] = 1.0
    counts = torch.full((200_000,), 10)
    counts[150_000] = 0
    codebooks, codes = product_quantize(vectors, counts, [1, 1], 2, seed=0)
    assert torch.stack([book[row[150_000].long(), 0] for book, row in zip(codebooks, codes, strict=True)]).eq(1).all()
    assert torch.stack([book[row[0].long(), 0] for book, row in zip(codebooks, codes, strict=True)]).eq(0).all()


def test_draws_may_have_fewer_values_than_there_are_centroids():
    """Twenty values too rare to be drawn: the codebook is what is drawn, repeated."""
    vectors, counts = torch.zeros(70_000, 1), torch.full((70_000,), 10**9)
    vectors[-20:, 0], counts[-20:] = torch.arange(1, 21).float(), 0
    (codebook,), codes = product_quantize(vectors, counts, [1], 16, seed=0)
    assert codebook.shape == (16, 1)
    assert not codebook.any()
    assert int(codes.max()) < 16


def test_values_too_close_for_as_many_centroids_warn_of_nothing():
    vectors = 1e-30 * torch.arange(1, 91).view(-1, 1)  # whose squares are zero
    codebooks, codes = product_quantize(vectors, None, [1], 60, seed=0)
    assert not squared_error(vectors, codebooks, codes).any()


def test_more_parts_and_more_centroids_err_less():
    vectors = gaussian(2000, 12)
    of_parts = [
        squared_error(vectors, *product_quantize(vectors, None, [12 // m] * m, 32, seed=0)).mean()
        for m in (1, 2, 4, 12)
    ]
    assert all(more < 0.8 * fewer for fewer, more in itertools.pairwise(of_parts))
    of_centroids = [
        squared_error(vectors, *product_quantize(vectors, None, [6, 6], k, seed=0)).mean() for k in (1, 4, 16, 64, 256)
    ]
    # One centroid is the mean, whose error is the variance.
    assert of_centroids[0] == pytest.approx(vectors.var(dim=0, correction=0).sum().item(), rel=1e-4)
    assert all(more < 0.95 * fewer for fewer, more in itertools.pairwise(of_centroids))


def test_every_row_has_its_nearest_centroid():
    vectors = gaussian(40_000, 4)  # more than are assigned at once
    codebooks, codes = product_quantize(vectors, None, [2, 2], 20, seed=0)
    for part, book, row in zip(vectors.split(2, dim=1), codebooks, codes, strict=True):
        distances = np.square(part.numpy()[:, None] - book.numpy()[None]).sum(axis=2)
        chosen = distances[np.arange(len(vectors)), row.numpy()]
        np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=1e-5)


@pytest.mark.parametrize("rows", [3000, 100_000])
def test_frequent_ids_err_less_where_counts_are_given(rows: int):
    """Both where k-means sees all rows and where it sees draws of them."""
    vectors, counts = gaussian(rows, 4), zipf_counts(rows)
    even, weighted = (
        squared_error(vectors, *product_quantize(vectors, given, [2, 2], 16, seed=0)) for given in (None, counts)
    )
    assert weighted[1:20].mean() < 0.6 * even[1:20].mean()
    assert np.average(weighted, weights=counts) < 0.9 * np.average(even, weights=counts)
    assert weighted.mean() > even.mean()


def test_draws_err_about_as_little_as_all_rows():
    """100,000 rows, of which k-means sees draws, have the law of 60,000 that it sees all of."""
    every, drawn = (
        squared_error(vectors, *product_quantize(vectors, None, [2, 2], 32, seed=0)).mean()
        for vectors in (gaussian(60_000, 4), gaussian(100_000, 4))
    )
    assert drawn == pytest.approx(every, rel=0.03)


@pytest.mark.parametrize("rows", [5, 700, 70_000])
def test_one_seed_one_result_and_another_seed_another(rows: int):
    vectors = gaussian(rows, 5)
    first, again, other = (product_quantize(vectors, None, [3, 2], 16, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[1], again[1])
    assert all(torch.equal(one, two) for one, two in zip(first[0], again[0], strict=True))
    assert torch.equal(first[1], other[1]) == (rows <= 16)


def test_what_cannot_be_quantized_is_explained():
    with pytest.raises(RecembError, match=r"parts of widths \[2, 2\] do not make up vectors of width 5"):
        product_quantize(gaussian(10, 5), None, [2, 2], 4, seed=0)
    with pytest.raises(RecembError, match="centroids=257 is not possible"):
        product_quantize(gaussian(10, 4), None, [2, 2], 257, seed=0)
    with pytest.raises(RecembError, match="not finite"):
        product_quantize(torch.full((10, 4), torch.nan), None, [2, 2], 4, seed=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_predicted_bytes_are_codes_codebooks_and_starts(precision: str):
    specs = [dataclasses.replace(spec, precision=precision) for spec in make_specs()]
    config = PQConfig(parts=4 + (3 + 307 + 0.5) / 6511)  # 5 parts for the tables of 3 and of 307 ids
    layout = config.layout(specs)
    per_row = {"fp32": 64, "fp16": 32, "int4": 24}[precision]  # int4: two bytes and two halves for each of four parts
    narrow = {"fp32": 64, "fp16": 32, "int4": 6 + 4 * 6}[precision]  # 4 and 3 floats: no fewer bytes as halves
    whole = {"fp32": 64, "fp16": 32, "int4": 12}[precision]
    rows = 3 * whole + 23 * narrow + 256 * per_row + 75 * per_row
    assert layout.parts == {
        "rows": rows, "parameters": 0, "constants": 307 * 5 + 5000 * 4 + 1201 * 4 + 8 * (1 + 5 + 4 + 4),
    }  # fmt: skip
    table = PQTable(config, specs)
    assert sum(buffer.nbytes for buffer in table.buffers()) == layout.parts["constants"]
    assert table.layout.serving_bytes == layout.serving_bytes
    assert table.codes.device.type == "cpu"


def test_laying_out_and_fitting_huge_tables_is_quick_and_allocates_nothing():
    sizes = (10**9, 3 * 10**7, 10**5, 4, 30)
    specs = [TableSpec(name=f"t{size}", num_embeddings=size, embedding_dim=32) for size in sizes]
    tracemalloc.start()
    before = time.process_time()
    config = PQConfig().fit(specs, total_full_bytes(specs) // 20)
    layout = config.layout(specs)
    assert time.process_time() - before < 5
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    assert layout.constants["codes"].is_meta
    assert layout.constants["codes"].nbytes > 6 * 10**9


@pytest.mark.parametrize("centroids", [16, 256])
def test_a_budget_buys_as_many_parts_as_fit(centroids: int):
    specs = make_specs()
    full = total_full_bytes(specs)
    # All there is between one part and whole tables, tried one by one.
    steps = [m + share for m in range(1, 17) for share in (0, 310.5 / 6511, 1511.5 / 6511)]
    sizes = [PQConfig(parts=parts, centroids=centroids).layout(specs).serving_bytes for parts in steps]
    found = set()
    for share in np.linspace(0.05, 0.99, 48):
        budget = int(full * share)
        config = PQConfig(centroids=centroids).fit(specs, budget)
        assert config.layout(specs).serving_bytes == max(size for size in sizes if size <= budget)
        found.add(config.parts)
    assert min(found) < 3
    assert max(found) > 16  # some tables whole, the largest in parts of one float each
    assert PQConfig(centroids=centroids).fit(specs, full).parts is None


def test_a_fraction_of_a_part_goes_to_the_smallest_tables():
    def numbers(parts: float) -> list[int | None]:
        return [q and len(q.widths) for q in PQConfig(parts=parts).quantizers(make_specs())]

    assert numbers(3) == [None, 3, 3, 3]
    assert numbers(3 + (3 + 307 + 0.5) / 6511) == [None, 4, 3, 3]
    assert numbers(3 + (3 + 307 + 1201 + 0.5) / 6511) == [None, 4, 3, 4]
    assert numbers(16 + (3 + 307 + 0.5) / 6511) == [None, None, 16, 16]


def test_tables_that_would_not_be_smaller_stay_whole():
    """Fewer than 8 D ids have no codebook of two rows that its codes outweigh; D floats are D codes at least."""
    sizes = (1, 2, 127, 128, 10_000)
    specs = [TableSpec(name=f"t{size}", num_embeddings=size, embedding_dim=16, max_length=1) for size in sizes]
    for parts in (1, 16):
        cut = PQConfig(parts=parts).quantizers(specs)
        assert [q is None for q in cut] == [True, True, True, False, False]
        assert [q and q.centroids for q in cut][3:] == [128 * parts // 64, 156 * parts if parts == 1 else 256]
    # A config means the same tables in every precision, although eight codes outweigh a row held in two bits.
    coarse = [dataclasses.replace(spec, precision="int2") for spec in specs]
    assert PQConfig(parts=8).quantizers(coarse) == PQConfig(parts=8).quantizers(specs)
    # 8 ids of one float are smaller by 16 bytes, which the starts of three tables outweigh.
    few = [TableSpec(name=f"t{size}", num_embeddings=size, embedding_dim=1) for size in (8, 1, 2)]
    assert PQConfig(parts=1).layout(few).serving_bytes == total_full_bytes(few)
    narrow = [TableSpec(name="wide", num_embeddings=9000, embedding_dim=16),
              TableSpec(name="narrow", num_embeddings=9000, embedding_dim=2)]  # fmt: skip
    assert [q and len(q.widths) for q in PQConfig(parts=2).quantizers(narrow)] == [2, 2]
    assert [q and len(q.widths) for q in PQConfig(parts=3).quantizers(narrow)] == [3, None]

    tables = CompressedEmbeddingBagCollection(specs[:3], PQConfig(parts=4))
    assert not tables.method.layout.constants
    assert [weight.shape for weight in tables.weights] == [(1, 16), (2, 16), (127, 16)]
    out = tables(
        KeyedJaggedTensor(keys=["t1", "t2", "t127"], values=torch.tensor([0, 1, 126]), lengths=torch.ones(3).long())
    )
    assert torch.equal(out.values()[0], torch.cat([weight[-1] for weight in tables.weights]))


def test_options_and_budgets_that_make_no_sense_are_explained():
    specs = make_specs()
    with pytest.raises(RecembError, match=r"table.parts is 0.5; it must be at least 1"):
        PQConfig(parts=0.5)
    for centroids in (1, 257):
        with pytest.raises(RecembError, match=rf"table.centroids is {centroids}; it must be 2 to 256"):
            PQConfig(centroids=centroids)
    with pytest.raises(RecembError, match=r"table.parts=17 is more than the width of the vectors, 16"):
        PQConfig(parts=17).layout(specs)
    least = PQConfig(parts=1).layout(specs).serving_bytes
    with pytest.raises(RecembError, match=rf"table=pq cannot be made as small .* least possible is {least:,} bytes"):
        PQConfig().fit(specs, least - 1)
    assert PQConfig().fit(specs, least).layout(specs).serving_bytes == least
