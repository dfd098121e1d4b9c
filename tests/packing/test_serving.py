"""Tables that serve give what the collection gives, for every method; eager, exported and as ONNX."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from parameters import mostly_wide
from pruned_samples import random_structure
from tables_samples import VARIANTS, Variant, make_batch, make_specs
from torch import Tensor

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.packing.programs import capture, run_onnx, write_onnx, write_pt2
from recemb.packing.serving import ServingTables
from recemb.tables.bags import flat_ids
from recemb.tables.base import CompressedTable, TableConfig
from recemb.tables.magnitude import MagnitudeConfig, MagnitudeTable
from recemb.tables.precision import PRECISIONS, round_rows_

STRUCTURES = [("row", 0.3, "zero"), ("row", 0.02, "shared"), ("entry", 0.3, "shared"), ("entry", 0.02, "zero")]
ONCE = [variant for variant in VARIANTS if variant.name in {v.method for v in VARIANTS} | {"compositional-path"}]


def specs_in(precision: str, max_length: int | None = None) -> list[TableSpec]:
    specs = make_specs(max_length=max_length)
    for spec in specs:
        spec.precision = precision
    return specs


def live_and_served(
    specs: Sequence[TableSpec], method: TableConfig | CompressedTable
) -> tuple[CompressedEmbeddingBagCollection, ServingTables]:
    """A collection whose every number is another, rounded as serving does, and the tables that serve it."""
    live = CompressedEmbeddingBagCollection(specs, method)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.normal_(generator=random)
        served = ServingTables(live.method, live.weights)
        round_rows_(live.method.layout.tables, live.weights)
    return live, served


def fitted(variant: Variant, specs: Sequence[TableSpec]) -> TableConfig:
    return variant.config().fit(specs, sum(spec.full_bytes for spec in specs) // 5)


def structured(specs: list[TableSpec], unit: str, share: float, pruned: str) -> CompressedTable:
    structure = random_structure(specs, unit, share)
    return MagnitudeTable(MagnitudeConfig(unit=unit, pruned=pruned), specs, structure.layout(specs))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("max_length", [1, None])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_served_vectors_are_the_live_ones(variant: Variant, max_length: int | None, precision: str):
    specs = specs_in(precision, max_length)
    live, served = live_and_served(specs, fitted(variant, specs))
    for bags in (1, 7):
        batch = make_batch(specs, bags=bags)
        with torch.no_grad():
            torch.testing.assert_close(served(*flat_ids(batch, served.features)), live(batch).values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("unit", "share", "pruned"), STRUCTURES)
def test_packed_structures_serve_as_they_are(unit: str, share: float, pruned: str, precision: str):
    specs = specs_in(precision)
    live, served = live_and_served(specs, structured(specs, unit, share, pruned))
    batch = make_batch(specs, bags=20)
    with torch.no_grad():
        torch.testing.assert_close(served(*flat_ids(batch, served.features)), live(batch).values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_predicted_bytes_are_those_served(variant: Variant, precision: str):
    specs = specs_in(precision)
    live, served = live_and_served(specs, fitted(variant, specs))
    assert served.serving_bytes == live.method.layout.serving_bytes
    assert served.serving_bytes <= sum(spec.full_bytes for spec in specs) // 5


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_vectors_of_single_ids_are_those_of_their_bags(variant: Variant):
    specs = specs_in("fp32")
    _, served = live_and_served(specs, fitted(variant, specs))
    ids = torch.tensor([0, 1, 306, 33, 200])
    offsets = torch.tensor([[0] * 6, range(6), [5] * 6, [5] * 6])
    start = served.method.layout.dims[0]
    with torch.no_grad():
        vectors = served.vectors(1, ids)
        torch.testing.assert_close(vectors, served(ids, offsets)[:, start : start + vectors.shape[1]])


def check_programs(served: ServingTables, specs: list[TableSpec], folder: Path) -> None:
    """Compare the exported forms with the eager module: many bags, one, and none that holds an id."""
    values, offsets = flat_ids(make_batch(specs, bags=5), served.features)
    program = capture(served, {"values": values, "offsets": offsets})
    write_pt2(program, folder / "tables.pt2")
    assert write_onnx(program, folder / "tables.onnx", "vectors") == ["tables.onnx"]
    loaded, onnx = torch.export.load(folder / "tables.pt2").module(), run_onnx(folder / "tables.onnx")
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(len(served.features), 3, dtype=torch.int64)
    inputs = [flat_ids(make_batch(specs, bags=bags, seed=bags), served.features) for bags in (1, 2, 30)]
    for flat in (*inputs, nothing):
        with torch.no_grad():
            wanted = served(*flat)
            torch.testing.assert_close(loaded(values=flat[0], offsets=flat[1]), wanted)
            torch.testing.assert_close(onnx(*flat), wanted)


@pytest.mark.parametrize("variant", mostly_wide(ONCE, "full", "compositional", name=lambda variant: variant.name))
def test_programs_give_the_eager_vectors(variant: Variant, tmp_path: Path):
    specs = specs_in("int4" if variant.method == "full" else "int8")
    check_programs(live_and_served(specs, fitted(variant, specs))[1], specs, tmp_path)


@pytest.mark.parametrize(
    ("unit", "share", "pruned"), [STRUCTURES[1], pytest.param(*STRUCTURES[2], marks=pytest.mark.wide)]
)
def test_programs_of_packed_structures_give_the_eager_vectors(unit: str, share: float, pruned: str, tmp_path: Path):
    specs = specs_in("int8")
    check_programs(live_and_served(specs, structured(specs, unit, share, pruned))[1], specs, tmp_path)


@pytest.mark.parametrize("unit", ["row", "entry"])
def test_16_bit_keys_are_held_in_bytes_saved_as_numbers_and_exported(unit: str, tmp_path: Path):
    specs = [TableSpec(name="huge", num_embeddings=3_000_000, embedding_dim=8)]
    _, served = live_and_served(specs, structured(specs, unit, 0.001, "zero"))
    state = {name: tensor.clone() for name, tensor in served.state_dict().items()}
    assert served.method.keys.dtype == torch.uint8
    assert state["method.keys"].dtype == torch.int16
    assert served.serving_bytes == served.method.layout.serving_bytes
    # As the rows of a file give it: the layout's own constants are what the file holds.
    constants = {name: state[f"method.{name}"].clone() for name in served.method.layout.constants}
    layout = dataclasses.replace(served.method.layout, constants=constants)
    loaded = ServingTables(type(served.method)(served.method.config, specs, layout), None)
    loaded.method.keys.zero_()
    loaded.load_state_dict(state)
    flat = torch.arange(0, 3_000_000, 7), torch.tensor([[0, len(range(0, 3_000_000, 7))]])
    assert served(*flat).any()
    assert torch.equal(loaded(*flat), served(*flat))
    check_programs(served, specs, tmp_path)


def test_an_exported_graph_takes_unknown_ids_for_the_unknown_value(tmp_path: Path):
    specs = specs_in("fp32")
    _, served = live_and_served(specs, fitted(VARIANTS[0], specs))
    values, offsets = flat_ids(make_batch(specs, bags=5), served.features)
    program = capture(served, {"values": values, "offsets": offsets}).module()
    wrong = values.clone()
    wrong[::2] = torch.tensor(2**40)
    right = torch.where(wrong == 2**40, 0, wrong)
    torch.testing.assert_close(program(values=wrong, offsets=offsets), served(right, offsets))


def wrong_inputs() -> dict[str, tuple[Tensor, Tensor]]:
    values, offsets = flat_ids(make_batch(make_specs(), bags=3), ["gender", "city", "item", "user"])
    backwards, late = offsets.clone(), offsets.clone()
    backwards[1, 1] = offsets[1, 0] - 1
    late[0, 0] = 1
    far = values.clone()
    far[-1] = 1201
    return {
        "feature user: id 1201 is out of range": (far, offsets),
        "must rise from 0": (values, backwards),
        "rise from 0 to": (values, late),
        "each feature's beginning where": (values[:-1], offsets),
        r"these tables need \(4, B \+ 1\)": (values, offsets[:3]),
        "these tables need": (values, offsets[:, :1]),
        "must be .* int64": (values.int(), offsets),
        "int64 and offsets": (values.view(1, -1), offsets),
    }


@pytest.mark.parametrize("sentence", wrong_inputs())
def test_what_does_not_fit_is_refused_in_words(sentence: str):
    specs = specs_in("fp32")
    _, served = live_and_served(specs, fitted(VARIANTS[0], specs))
    with pytest.raises(RecembError, match=sentence):
        served(*wrong_inputs()[sentence])
