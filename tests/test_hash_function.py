"""The integer hash: known values, spread, and ids of any size."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from recemb.hashing import hash_to_rows, mix, salt_of

SALT_C1 = 8000103747903517106
MIXED = [6077873459836895817, 6623690189590667914, 4329369169492864627, 101976286491702537, 102354622695055704]


def test_known_values_never_change():
    """Trained rows depend on these; a change needs a new HASH_VERSION."""
    assert salt_of("C1") == SALT_C1
    ids = torch.tensor([0, 1, 2**31 + 5, 2**62, -1])
    assert mix(ids, salt_of("C1")).tolist() == MIXED


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50), st.integers(1, 2**40))
def test_any_64_bit_id_gets_a_row(ids: list[int], rows: int):
    out = hash_to_rows(torch.tensor(ids), salt_of("x"), rows)
    assert int(out.min()) >= 0
    assert int(out.max()) < rows


def test_ids_that_float32_cannot_tell_apart_stay_apart():
    ids = 2**40 + torch.arange(100_000)
    assert len(torch.unique(mix(ids, 0))) == len(ids)


def test_names_and_probes_give_independent_rows():
    ids = torch.arange(100_000)
    rows = [hash_to_rows(ids, salt_of(name, probe), 1000) for name, probe in (("a", 0), ("b", 0), ("a", 1))]
    for one in range(3):
        counts = torch.bincount(rows[one], minlength=1000).double()
        assert float(((counts - 100) ** 2 / 100).sum()) < 1200  # chi-squared of 999 degrees: 1000 +- 45
        for other in range(one):
            assert abs(int((rows[one] == rows[other]).sum()) - 100) < 60
