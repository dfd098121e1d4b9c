"""Magnitude pruning against plain numpy."""

import numpy as np
import pytest
import torch

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.tables.magnitude import MagnitudeConfig


@pytest.mark.parametrize("unit", ["row", "entry"])
def test_what_is_small_goes(unit: str):
    torch.manual_seed(0)
    specs = [TableSpec(name=name, num_embeddings=300, embedding_dim=8) for name in "ab"]
    config = MagnitudeConfig(unit=unit).fit(specs, 6_000)
    search = config.pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, search)
    weights = [weight.detach().mul_(torch.rand(300, 1) * 20) for weight in tables.weights]
    structure = search.structure(weights)
    sizes = torch.cat(weights)
    sizes = sizes.norm(dim=1) if unit == "row" else sizes.abs()
    rows = [torch.as_tensor(ids) + 300 * table for table, ids in enumerate(structure.kept)]
    kept = np.zeros(sizes.shape, dtype=bool)
    if unit == "row":
        kept[torch.cat(rows)] = True
        known = np.arange(600) % 300 > 0  # the unknowns' rows stay whatever their size
        assert kept[~known].all()
        assert sizes.numpy()[kept & known].min() > sizes.numpy()[~kept].max()
        assert 150 < kept.sum() < 188
    else:
        kept[torch.cat(rows)] = torch.cat(list(structure.entries)).numpy()
        assert np.median(sizes.numpy()[kept]) > 2 * np.median(sizes.numpy()[~kept])


def test_the_gate_masks_by_size():
    specs = [TableSpec(name="a", num_embeddings=3, embedding_dim=2)]
    vectors = torch.tensor([[0.1, 0.1], [0.3, 0.4], [0.5, 0.1]])
    ids, spec = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    for unit, wanted in (
        ("row", [[0.1, 0.1], [0.0, 0.0], [0.5, 0.1]]),
        ("entry", [[0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]),
    ):
        search = MagnitudeConfig(unit=unit).pruning_table(specs)
        search.level.fill_(0.505 if unit == "row" else 0.45)
        torch.testing.assert_close(search.gate(vectors, ids, spec), torch.tensor(wanted))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unit": "column"}, "table.unit=column is not known; choose one of row, entry"),
        ({"schedule": "linear"}, "table.schedule=linear is not known"),
        ({"finetune_lr": 0.0}, "table.finetune_lr=0.0 must be a positive number"),
        ({"finetune_epochs": 0}, "table.finetune_epochs is 0"),
    ],
)
def test_what_makes_no_sense_is_told(options: dict[str, object], words: str):
    with pytest.raises(RecembError, match=words):
        MagnitudeConfig(**options)
