import bag_samples as samples
import numpy as np
import pytest
import torch

from recemb.datasets import prepare, writer
from recemb.datasets.splits import PROTOCOLS

FEATURES = [*samples.SINGLE, *samples.MULTI]


@pytest.fixture(scope="module", params=["frequency", "none"])
def prepared(request, tmp_path_factory):
    """A data set of several record batches, and its training rows as (label, dense, lists of ids) by plain Python."""
    rows = samples.make_rows(1167, seed=5)
    options = {"vocabulary": "none"} if request.param == "none" else {"min_count": 1}
    config = samples.SampleConfig(path=str(tmp_path_factory.mktemp("a folder") / "out"), **options)
    config.rows = rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "RECORD_BATCH_ROWS", 128)
        dataset = prepare(config, progress=False)
    codes = PROTOCOLS["last_day"](0, 1167, 1167, 0).tolist()
    ids, _ = samples.expected_ids(rows, codes, 1, request.param)
    training = [(row[0], row[1][0], cells) for row, cells, code in zip(rows, ids, codes, strict=True) if code == 0]
    return dataset, training


def read(batches):
    """Return all rows of some batches as the reference has them, checking the form of each on the way."""
    found = []
    for batch in batches:
        rows, sparse = len(batch.labels), batch.sparse
        assert sparse.keys() == FEATURES
        assert sparse.stride() == rows
        assert sparse.values().dtype == sparse.lengths().dtype == sparse.offsets().dtype == torch.int64
        assert batch.dense.shape == (rows, 1)
        lengths = sparse.lengths().view(len(FEATURES), rows)
        assert lengths[: len(samples.SINGLE)].eq(1).all()
        columns = []
        for key in FEATURES:
            column = sparse[key]
            columns.append([part.tolist() for part in column.values().split(column.lengths().tolist())])
        dense = batch.dense[:, 0].tolist()
        found += list(zip(batch.labels.tolist(), dense, map(list, zip(*columns, strict=True)), strict=True))
    return found


def plain(rows):
    return [(float(label), float(np.float32(dense)), cells) for label, dense, cells in rows]


@pytest.mark.parametrize("batch_size", [1, 7, 127, 128, 129, 1000, 5000])
def test_in_file_order_every_bag_comes_as_it_lies(prepared, batch_size):
    dataset, training = prepared
    batches = dataset.batches("train", batch_size)
    assert read(batches) == plain(training)
    assert len(batches) == -(-len(training) // batch_size)


@pytest.mark.parametrize("window", [1 << 20, 300, 17])
@pytest.mark.parametrize("batch_size", [1, 33, 640, 5000])
def test_shuffled_every_bag_comes_once_with_its_row(prepared, window, batch_size):
    dataset, training = prepared
    orders = []
    for epoch in (0, 1):
        found = read(dataset.batches("train", batch_size, shuffle=True, epoch=epoch, window=window))
        # The first feature is the number of the row.
        assert sorted(found, key=lambda row: row[2][0]) == sorted(plain(training), key=lambda row: row[2][0])
        orders.append([row[2][0] for row in found])
    assert orders[0] != orders[1]
    assert orders[0] != [row[2][0] for row in training]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_short_last_batch_can_be_left_out(prepared, shuffle):
    dataset, training = prepared
    batches = dataset.batches("train", 300, shuffle=shuffle, drop_last=True)
    assert [len(batch.labels) for batch in batches] == [300] * 3
    if not shuffle:
        assert read(batches) == plain(training[:900])


def test_the_jagged_tensor_says_the_same_in_all_its_ways(prepared):
    dataset, training = prepared
    batch = next(iter(dataset.batches("train", 5)))
    sparse = batch.sparse
    sizes = [sum(len(row[2][j]) for row in training[:5]) for j in range(4)]
    assert sizes[:2] == [5, 5]
    assert sizes[2] != 5
    assert sparse.lengths().tolist() == [len(row[2][j]) for j in range(4) for row in training[:5]]
    assert sparse.offsets().tolist() == [0, *sparse.lengths().cumsum(0).tolist()]
    assert sparse.length_per_key() == sizes
    assert sparse.offset_per_key() == [sum(sizes[:j]) for j in range(5)]
    assert [part.keys() for part in sparse.split([2, 2])] == [FEATURES[:2], FEATURES[2:]]
    assert sparse.split([2, 2])[1].values().equal(sparse.values()[10:])
    assert batch.to("cpu").sparse.values().equal(sparse.values())


def test_batches_do_not_share_memory(prepared):
    dataset, training = prepared
    batches = dataset.batches("train", 100)
    for batch in batches:
        batch.sparse.values().zero_()
        batch.sparse.lengths().zero_()
    assert read(batches) == plain(training)
