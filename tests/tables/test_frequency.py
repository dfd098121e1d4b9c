"""Frequency truncation against a sort of all ids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables_samples import make_specs

from recemb import CompressedEmbeddingBagCollection, TableSpec
from recemb.tables.frequency import FrequencyConfig, most_frequent


def specs_with(counts: list[list[int]]) -> list[TableSpec]:
    return [
        TableSpec(name=f"t{i}", num_embeddings=1 + len(seen), embedding_dim=4, counts=torch.tensor([3, *seen]))
        for i, seen in enumerate(counts)
    ]


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(
        st.lists(st.integers(1, 30), max_size=25).map(lambda seen: sorted(seen, reverse=True)), min_size=1, max_size=5
    ),
    share=st.floats(0, 1),
)
def test_no_dropped_id_is_more_frequent_than_a_kept_one(counts: list[list[int]], share: float):
    candidates = sum(map(len, counts))
    keep = round(share * candidates)
    kept = most_frequent(specs_with(counts), keep)
    assert sum(kept) == keep
    kept_counts = [seen for table, k in zip(counts, kept, strict=True) for seen in table[:k]]
    dropped = [seen for table, k in zip(counts, kept, strict=True) for seen in table[k:]]
    # The kept ones are what a sort of all ids by frequency would take.
    assert sorted(kept_counts, reverse=True) == sorted(kept_counts + dropped, reverse=True)[:keep]


def test_ties_are_shared_among_tables():
    assert most_frequent(specs_with([[5, 1, 1, 1, 1], [9, 1, 1, 1, 1]]), 6) == [3, 3]


def test_without_counts_every_table_keeps_equally_many():
    kept = most_frequent(make_specs(counts=False), 602)
    assert kept == [2, 200, 200, 200]


def test_rare_ids_share_the_row_of_unseen_values():
    specs = specs_with([[9, 8, 2, 1]])
    tables = CompressedEmbeddingBagCollection(specs, FrequencyConfig(keep=2))
    rows = tables.method.remap(torch.arange(5), torch.zeros(5, dtype=torch.int64))
    np.testing.assert_array_equal(rows, [0, 1, 2, 0, 0])
    assert tables.method.layout.tables[0].rows == 3


@pytest.mark.parametrize("more", [0, 10])
def test_the_full_tables_bytes_keep_everything(more: int):
    """The last kept id makes the map superfluous: bytes fall there."""
    specs = specs_with([[1] * 99] * 26)
    config = FrequencyConfig().fit(specs, 26 * 100 * 4 * 4 + more)
    assert config.keep is None
