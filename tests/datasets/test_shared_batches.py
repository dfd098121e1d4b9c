"""A pass shared among processes, and one that begins in the middle, against the whole pass of one process."""

import bag_samples as samples
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.datasets import Batch, Batches, prepare, writer
from recemb.datasets.columns import SplitFile
from recemb.options import RecembError

MOST = 400


class Watched(SplitFile):
    """The first rows of a split, and which row ranges were read."""

    def __init__(self, dataset, rows=None):
        super().__init__(dataset.path / "train.arrow", dataset.num_rows("train"))
        self.rows = rows or self.rows
        self.gathered, self.read = [], []

    def pieces(self, start, stop):
        self.read.append((start, stop))
        return super().pieces(start, stop)

    def gather(self, ranges):
        self.gathered.append(list(ranges))
        return super().gather(ranges)


@pytest.fixture(scope="module", params=["single-valued", "multi-valued"])
def dataset(request, tmp_path_factory):
    """Two features that every row has one id of, the first one the number of the row, and maybe two bags."""
    config = samples.SampleConfig(path=str(tmp_path_factory.mktemp("shared") / "out"), min_count=1)
    rows = samples.make_rows(MOST * 10 // 8 + 10, seed=3)
    if request.param == "multi-valued":
        config.rows = rows
    else:
        config.rows = [(*row[:3], []) for row in rows]
        config.names = (samples.DENSE, samples.SINGLE, ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "RECORD_BATCH_ROWS", 64)
        prepared = prepare(config, progress=False)
    assert prepared.num_rows("train") >= MOST
    return prepared


def keys_of(dataset):
    return [feature.name for feature in dataset.features]


def rows_of(batch):
    """Return the rows of a batch, each as label, dense values and for every feature its ids."""
    rows = len(batch.labels)
    assert batch.sparse.stride() == rows
    assert batch.dense.shape == (rows, 1)
    columns = [batch.sparse[key] for key in batch.sparse.keys()]  # noqa: SIM118
    ids = [[part.tolist() for part in column.values().split(column.lengths().tolist())] for column in columns]
    return list(zip(batch.labels.tolist(), batch.dense.tolist(), map(list, zip(*ids, strict=True)), strict=True))


@st.composite
def passes(draw):
    """Return how many rows there are, options of a pass over them but for share and start, and how many processes."""
    # Batches with fewer rows than there are processes are rare unless asked for, as are windows that lie in one batch.
    rows = draw(st.integers(1, 40) | st.integers(1, MOST))
    batch_size = draw(st.integers(1, 10) | st.integers(1, rows + 10))
    order = draw(st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3)))
    window = draw(st.integers(1, 40) | st.integers(1, 500))
    return rows, (batch_size, order, draw(st.booleans()), window), draw(st.integers(1, 12))


@pytest.mark.wide
@settings(max_examples=150, deadline=None)
@given(passes(), st.data())
def test_the_shares_put_together_are_the_batch_of_one_process(dataset, drawn, data):
    rows, options, ranks = drawn
    split, keys = Watched(dataset, rows), keys_of(dataset)
    whole = list(Batches(split, keys, *options))
    start = data.draw(st.integers(0, len(whole)), label="start")
    shares = [Batches(split, keys, *options, share=(rank, ranks), start=start) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(whole)}
    for one, *parts in zip(whole[start:], *shares, strict=True):
        wanted, n = rows_of(one), len(one.labels)
        assert (one.total, one.counted) == (n, n)
        together = []
        for rank, part in enumerate(parts):
            begin, end = n * rank // ranks, n * (rank + 1) // ranks
            assert (part.total, part.counted) == (n, end - begin)
            # All processes have as many rows; what is over is the next one's and does not count.
            assert rows_of(part) == wanted[begin : begin + -(-n // ranks)]
            together += rows_of(part)[: part.counted]
        assert together == wanted


@settings(max_examples=200, deadline=None)
@given(passes(), st.data())
def test_what_is_not_needed_is_not_read(dataset, drawn, data):
    rows, options, ranks = drawn
    everything, split, keys = Watched(dataset, rows), Watched(dataset, rows), keys_of(dataset)
    whole = list(Batches(everything, keys, *options))
    start, rank = (
        data.draw(st.integers(0, len(whole)), label="start"),
        data.draw(st.integers(0, ranks - 1), label="rank"),
    )
    mine = Batches(split, keys, *options, share=(rank, ranks), start=start)
    # The first id of a row is its place in the file, counted from 1.
    needed = {number - 1 for batch in mine for number in batch.sparse["row"].values().tolist()}
    if options[1] is None:
        assert {row for begin, end in split.read for row in range(begin, end)} == needed
    else:
        assert split.gathered == [
            ranges
            for ranges in everything.gathered
            if any(begin <= row < end for row in needed for begin, end in ranges)
        ]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_data_set_hands_on_share_and_start(dataset, shuffle):
    options = {"shuffle": shuffle, "seed": 4, "epoch": 2, "window": 50}
    whole = list(dataset.batches("train", 60, **options))
    shares = [dataset.batches("train", 60, **options, share=(rank, 2), start=3) for rank in (0, 1)]
    assert {len(share) for share in shares} == {len(whole)}
    for one, *parts in zip(whole[3:], *shares, strict=True):
        assert [row for part in parts for row in rows_of(part)[: part.counted]] == rows_of(one)


def test_windows_before_the_start_and_between_the_shares_are_not_gathered(dataset):
    def gathered(**options):
        split = Watched(dataset, 400)
        list(Batches(split, keys_of(dataset), 200, (0, 0), False, 32, **options))
        return len(split.gathered)

    # Windows of 32 rows: 13 for 400 rows; batches of 200 begin within window 0 and 6.
    assert gathered() == 13
    assert gathered(start=1) == 7
    assert gathered(start=2) == 0
    # Rows 0-49 and 200-249 lie in windows 0, 1 and 6, 7.
    assert gathered(share=(0, 4)) == 4
    assert gathered(share=(0, 4), start=1) == 2


def test_a_batch_keeps_what_it_says_of_all_processes_when_it_moves(dataset):
    batch = next(iter(dataset.batches("train", 2, share=(0, 3))))
    assert (batch.total, batch.counted, len(batch.labels)) == (2, 0, 1)
    moved = batch.to("cpu")
    assert (moved.total, moved.counted) == (2, 0)
    by_hand = Batch(torch.zeros(3, 1), batch.sparse, torch.zeros(3))
    assert (by_hand.total, by_hand.counted) == (None, None)


@pytest.mark.parametrize("share", [(-1, 2), (2, 2), (0, 0), (1, -1)])
def test_a_share_that_does_not_exist(dataset, share):
    with pytest.raises(RecembError, match=rf"share=\({share[0]}, {share[1]}\) is out of range; .*0 <= rank < ranks"):
        dataset.batches("train", 10, share=share)


@pytest.mark.parametrize("start", [-1, 12])
def test_a_start_that_does_not_exist(dataset, start):
    batch_size = -(-dataset.num_rows("train") // 11)
    assert list(dataset.batches("train", batch_size, start=11)) == []
    with pytest.raises(RecembError, match=f"start={start} is out of range; this pass has 11 batches"):
        dataset.batches("train", batch_size, start=start)
