"""Planned tables: against ids looked up one by one, the worth of ids by frequency, and plans that do not fit."""

import numpy as np
import pytest
import torch
from tables_samples import make_batch, make_specs, zipf_counts

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.tables.allocation import Worth
from recemb.tables.auto import AutoConfig, AutoTable, by_frequency
from recemb.tables.base import total_full_bytes

PLAN = {
    "gender": [[3, 2, "fp16"]],
    "city": [[1, 4, "fp16"], [40, 16, "int8"], [300, 1, "fp16"]],
    "item": [[10, 8, "int4"], [5000, 2, "fp16"]],
    "user": [[1, 1, "fp16"]],
}


def by_hand(plan: list[list], weights: list[np.ndarray], one: int, dim: int) -> np.ndarray:
    """The vector of an id: its block's row, zeros behind it; past the last block the unknown's."""
    one = one if one < plan[-1][0] else 0
    start = 0
    for (stop, width, _), weight in zip(plan, weights, strict=True):
        if one < stop:
            vector = np.zeros(dim)
            vector[:width] = weight[one - start]
            return vector
        start = stop
    raise AssertionError


def test_vectors_are_those_of_the_plan():
    specs = make_specs()
    tables = CompressedEmbeddingBagCollection(specs, AutoConfig(plan=PLAN))
    layout = tables.method.layout
    assert [(table.rows, table.dim, table.held) for table in layout.tables] == [
        (3, 2, "fp16"), (1, 4, "fp16"), (39, 16, "int8"), (260, 1, "fp16"), (10, 8, "int4"), (4990, 2, "fp16"),
        (1, 1, "fp16"),
    ]  # fmt: skip
    assert layout.parts["rows"] == 3 * 4 + 8 + 39 * 20 + 260 * 2 + 10 * 8 + 4990 * 4 + 2
    batch = make_batch(specs, bags=40)
    out = tables(batch)
    for index, spec in enumerate(specs):
        weights = [tables.weights[table].detach().numpy() for table in layout.lookups[index]]
        for bag, ids in enumerate(batch[spec.name].to_dense()):
            wanted = sum((by_hand(PLAN[spec.name], weights, int(one), 16) for one in ids), np.zeros(16))
            np.testing.assert_allclose(out[spec.name][bag].detach().numpy(), wanted, atol=1e-6)


def test_tables_of_one_block_each_pad_their_rows():
    specs = [TableSpec(name="a", num_embeddings=9, embedding_dim=4, counts=torch.arange(9, 0, -1), max_length=1)]
    tables = CompressedEmbeddingBagCollection(specs, AutoConfig(plan={"a": [[5, 3, "fp32"]]}))
    assert not tables.method.layout.alternatives
    out = tables(make_batch(specs, bags=6, empty=False)).values()
    assert not out[:, 3].any()
    assert out[:, :3].any()
    assert isinstance(tables.method, AutoTable)
    ids = torch.tensor([0, 4, 5, 8])
    assert tables.method.remap(ids, torch.zeros_like(ids)).tolist() == [0, 4, 0, 0]


def test_narrow_rows_use_as_much_of_a_projection_as_they_are_wide():
    specs = make_specs()
    tables = CompressedEmbeddingBagCollection(specs, AutoConfig(plan=PLAN, project=True))
    matrices = dict(tables.method.named_parameters())
    assert {name: tuple(matrix.shape) for name, matrix in matrices.items()} == {
        "projection:gender": (2, 16), "projection:city": (4, 16), "projection:item": (8, 16),
        "projection:user": (1, 16),
    }  # fmt: skip
    plain = AutoConfig(plan=PLAN).layout(specs)
    assert tables.method.layout.serving_bytes == plain.serving_bytes + (2 + 4 + 8 + 1) * 16 * 4
    batch = make_batch(specs, bags=40)
    out = tables(batch)
    for index, spec in enumerate(specs):
        weights = []
        for table in tables.method.layout.lookups[index]:
            rows = tables.weights[table].detach().numpy()
            wide = rows.shape[1] == 16
            weights.append(
                rows if wide else rows @ matrices[f"projection:{spec.name}"].detach().numpy()[: rows.shape[1]]
            )
        plan = [[stop, 16, held] for stop, _, held in PLAN[spec.name]]
        for bag, ids in enumerate(batch[spec.name].to_dense()):
            wanted = sum((by_hand(plan, weights, int(one), 16) for one in ids), np.zeros(16))
            np.testing.assert_allclose(out[spec.name][bag].detach().numpy(), wanted, atol=1e-6)


