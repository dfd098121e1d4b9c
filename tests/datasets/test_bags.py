import bag_samples as samples
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc

from recemb.datasets import passes, prepare, vocabulary, writer
from recemb.datasets.bags import Bags
from recemb.datasets.base import RawChunk
from recemb.datasets.splits import PROTOCOLS
from recemb.datasets.spool import Spool

FEATURES = [*samples.SINGLE, *samples.MULTI]

lists = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8)


def to_lists(bags):
    return [bags[np.array([i])].flat.tolist() for i in range(len(bags))]


@given(lists, st.data())
def test_bags_are_chosen_like_lists(rows, data):
    # What lies before and after, as in a slice of a file, belongs to no bag.
    whole = samples.bags_of([[7, 7], *rows, [8]])
    bags = Bags(whole.values, whole.offsets[1:-1])
    assert to_lists(bags) == rows
    assert bags.flat.tolist() == [value for values in rows for value in values]
    assert bags.lengths.tolist() == [len(values) for values in rows]
    start, stop = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    assert to_lists(bags[start:stop]) == rows[start:stop]
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    assert to_lists(bags[np.array(mask, dtype=bool)]) == [row for row, chosen in zip(rows, mask, strict=True) if chosen]
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12)) if rows else []
    assert to_lists(bags[np.array(order, dtype=np.int64)]) == [rows[i] for i in order]
    joined = Bags.join([bags, whole[:1], bags[:0]], np.int64)
    assert to_lists(joined) == [*rows, [7, 7]]
    assert joined.values.dtype == np.int64


def test_lengths_must_add_up():
    with pytest.raises(ValueError, match="add up to 3 instead of 2"):
        Bags.of(np.array([1, 2]), np.array([1, 2]))


@pytest.mark.parametrize("bags", [(), (samples.bags_of([[1]]),), (samples.bags_of([[1], []]),) * 2])
def test_a_chunk_that_lacks_bags_is_refused(tmp_path, bags):
    spool = Spool(tmp_path / "spool", 0, 0, 1)
    with pytest.raises(ValueError, match="bags"):
        spool.append(RawChunk(np.zeros(2, dtype=np.uint8), [], [], [], 2, bags=bags))
    spool.close()


def make(path, rows, **options):
    config = samples.SampleConfig(path=str(path), **options)
    config.rows = rows
    return prepare(config, progress=False)


def codes_of(count, protocol, seed=0):
    return PROTOCOLS[protocol](0, count, count, seed).tolist()


def assert_prepared(dataset, rows, codes, least_count=1):
    ids, counted = samples.expected_ids(rows, codes, least_count)
    for code, split in enumerate(("train", "valid", "test")):
        frame = pd.read_feather(dataset.path / f"{split}.arrow")
        chosen = [(row, cells) for row, cells, at in zip(rows, ids, codes, strict=True) if at == code]
        assert frame["label"].tolist() == [row[0] for row, _ in chosen]
        np.testing.assert_array_equal(frame["I1"], np.array([row[1][0] for row, _ in chosen], dtype=np.float32))
        for j, name in enumerate(FEATURES):
            wanted = [cells[j] for _, cells in chosen]
            found = frame[name].map(lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else [cell])
            assert found.tolist() == wanted
    for feature, (wanted, out) in zip(dataset.features, counted, strict=True):
        table = pd.read_feather(dataset.path / "vocabulary" / f"{feature.name}.arrow")
        values = [None if pd.isna(value) else int(value) for value in table["value"]]
        assert list(zip(values, table["count"].tolist(), strict=True)) == wanted
        assert feature.counts.tolist() == [out, *(count for _, count in wanted)]
        assert feature.num_embeddings == len(wanted) + 1
        assert (feature.raw, feature.max_length) == (False, None if feature.name in samples.MULTI else 1)


@pytest.fixture
def small(monkeypatch):
    """Windows, slabs and record batches so small that every one of them ends within the data."""
    monkeypatch.setattr(vocabulary, "WINDOW_ROWS", 13)
    monkeypatch.setattr(passes, "_SLAB_ROWS", 11)
    monkeypatch.setattr(writer, "RECORD_BATCH_ROWS", 16)


@pytest.mark.parametrize("protocol", ["last_day", "random"])
@pytest.mark.parametrize("least_count", [1, 2, 5])
def test_it_equals_the_plain_reference(tmp_path, small, protocol, least_count):
    rows = samples.make_rows(201, seed=least_count)
    dataset = make(tmp_path / "my out", rows, protocol=protocol, min_count=least_count, seed=3)
    assert_prepared(dataset, rows, codes_of(201, protocol, 3), least_count)


@pytest.mark.parametrize("count", [19, 20, 37])
def test_one_row_more_than_a_record_batch(tmp_path, small, count):
    # Six of seven rows are for training: 16, 17 and 31 rows of record batches of 16.
    rows = samples.make_rows(count)
    dataset = make(tmp_path / "out", rows, min_count=1)
    assert_prepared(dataset, rows, codes_of(count, "last_day"))
    with ipc.open_file(pa.memory_map(str(dataset.path / "train.arrow"))) as reader:
        sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        assert reader.schema.field("tags").type == reader.schema.field("seen").type == pa.list_(pa.int32())
    assert sizes == {19: [16], 20: [16, 1], 37: [16, 15]}[count]


