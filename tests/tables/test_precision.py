"""Rows in fewer bits: right to the formula, no larger than predicted, and never coarser than they need be."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recemb import RecembError, TableSpec, list_tables
from recemb.tables.base import PhysicalTable
from recemb.tables.precision import (
    PRECISIONS,
    empty_rows,
    held_as,
    mean_row_bytes,
    pack_rows,
    read_rows,
    round_rows_,
    row_bytes,
)
from tests.tables_samples import make_specs

BITS = {"int8": 8, "int4": 4, "int2": 2}


def random_rows(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows, 1, generator=random) * 3
    return torch.randn(rows, dim, generator=random) * scale + torch.randn(rows, 1, generator=random)


@pytest.mark.parametrize("held", BITS)
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 16, 33])
def test_codes_are_read_as_the_formula_says(held: str, dim: int):
    rows, bits = random_rows(50, dim), BITS[held]
    packed = pack_rows(rows, held)
    codes = np.zeros((50, dim))
    for row in range(50):
        number = int.from_bytes(bytes(packed["codes"][row].tolist()), "little")
        for column in range(dim):
            codes[row, column] = (number >> (bits * column)) % 2**bits
    step, start = packed["scales"].double().numpy().T
    wanted = codes * step[:, None] + start[:, None]
    np.testing.assert_allclose(read_rows(packed, torch.arange(50), dim, held).numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("held", [*BITS, "fp16"])
def test_rows_come_back_to_within_half_a_step(held: str):
    rows = random_rows(400, 16)
    back = read_rows(pack_rows(rows, held), torch.arange(400), 16, held)
    span = rows.amax(dim=1) - rows.amin(dim=1)
    if held == "fp16":
        torch.testing.assert_close(back, rows, rtol=1e-3, atol=1e-6)
    elif held == "int8":  # the whole range is kept: half a step, and what rounding to halves costs
        assert bool(((back - rows).abs().amax(dim=1) <= span / 255 / 2 + 2e-3 * rows.abs().amax(dim=1)).all())
    else:  # a narrower range may cut extremes, where that is better for the row as a whole
        steps = 2 ** BITS[held] - 1
        plain = ((rows - rows.amin(1, keepdim=True)) / span[:, None] * steps).round() / steps * span[:, None]
        plain = plain + rows.amin(1, keepdim=True)
        error, of_plain = ((one - rows).square().sum() for one in (back, plain))
        assert error < of_plain


def test_narrowing_the_range_helps_where_codes_are_few():
    rows = torch.randn(2000, 16, generator=torch.Generator().manual_seed(1))
    error = {held: (read_rows(pack_rows(rows, held), torch.arange(2000), 16, held) - rows).norm() for held in BITS}
    relative = {held: float(value / rows.norm()) for held, value in error.items()}
    assert relative["int8"] < 0.005 < relative["int4"] < 0.08 < relative["int2"] < 0.36


@given(st.integers(1, 70), st.sampled_from(PRECISIONS))
def test_bytes_are_those_of_the_tensors(dim: int, precision: str):
    table = PhysicalTable("t", 7, dim, 0.01, precision)
    packed = pack_rows(random_rows(7, dim), table.held)
    assert sum(tensor.nbytes for tensor in packed.values()) == table.bytes == 7 * row_bytes(dim, precision)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in empty_rows(table).items()}
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in packed.items()}


@given(st.integers(1, 70), st.sampled_from(PRECISIONS))
def test_no_finer_precision_would_take_as_few_bytes(dim: int, precision: str):
    asked, chosen = PRECISIONS.index(precision), PRECISIONS.index(held_as(dim, precision))
    assert chosen <= asked
    for finer in PRECISIONS[:chosen]:
        assert row_bytes(dim, finer) > row_bytes(dim, precision)
    assert row_bytes(dim + 1, precision) >= row_bytes(dim, precision)
    assert row_bytes(dim, precision) <= mean_row_bytes(dim + 0.5, precision) <= row_bytes(dim + 1, precision)


def test_width_16_takes_what_fbgemm_takes_without_padding():
    kept = {precision: row_bytes(16, precision) / 64 for precision in PRECISIONS}
    assert kept == {"fp32": 1.0, "fp16": 0.5, "int8": 0.3125, "int4": 0.1875, "int2": 0.125}


@pytest.mark.parametrize("held", BITS)
@pytest.mark.parametrize("value", [0.0, 1e-7, -3.25])
def test_rows_of_equal_numbers_stay(held: str, value: float):
    rows = torch.full((3, 8), value)
    back = read_rows(pack_rows(rows, held), torch.arange(3), 8, held)
    torch.testing.assert_close(back, rows, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e6])
def test_what_halves_cannot_hold_is_refused(wrong: float):
    rows = torch.zeros(4, 8)
    rows[2, 3] = wrong
    with pytest.raises(RecembError, match="cannot be held in int8"):
        pack_rows(rows, "int8")


def test_rounding_in_place_leaves_what_is_served():
    table = PhysicalTable("t", 9, 12, 0.01, "int4")
    weight = random_rows(9, 12)
    served = read_rows(pack_rows(weight, table.held), torch.arange(9), 12, table.held)
    round_rows_([table], [weight])
    torch.testing.assert_close(weight, served, rtol=0, atol=0)


def test_unknown_precisions_are_refused_in_words():
    with pytest.raises(RecembError, match="int16 is not known; choose one of fp32, fp16, int8, int4, int2"):
        TableSpec(name="a", num_embeddings=3, embedding_dim=4, precision="int16")


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "int2"])
@pytest.mark.parametrize("share", [1 / 4, 1 / 7])
@pytest.mark.parametrize("method", list_tables(), ids=lambda method: method.name)
def test_budgets_count_what_is_served(method, share: float, precision: str):
    specs = make_specs()
    fp32 = method.config().fit(specs, int(share * sum(spec.full_bytes for spec in specs))).layout(specs)
    for spec in specs:
        spec.precision = precision
    budget = int(share * sum(spec.full_bytes for spec in specs))
    layout = method.config().fit(specs, budget).layout(specs)
    assert layout.serving_bytes <= budget
    if method.name == "auto":  # which chooses for each block, among these
        return
    assert all(table.precision == precision for table in layout.tables)  # no table is left out
    if fp32.parts["rows"] > 0.7 * fp32.serving_bytes:  # cheaper numbers are spent on more of them
        floats = [sum(table.rows * table.dim for table in one.tables) for one in (fp32, layout)]
        assert floats[1] > 1.3 * floats[0] or layout.serving_bytes < 0.5 * budget


FIXED = [method for method in list_tables() if not method.config.learns]  # what others hold is learned for a budget


@pytest.mark.parametrize("method", FIXED, ids=lambda method: method.name)
def test_a_config_means_the_same_tables_in_every_precision(method):
    specs = make_specs()
    config = method.config().fit(specs, int(sum(spec.full_bytes for spec in specs) / 5))
    fp32 = config.layout(specs)
    for spec in specs:
        spec.precision = "int4"
    layout = config.layout(specs)
    assert [table[:3] for table in layout.tables] == [table[:3] for table in fp32.tables]
    assert layout.lookups == fp32.lookups
