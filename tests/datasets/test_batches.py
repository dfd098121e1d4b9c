import gc
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

from recemb.datasets import Batches, SyntheticConfig, prepare
from recemb.options import RecembError

KEYS = [f"C{i}" for i in range(1, 27)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    # More than one record batch of 2**18 rows in the training split.
    config = SyntheticConfig(path=str(tmp_path_factory.mktemp("synthetic") / "out"), rows=330_000)
    return prepare(config, progress=False)


@pytest.fixture(scope="module")
def frame(dataset):
    return pd.read_feather(dataset.path / "train.arrow")


def table(batches):
    """Return all rows of some batches as (rows, 40) float64, checking the form of each batch on the way."""
    parts = []
    for batch in batches:
        rows = len(batch.labels)
        assert batch.dense.shape == (rows, 13)
        assert (batch.dense.dtype, batch.labels.dtype) == (torch.float32, torch.float32)
        assert batch.sparse.values().dtype == torch.int64
        assert batch.sparse.keys() == KEYS
        assert batch.sparse.stride() == rows
        ids = batch.sparse.values().view(26, rows)
        parts.append(torch.cat([batch.labels[:, None], batch.dense, ids.T], dim=1).double().numpy())
    return np.concatenate(parts)


def assert_same_rows(found, frame):
    np.testing.assert_array_equal(found, frame.to_numpy(dtype=np.float64))


def fingerprints(rows):
    return pd.util.hash_pandas_object(pd.DataFrame(rows), index=False).to_numpy()


@pytest.mark.parametrize("batch_size", [1000, 16_384, 150_000, 10**6])
def test_in_file_order_every_row_comes_as_it_lies(dataset, frame, batch_size):
    batches = dataset.batches("train", batch_size)
    sizes = [len(batch.labels) for batch in batches]
    full, rest = divmod(len(frame), batch_size)
    assert sizes == [batch_size] * full + [rest] * (rest > 0)
    assert len(batches) == len(sizes)
    assert_same_rows(table(batches), frame)


def test_a_short_last_batch_can_be_left_out(dataset, frame):
    for shuffle in (False, True):
        batches = dataset.batches("train", 9999, shuffle=shuffle, drop_last=True)
        assert [len(batch.labels) for batch in batches] == [9999] * len(batches)
        assert len(batches) == len(frame) // 9999
    assert list(dataset.batches("test", 10**6, drop_last=True)) == []


def test_the_jagged_tensor_says_the_same_in_all_its_ways(dataset):
    batch = next(iter(dataset.batches("train", 5)))
    sparse = batch.sparse
    assert sparse.lengths().tolist() == [1] * (26 * 5)
    assert sparse.offsets().tolist() == list(range(26 * 5 + 1))
    assert sparse.length_per_key() == [5] * 26
    assert sparse.offset_per_key() == list(range(0, 26 * 5 + 1, 5))
    for i, key in enumerate(KEYS):
        assert sparse[key].values().tolist() == sparse.values()[5 * i : 5 * i + 5].tolist()
    assert sparse.split([13, 13])[1].keys() == KEYS[13:]
    moved = batch.to("cpu")
    assert moved.sparse.values().equal(sparse.values())
    assert moved.labels.equal(batch.labels)


@pytest.mark.parametrize(("split", "window"), [("train", 1 << 20), ("train", 1 << 17), ("valid", 800)])
def test_shuffling_gives_every_row_once_in_another_order_each_epoch(dataset, split, window):
    wanted = fingerprints(pd.read_feather(dataset.path / f"{split}.arrow").to_numpy(dtype=np.float64))
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        batches = dataset.batches(split, 9999, shuffle=True, seed=seed, epoch=epoch, window=window)
        orders.append(fingerprints(table(batches)))
        np.testing.assert_array_equal(np.sort(orders[-1]), np.sort(wanted))
    np.testing.assert_array_equal(orders[0], orders[3])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(orders[one] == orders[other]) < 0.01


def test_an_exact_shuffle_is_one_and_a_window_shuffle_comes_close(dataset, frame):
    column = frame["C3"].to_numpy()
    # In file order the row number of a row; afterwards its distance to where it was is that of a random permutation.
    where = {window: [] for window in (1 << 20, 1 << 14)}
    for window, positions in where.items():
        ids = torch.cat([b.sparse["C3"].values() for b in dataset.batches("train", 4096, shuffle=True, window=window)])
        rare = np.flatnonzero(np.bincount(column)[column] == 2)
        first = {}
        for row in rare:
            first.setdefault(column[row], row)
        found = {}
        for at, value in enumerate(ids.tolist()):
            if value in first:
                found.setdefault(value, at)
        positions += [(first[value], found[value]) for value in first]
        before, after = np.array(positions).T
        assert abs(np.corrcoef(before, after)[0, 1]) < 0.15


def test_iterating_again_gives_the_same_and_batches_do_not_share_memory(dataset):
    batches = dataset.batches("valid", 1000, shuffle=True)
    first = list(batches)
    np.testing.assert_array_equal(table(first), table(batches))
    first[0].sparse.values().zero_()
    first[0].dense.zero_()
    assert table(batches).any()
    assert first[1].sparse.values().any()


def test_stopping_early_ends_the_thread(dataset):
    def working():
        return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]

    for _ in range(5):
        for batch in dataset.batches("train", 1000, shuffle=True):
            assert len(batch.labels) == 1000
            break
        gc.collect()
    iterator = iter(dataset.batches("train", 1000))
    next(iterator)
    assert working()
    del iterator
    gc.collect()
    deadline = time.monotonic() + 10
    while working() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not working()


class Broken:
    """A split that fails after some rows, as a disk does."""

    rows = 10_000
    dense = 13
    categorical = 26
    multi_valued = 0

    def __init__(self, split):
        self._split = split

    def pieces(self, start, stop):
        if start >= 3000:
            raise OSError("the disk is gone")
        return self._split.pieces(start, stop)


def test_an_exception_arrives_where_its_batch_would(dataset):
    batches = Batches(Broken(dataset._split("train")), KEYS, 1000, None, False, 1 << 20)
    iterator = iter(batches)
    assert [len(next(iterator).labels) for _ in range(3)] == [1000] * 3
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)


def test_a_split_or_size_that_does_not_exist(dataset):
    assert dataset.num_rows("train") + dataset.num_rows("valid") + dataset.num_rows("test") == 330_000
    with pytest.raises(RecembError, match="no split holdout; choose one of train, valid, test"):
        dataset.num_rows("holdout")
    with pytest.raises(RecembError, match="batch_size=0"):
        dataset.batches("train", 0)