def test_long_bags_make_short_record_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "WINDOW_ROWS", 50)
    monkeypatch.setattr(writer, "RECORD_BATCH_VALUES", 64)
    monkeypatch.setattr(passes, "_SLAB_VALUES", 64)
    rows = samples.make_rows(90)
    rows[40][3][0].extend(range(1000))
    dataset = make(tmp_path / "out", rows, min_count=1)
    assert_prepared(dataset, rows, codes_of(90, "last_day"))
    with ipc.open_file(pa.memory_map(str(dataset.path / "train.arrow"))) as reader:
        assert reader.num_record_batches > 3


def test_memory_goes_by_values_where_bags_are_long(tmp_path):
    spool = Spool(tmp_path / "spool", 0, 0, 1)
    lengths = np.array([3, 0, 2, 9, 0, 1, 1, 1, 0])
    bags = Bags.of(np.arange(17, dtype=np.uint32), lengths)
    for rows in (slice(0, 4), slice(4, 4), slice(4, 9)):
        chunk = bags[rows]
        spool.append(RawChunk(np.zeros(len(chunk), dtype=np.uint8), [], [], [], 0, bags=(chunk,)))
    spool.finish()
    assert list(spool.spans(0, 0, 9, 5)) == [(0, 3), (3, 4), (4, 9)]
    assert list(spool.spans(0, 1, 6, 2)) == [(1, 3), (3, 4), (4, 6)]
    assert list(spool.spans(0, 4, 9, 2)) == [(4, 7), (7, 9)]
    assert to_lists(spool.bags(0, 2, 5)) == [[3, 4], list(range(5, 14)), []]
    # 17 values in 9 rows: four slabs' worth of values gives slabs of two rows.
    assert passes._slab_rows(spool) == passes._SLAB_ROWS
    spool.rows, spool.values[0] = 1000, 1000 * passes._SLAB_VALUES // 50
    assert passes._slab_rows(spool) == 50
    spool.close()


def test_the_fingerprint_covers_values_their_order_and_where_bags_end(tmp_path, small):
    def fingerprint(bags, **options):
        rows = [*samples.make_rows(60), *((1, [0.5], [60 + i, 3], [values, []]) for i, values in enumerate(bags))]
        name = f"out {len(list(tmp_path.iterdir()))}"
        options = options or {"min_count": 1}
        return make(tmp_path / name, rows + samples.make_rows(20), **options).fingerprint

    base = fingerprint([[0, 80_000_000], [0]])
    assert fingerprint([[0, 80_000_000], [0]]) == base
    others = [
        fingerprint([[80_000_000, 0], [0]]),
        fingerprint([[0], [80_000_000, 0]]),
        fingerprint([[0, 80_000_000, 0], []]),
        fingerprint([[0, 160_000_000], [0]]),
        fingerprint([[0, 80_000_000], [0]], vocabulary="none"),
    ]
    assert len({base, *others}) == 6


def test_the_fingerprint_does_not_depend_on_how_rows_are_cut(tmp_path, monkeypatch):
    rows = samples.make_rows(150)
    base = make(tmp_path / "base", rows).fingerprint
    for number, chunk_rows in enumerate((1, 64, 150)):
        monkeypatch.setattr(samples.SampleConfig, "chunk_rows", chunk_rows)
        monkeypatch.setattr(vocabulary, "WINDOW_ROWS", 40 + number)
        monkeypatch.setattr(passes, "_SLAB_ROWS", 30 + number)
        assert make(tmp_path / str(number), rows).fingerprint == base


def test_a_feature_whose_bags_are_all_empty(tmp_path):
    rows = [(i % 2, [0.0], [i, 1], [[], [i]]) for i in range(40)]
    dataset = make(tmp_path / "out", rows, min_count=1)
    assert_prepared(dataset, rows, codes_of(40, "last_day"))
    tags = dataset.features[2]
    assert (tags.num_embeddings, tags.counts.tolist()) == (1, [0])


def test_nothing_but_bags(tmp_path, monkeypatch):
    monkeypatch.setattr(samples.SampleConfig, "names", ((), (), ("tags",)))
    rows = [(i % 2, [], [], [[5] * (i % 3)]) for i in range(40)]
    dataset = make(tmp_path / "out", rows)
    for shuffle in (False, True):
        batches = list(dataset.batches("train", 9, shuffle=shuffle))
        assert [batch.dense.shape for batch in batches] == [(9, 0)] * 3 + [(7, 0)]
        assert sorted(n for batch in batches for n in batch.sparse.lengths().tolist()) == sorted(
            i % 3 for i in range(34)
        )
        assert {i for batch in batches for i in batch.sparse.values().tolist()} == {1}


def test_what_is_prepared_is_used_again(tmp_path):
    rows = samples.make_rows(60)
    first = make(tmp_path / "out", rows)
    before = (tmp_path / "out" / "train.arrow").stat().st_mtime_ns
    assert make(tmp_path / "out", rows).features == first.features
    assert (tmp_path / "out" / "train.arrow").stat().st_mtime_ns == before
