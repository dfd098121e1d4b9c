"""Packed tables against the full tables that they stand for, masked."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pruned_samples import mask_of, masked_full, random_structure
from tables_samples import make_batch, make_specs

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec
from recemb.tables.full import FullConfig
from recemb.tables.magnitude import MagnitudeConfig, MagnitudeTable
from recemb.tables.structure import Structure, entries_bytes, entry_widths, pack_bits, unpack_bits

each_unit = pytest.mark.parametrize("unit", ["row", "entry"])


def packed(
    specs: list[TableSpec], structure: Structure, pruned: str = "zero", fused: bool = False
) -> tuple[CompressedEmbeddingBagCollection, list[torch.Tensor]]:
    """A packed collection and the full weights that it was packed from."""
    table = MagnitudeTable(MagnitudeConfig(pruned=pruned), specs, structure.layout(specs))
    tables = CompressedEmbeddingBagCollection(specs, table, optimizer=FusedOptimizer("sgd", lr=1.0) if fused else None)
    full = [weight.data for weight in CompressedEmbeddingBagCollection(specs, FullConfig(), seed=3).weights]
    structure.pack_into([weight.data for weight in tables.weights], full.__getitem__)
    return tables, full


@each_unit
@pytest.mark.parametrize("pruned", ["zero", "shared"])
@pytest.mark.parametrize("max_length", [1, None])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dim", [16, 5])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_a_packed_table_equals_the_masked_one(
    unit: str, pruned: str, max_length: int | None, fused: bool, dim: int, share: float
):
    specs = make_specs(dim=dim, max_length=max_length)
    structure = random_structure(specs, unit, share)
    tables, full = packed(specs, structure, pruned, fused)
    for seed, empty in ((0, True), (1, False)):
        batch = make_batch(specs, bags=40, seed=seed, empty=empty)
        wanted = masked_full(specs, full, structure, pruned)(batch).values()
        torch.testing.assert_close(tables(batch).values(), wanted, atol=1e-6, rtol=0)


@each_unit
@pytest.mark.parametrize("pruned", ["zero", "shared"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_packed_table_learns_like_the_masked_one(unit: str, pruned: str, fused: bool):
    """One step of plain SGD, kept floats compared; in the masked table dropped ids have no say, or the unknown's."""
    specs = make_specs(max_length=None)
    structure = random_structure(specs, unit)
    tables, full = packed(specs, structure, pruned, fused)
    reference = masked_full(specs, full, structure, pruned)
    batch = make_batch(specs, bags=200)
    target = torch.randn_like(reference(batch).values())
    for one in (tables, reference):
        ((one(batch).values() - target) ** 2).sum().backward()
    wanted = []
    for index, (weight, mask) in enumerate(zip(reference.weights, mask_of(structure, specs), strict=True)):
        gradient = weight.grad.clone()
        if pruned == "shared":
            dropped = torch.ones(len(weight), dtype=torch.bool)
            dropped[torch.as_tensor(structure.kept[index])] = False
            gradient[0] += gradient[dropped].sum(dim=0)
        wanted.append(full[index] - gradient * mask)
    stepped = [weight.data if fused else weight.data - weight.grad for weight in tables.weights]
    fresh, _ = packed(specs, structure, pruned)
    expected = [weight.data for weight in fresh.weights]
    structure.pack_into(expected, wanted.__getitem__)
    for one, other in zip(stepped, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@each_unit
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_every_byte_is_counted(unit: str, share: float):
    specs = make_specs()
    structure = random_structure(specs, unit, share)
    tables, _ = packed(specs, structure)
    held = sum(tensor.nbytes for tensor in tables.serving_tensors().values())
    layout = structure.layout(specs)
    assert held == layout.serving_bytes
    assert layout.parts["rows"] == 4 * int(sum(mask.sum() for mask in mask_of(structure, specs)))
    if unit == "entry":
        per_row = torch.cat([one.sum(dim=1) for one in structure.entries])
        ids = sum(spec.num_embeddings for spec in specs)
        assert layout.serving_bytes <= entries_bytes(per_row, 16, ids, "fp32") + 16 * len(specs) + 8 * len(
            entry_widths(16)
        )


@each_unit
@pytest.mark.parametrize("share", [0.02, 1.0])
def test_a_structure_survives_the_disk(unit: str, share: float, tmp_path: Path):
    specs = make_specs()
    structure = random_structure(specs, unit, share)
    structure.save(tmp_path / "kept.parquet", specs)
    back = Structure.load(tmp_path / "kept.parquet", specs)
    assert [torch.as_tensor(ids).tolist() for ids in back.kept] == [
        torch.as_tensor(ids).tolist() for ids in structure.kept
    ]
    assert [type(ids) for ids in back.kept] == [type(ids) for ids in structure.kept]
    for one, other in zip(mask_of(back, specs), mask_of(structure, specs), strict=True):
        assert torch.equal(one, other)
    assert back.layout(specs).serving_bytes == structure.layout(specs).serving_bytes


def test_a_file_of_other_tables_or_none_is_refused_in_words(tmp_path: Path):
    specs = make_specs()
    path = tmp_path / "kept.parquet"
    random_structure(specs, "row").save(path, specs)
    others = [dataclasses.replace(spec, name=f"other {spec.name}", feature_names=[]) for spec in specs]
    for wrong in (others, [*specs, others[0]]):
        with pytest.raises(RecembError, match="does not say what these tables keep"):
            Structure.load(path, wrong)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecembError, match="does not say what these tables keep"):
        Structure.load(path, specs)
    with pytest.raises(RecembError, match="does not say what these tables keep"):
        Structure.load(tmp_path / "absent.parquet", specs)


def test_a_summary_says_what_is_kept():
    counts = torch.tensor([5, 90, 4, 1])
    specs = [TableSpec(name="a", num_embeddings=4, embedding_dim=8, counts=counts)]
    structure = Structure(kept=[torch.tensor([0, 2])], widths=[3])
    table = structure.summary(specs)["per_table"]["a"]
    assert table == {"ids": 4, "kept": 2, "width": 3.0, "dim": 8, "cells": 0.09}
    assert structure.summary(specs)["map"] == "keys8"


@pytest.mark.parametrize("dim", [1, 5, 8, 16, 64, 70])
def test_bits_come_back(dim: int):
    mask = torch.rand(50, dim) < 0.5
    assert torch.equal(unpack_bits(pack_bits(mask), dim), mask)
    assert pack_bits(mask).shape == (50, -(-dim // 8))


def test_numbers_of_entries_are_few_and_reach_the_width():
    assert entry_widths(1) == [1]
    assert entry_widths(16) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert entry_widths(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]
