"""Budgets for pruned tables: never over, nearly spent, and the level means what it says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables_samples import make_specs, zipf_counts

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.tables.base import total_full_bytes
from recemb.tables.magnitude import MagnitudeConfig
from recemb.tables.optembed import OptEmbedConfig
from recemb.tables.pep import PepConfig
from recemb.tables.pruned import PrunedConfig
from recemb.tables.pruning import EntrySolver, RowSolver

CONFIGS = {
    "optembed": OptEmbedConfig(),
    "optembed per row": OptEmbedConfig(per="row"),
    "pep": PepConfig(),
    "pep per dimension": PepConfig(per="dimension"),
    "magnitude": MagnitudeConfig(),
    "magnitude of entries": MagnitudeConfig(unit="entry"),
    "magnitude, size alone": MagnitudeConfig(traffic=0),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@settings(max_examples=120, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 800), min_size=1, max_size=5),
    dim=st.sampled_from([1, 3, 8, 16]),
    share=st.floats(0.01, 1.2),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_rows_fill_a_budget_at_any_widths(sizes: list[int], dim: int, share: float, seed: int, data: st.DataObject):
    specs = [TableSpec(name=f"t{i}", num_embeddings=size, embedding_dim=dim) for i, size in enumerate(sizes)]
    random = torch.Generator().manual_seed(seed)
    margins = [torch.randn(size, generator=random) for size in sizes]
    widths = data.draw(st.lists(st.integers(1, dim), min_size=len(sizes), max_size=len(sizes)))
    budget = max(1, int(total_full_bytes(specs) * share))
    solver = RowSolver(specs, margins)
    level = solver.level(budget, widths)
    if math.isnan(level):
        assert sum(widths) * 4 + 8 * len(sizes) > budget
        return
    structure = solver.structure(level, widths)
    used = structure.layout(specs).serving_bytes
    assert used <= budget
    assert solver.rows_above(level) == structure.num_kept
    for margin, ids in zip(margins, structure.kept, strict=True):
        wanted = set((margin > level).nonzero().flatten().tolist()) | {0}
        assert set(torch.as_tensor(ids).tolist()) == wanted
    whole = sum(size * width * 4 for size, width in zip(sizes, widths, strict=True))
    # The map may come out smaller than reckoned; the widest row more, or a map where none was needed, is too much.
    spare = max(widths) * 4 + 0.1875 * (sum(sizes) + 64) + 16 * len(sizes) + 12
    assert used == whole or used + spare >= budget


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=4),
    dim=st.sampled_from([3, 8, 16]),
    share=st.floats(0.02, 0.9),
    seed=st.integers(0, 1000),
)
def test_entries_never_exceed_a_budget(sizes: list[int], dim: int, share: float, seed: int):
    specs = [TableSpec(name=f"t{i}", num_embeddings=size, embedding_dim=dim) for i, size in enumerate(sizes)]
    random = torch.Generator().manual_seed(seed)
    margins = [torch.rand(size, dim, generator=random) for size in sizes]
    budget = int(total_full_bytes(specs) * share)
    solver = EntrySolver(specs, margins)
    level = solver.level(budget, [])
    if math.isnan(level):
        return
    structure = solver.structure(level)
    assert structure.layout(specs).serving_bytes <= budget
    if structure.entries is None:
        return
    for margin, ids, entries in zip(margins, structure.kept, structure.entries, strict=True):
        above = margin[torch.as_tensor(ids)] > level
        assert bool((entries | ~above).all())  # what is above stays
        # and what was taken beside it is the largest of the rest
        for row, keeps in zip(margin[torch.as_tensor(ids)], entries, strict=True):
            assert bool(keeps.all()) or row[keeps].min() >= row[~keeps].max()


@each_config
@pytest.mark.parametrize("share", [1 / 2, 1 / 8, 1 / 32])
def test_a_trained_table_packs_into_its_budget(config: PrunedConfig, share: float):
    specs = [
        TableSpec(name=f"t{size}", num_embeddings=size, embedding_dim=16, counts=zipf_counts(size))
        for size in (3, 18, 305, 2_000, 20_000)
    ]
    budget = int(total_full_bytes(specs) * share)
    pruning = config.fit(specs, budget).pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, pruning)
    torch.manual_seed(0)
    for weight in tables.weights:
        weight.data.mul_(torch.rand(len(weight), 1) * 20)
    pruning.after_step(lambda: tables.weights, 2.0)
    used = pruning.structure(tables.weights).layout(specs).serving_bytes
    assert 0.97 * budget <= used <= budget
    assert pruning.scalars()["pruned_share"] > 0 or share == 1 / 2


@each_config
def test_what_training_masks_is_what_is_dropped(config: PrunedConfig):
    """Without width masks, a vector is zero exactly where its row or entry is not kept."""
    specs = make_specs(max_length=1)
    budget = total_full_bytes(specs) // 6
    pruning = config.fit(specs, budget).pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, pruning)
    torch.manual_seed(0)
    for weight in tables.weights:
        weight.data.mul_(torch.rand(len(weight), 1) * 20)
    with torch.no_grad():
        solver = pruning.solver(tables.weights)
        pruning.level.fill_(solver.level(budget, [16.0] * len(specs)))
        pruning.eval()
        margins = pruning.margins(tables.weights)
        for index, (spec, margin, weight) in enumerate(zip(specs, margins, tables.weights, strict=True)):
            ids = torch.arange(1, spec.num_embeddings)
            out = pruning.gate(weight[1:], ids, torch.full_like(ids, index))
            over = margin[1:] - pruning.level
            over = over if over.dim() == 2 else over.unsqueeze(1).expand_as(out)
            clear = over.abs() > 1e-5  # where sigmoid and logit may round to different sides
            assert clear.float().mean() > 0.99
            assert torch.equal((out != 0) & clear, (over > 0) & clear)


def test_the_schedule_is_cubic_in_bytes():
    specs = make_specs()
    full = total_full_bytes(specs)
    pruning = MagnitudeConfig(ramp=2.0).fit(specs, full // 8).pruning_table(specs)
    for epochs in (0.0, 0.5, 1.0, 1.9, 2.0, 7.0):
        left = max(0.0, 1 - epochs / 2) ** 3
        assert pruning.target_bytes(epochs) == int(full // 8 + (full - full // 8) * left)
    oneshot = MagnitudeConfig(schedule="oneshot").fit(specs, full // 8).pruning_table(specs)
    assert oneshot.target_bytes(9.0) is None


def test_frequent_ids_are_worth_more():
    counts = torch.tensor([0, 1000, 10, 10, 1])
    specs = [TableSpec(name="a", num_embeddings=5, embedding_dim=4, counts=counts)]
    weight = torch.tensor([0.1, 1.0, 2.0, 3.0, 9.0]).unsqueeze(1).expand(5, 4)
    plain = MagnitudeConfig(traffic=0).pruning_table(specs).margins([weight])[0]
    assert plain.argsort().tolist() == [0, 1, 2, 3, 4]
    weighed = MagnitudeConfig(traffic=1.0).pruning_table(specs).margins([weight])[0]
    np.testing.assert_allclose(weighed, 2 * weight[:, 0] * (counts + 1) / 1001)
    assert weighed.argsort(descending=True).tolist()[:2] == [1, 3]


@pytest.mark.parametrize("name", ["optembed", "pep", "magnitude"])
def test_a_budget_is_needed_and_the_least_is_named(name: str):
    specs, config = make_specs(), CONFIGS[name]
    with pytest.raises(RecembError, match="needs a budget"):
        config.check_trainable()
    with pytest.raises(RecembError, match=r"the least possible is 48 bytes"):
        config.fit(specs, 47)
    pruning = config.fit(specs, 48).pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, pruning)
    assert pruning.structure(tables.weights).layout(specs).serving_bytes == 48


def test_widths_must_be_one():
    specs = [TableSpec(name=str(dim), num_embeddings=5, embedding_dim=dim) for dim in (4, 8)]
    with pytest.raises(RecembError, match=r"pruned tables must have one width, not \[4, 8\]"):
        MagnitudeConfig().pruning_table(specs)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 8])
def test_a_budget_for_everything_keeps_everything(dim: int):
    """Be some entries exactly zero, the least margin there is."""
    specs = [TableSpec(name="a", num_embeddings=300, embedding_dim=dim)]
    for config in (PepConfig(), MagnitudeConfig(), MagnitudeConfig(unit="entry")):
        pruning = config.fit(specs, total_full_bytes(specs)).pruning_table(specs)
        tables = CompressedEmbeddingBagCollection(specs, pruning)
        weights = [weight.detach().clone() for weight in tables.weights]
        weights[0][5] = 0
        assert pruning.structure(weights).layout(specs).serving_bytes == total_full_bytes(specs)


def test_what_fits_is_what_is_masked_once_the_schedule_is_over():
    specs = make_specs()
    pruning = MagnitudeConfig(ramp=0.5).fit(specs, total_full_bytes(specs) // 8).pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, pruning)
    for epochs in (0.2, 0.44, 0.5):  # the last one would not be due yet
        pruning.after_step(lambda: tables.weights, epochs)
    assert float(pruning.level) == pruning.solver(tables.weights).level(total_full_bytes(specs) // 8, [16] * 4)


@pytest.mark.parametrize("options", [{"ramp": math.nan}, {"ramp": math.inf}, {"traffic": math.inf}, {"traffic": -1.0}])
def test_schedules_are_numbers(options: dict[str, float]):
    (name,) = options
    with pytest.raises(RecembError, match=f"table.{name}=.* must be zero or a positive number"):
        MagnitudeConfig(**options)
