"""The hashing trick: sizes in proportion, and the collision rate that theory gives."""

import numpy as np
import pytest
import torch
from tables_samples import SIZES, make_specs

from recemb import CompressedEmbeddingBagCollection, TableSpec
from recemb.hashing import salt_of
from recemb.tables.base import total_full_bytes
from recemb.tables.hashing import HashingConfig


def splitmix(ids: np.ndarray, salt: int) -> np.ndarray:
    """SplitMix64's finaliser in unsigned arithmetic."""
    x = ids.astype(np.uint64) ^ np.uint64(salt % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) & np.uint64(2**63 - 1)


def test_rows_are_the_hash_modulo_the_size():
    specs = make_specs()
    tables = CompressedEmbeddingBagCollection(specs, HashingConfig(rows=600, threshold=10))
    for index, (name, size) in enumerate(SIZES.items()):
        ids = torch.arange(size)
        rows = tables.method.remap(ids, torch.full((size,), index)).numpy()
        if size <= 10:
            np.testing.assert_array_equal(rows, ids)
        else:
            count = size * 600 // (307 + 5000 + 1201)
            np.testing.assert_array_equal(rows, splitmix(ids.numpy(), salt_of(name)) % np.uint64(count))
            assert tables.method.layout.tables[index].rows == count


def test_the_share_of_ids_with_a_row_of_their_own_is_what_chance_gives():
    """V ids in M rows: an id is alone with probability (1 - 1/M)^(V - 1) (Weinberger et al., section 2)."""
    ids, rows = 100_000, 50_000
    spec = TableSpec(name="C1", num_embeddings=ids, embedding_dim=4)
    tables = CompressedEmbeddingBagCollection([spec], HashingConfig(rows=rows))
    where = tables.method.remap(torch.arange(ids), torch.zeros(ids, dtype=torch.int64))
    alone = (torch.bincount(where, minlength=rows)[where] == 1).float().mean().item()
    assert alone == pytest.approx((1 - 1 / rows) ** (ids - 1), abs=0.01)


def test_a_table_more_or_less_moves_nobody_elses_rows():
    specs = make_specs()
    ids = torch.arange(307)
    alone = CompressedEmbeddingBagCollection(specs[1:2], HashingConfig(rows=50)).method.remap(
        ids, torch.zeros_like(ids)
    )
    config = HashingConfig(rows=50 * 6508 // 307 + 1)
    beside = CompressedEmbeddingBagCollection(specs, config).method.remap(ids, torch.ones_like(ids))
    assert torch.equal(alone, beside)


def test_small_tables_stay_whole_only_while_they_leave_half_of_the_budget():
    specs = make_specs()
    full = total_full_bytes(specs)
    whole = HashingConfig(threshold=400).fit(specs, full // 4)
    assert whole.rows_of(specs)[:2] == [3, 307]
    tight = HashingConfig(threshold=400).fit(specs, full // 16)
    assert tight.rows_of(specs)[0] == 3
    assert tight.rows_of(specs)[1] < 307
