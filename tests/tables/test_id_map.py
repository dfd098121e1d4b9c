"""Maps from ids to numbers of kept ones: exact for every id, as small as said."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.tables.id_map import find, longest_bucket, make_map, map_bytes, map_form


def reference(kept: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many kept ids are smaller, and whether an id is kept."""
    return (kept[None, :] < ids[:, None]).sum(axis=1), np.isin(ids, kept)


def check(kept: np.ndarray, num_ids: int, ids: np.ndarray) -> None:
    tensors = make_map(torch.from_numpy(kept), num_ids)
    assert sum(tensor.nbytes for tensor in tensors.values()) == map_bytes(num_ids, len(kept))
    number, found = find(tensors, torch.from_numpy(ids), longest_bucket(tensors))
    wanted_number, wanted_found = reference(kept, ids)
    assert found.tolist() == wanted_found.tolist()
    assert number[found].tolist() == wanted_number[wanted_found].tolist()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), num_ids=st.integers(1, 5000))
def test_every_id_is_found_or_not(data: st.DataObject, num_ids: int):
    share = data.draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kept = np.flatnonzero(random.random(num_ids) < share)
    check(kept if len(kept) else np.array([num_ids - 1]), num_ids, np.arange(num_ids))


@pytest.mark.parametrize(
    ("form", "num_ids", "num_kept"),
    [("bitmap", 10_000, 4_000), ("keys8", 100_000, 5_000), ("keys16", 3_000_000, 3_000), ("keys32", 2**40, 40)],
)
def test_the_smallest_form_is_taken_and_right(form: str, num_ids: int, num_kept: int):
    assert map_form(num_ids, num_kept) == form
    random = np.random.default_rng(0)
    kept = np.unique(random.integers(0, num_ids, num_kept - 2))
    kept = np.unique(np.concatenate([kept, [0, num_ids - 1]]))
    around = np.concatenate([kept[:200], kept[:200] + 1, kept[-200:] - 1, random.integers(0, num_ids, 500)])
    check(kept, num_ids, around.clip(0, num_ids - 1))


def test_ids_past_32_bits_are_told_apart():
    kept = np.array([0, 5, 2**31 - 1, 2**31, 2**32, 2**32 + 5, 2**33 + 7, 2**36 - 1])
    ids = np.concatenate([kept, kept + 1, kept + 2**32]).clip(0, 2**36 - 1)
    check(kept, 2**36, ids)


def test_all_bits_of_a_word_count():
    check(np.arange(64), 64 * 3, np.arange(64 * 3))
    check(np.array([63, 64, 127, 191]), 192, np.arange(192))


def test_shapes_are_kept():
    tensors = make_map(torch.tensor([0, 3, 4]), 10)
    number, found = find(tensors, torch.tensor([[0, 3], [4, 9]]), longest_bucket(tensors))
    assert found.tolist() == [[True, True], [True, False]]
    assert number[found].tolist() == [0, 1, 2]


def test_a_key_of_the_next_bucket_is_not_taken_for_one_of_this():
    kept = np.array([0, 256 + 5, 2 * 256 + 7])
    assert map_form(100_000, len(kept)) == "keys16"
    check(kept, 1000, np.arange(1000))  # 5 has the low bits of the first key after its own bucket's
    check(np.array([0, 65_536 + 5]), 200_000, np.array([0, 5, 65_536 + 5, 65_536 + 6]))