def test_worth_by_frequency_by_hand():
    spec = TableSpec(name="a", num_embeddings=5, embedding_dim=3, counts=torch.tensor([1, 45, 25, 2, 2]))
    worth = by_frequency(spec)
    assert worth.stops.tolist() == [1, 2, 3, 4, 5]
    of_ids = [1e-3, 45 * 30 / 60, 25 * 10 / 40, 2e-3, 2e-3]
    np.testing.assert_allclose(worth.losses.sum(axis=1), of_ids)
    np.testing.assert_allclose(worth.losses[:, 1] / worth.losses[:, 0], 2**-1.5)
    assert by_frequency(spec, worth=7.0).total() == pytest.approx(7.0)
    unknown = by_frequency(TableSpec(name="b", num_embeddings=2**33, embedding_dim=2))
    assert unknown.total() == pytest.approx(2**33)


def test_what_is_worth_more_gets_more():
    specs = [
        TableSpec(name=name, num_embeddings=2000, embedding_dim=8, counts=zipf_counts(2000))
        for name in ("dull", "good")
    ]
    one = by_frequency(specs[0])
    worths = [Worth(one.stops, one.losses / 50), one]
    config = AutoConfig().fit_to(specs, total_full_bytes(specs) // 16, worths)
    layout = config.layout(specs)
    sizes = layout.bytes_per_table(specs)
    assert sizes["good"] > 5 * sizes["dull"]
    assert 0.99 * total_full_bytes(specs) / 16 < layout.serving_bytes <= total_full_bytes(specs) / 16
    widths = [table.dim for table in layout.tables if table.name.startswith("good")]
    assert widths[1] == max(widths)
    assert widths[-1] == min(widths)


def test_coarser_rows_leave_room_for_more():
    specs = make_specs()
    budget = total_full_bytes(specs) // 10
    numbers = []
    for coarsest in ("fp32", "fp16", "int8", "int4"):
        layout = AutoConfig(coarsest=coarsest).fit(specs, budget).layout(specs)
        numbers.append(sum(table.rows * table.dim for table in layout.tables))
        assert layout.serving_bytes <= budget
    assert numbers == sorted(numbers)
    assert numbers[1] > 1.9 * numbers[0]


def test_a_run_s_precision_may_be_coarser_than_the_table_s():
    specs = [
        TableSpec(name=name, num_embeddings=5000, embedding_dim=16, counts=zipf_counts(5000), precision="int4")
        for name in "ab"
    ]
    layout = AutoConfig().fit(specs, total_full_bytes(specs) // 8).layout(specs)
    assert "int4" in {table.held for table in layout.tables}


@pytest.mark.parametrize(
    "wrong",
    [
        [], [[308, 4, "fp16"]], [[10, 17, "fp16"]], [[10, 0, "fp16"]], [[10, 4, "fp8"]], [[10, 4]], [[0, 4, "fp16"]],
        [[10, 4, "fp16"], [10, 2, "fp16"]], "all", [[10, "wide", "fp16"]],
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_is_told(wrong: object):
    with pytest.raises(RecembError, match=r"table.plan.city=.* does not fit its 307 ids and width 16"):
        AutoConfig(plan={**PLAN, "city": wrong}).layout(make_specs())


def test_a_plan_of_other_data_is_told():
    with pytest.raises(RecembError, match=r"has no feature item; it is a plan of other data, for gender, city"):
        AutoConfig(plan={"gender": PLAN["gender"], "city": PLAN["city"]}).layout(make_specs())
    with pytest.raises(RecembError, match=r"table.coarsest=int3 is not known; choose one of fp32, fp16"):
        AutoConfig(coarsest="int3")
    with pytest.raises(RecembError, match=r"table.trials is -1; it must be at least 0"):
        AutoConfig(trials=-1)
