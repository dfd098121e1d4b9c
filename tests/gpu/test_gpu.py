"""Every method on a CUDA device against itself on the CPU: vectors, one training step, odd batches, a whole run.

Without a CUDA device they are skipped; RECEMB_GPU_SUITE=cpu runs the same tests with the CPU in its place.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pruned_samples import random_structure
from tables_samples import VARIANTS, Variant, make_batch, make_specs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec, get_table
from recemb.cli import main
from recemb.datasets import Batch
from recemb.tables.base import CompressedTable, PhysicalTable, TableConfig, total_full_bytes
from recemb.tables.lanes import lanes_of, stored_shape
from recemb.tables.precision import round_rows_
from recemb.tables.structure import pack_bits
from recemb.training.ahead import Ahead
from recemb.training.evaluation import evaluate
from recemb.training.reopen import open_run

PRUNED = ["optembed", "pep", "magnitude"]
SMALL = ["trainer.batch_size=512", "trainer.epochs=1", "trainer.evaluations_per_epoch=2", "model.embedding_dim=8"]
SEARCH = ["table.rounds=2", "table.mutants=2", "table.crossovers=2", "table.parents=2"]
each_method = pytest.mark.parametrize("method", VARIANTS, ids=lambda variant: variant.name)
each_length = pytest.mark.parametrize("max_length", [1, None], ids=["single", "bags"])


@pytest.fixture(scope="module")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("RECEMB_GPU_SUITE") == "cpu":
        return torch.device("cpu")
    pytest.skip("needs a CUDA device, and torch finds none; RECEMB_GPU_SUITE=cpu runs this on the CPU")


def needs_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("is there for CUDA devices only")


def fitted(method: Variant, specs: list[TableSpec]) -> TableConfig:
    return method.config().fit(specs, total_full_bytes(specs) // 4)


def twins(
    specs: list[TableSpec],
    make: Callable[[], TableConfig | CompressedTable],
    device: torch.device,
    optimizer: str = "rowwise_adagrad",
) -> tuple[CompressedEmbeddingBagCollection, CompressedEmbeddingBagCollection]:
    """Two fused collections of equal weights, on the CPU and on the device."""
    here = CompressedEmbeddingBagCollection(specs, make(), optimizer=FusedOptimizer(optimizer))
    there = CompressedEmbeddingBagCollection(specs, make(), optimizer=FusedOptimizer(optimizer), device=device)
    there.load_state_dict(here.state_dict())
    return here, there


def assert_equal_after_a_step(
    here: CompressedEmbeddingBagCollection, there: CompressedEmbeddingBagCollection, batch: KeyedJaggedTensor
) -> None:
    """Vectors, weights and the gradients of everything that the dense optimizer trains."""
    place = there.weights[0].device
    out, other = here(batch), there(batch.to(place))
    assert other.values().device.type == place.type
    assert other.keys() == out.keys()
    torch.testing.assert_close(other.values().cpu(), out.values(), atol=1e-5, rtol=1e-5)
    target = torch.randn(out.values().shape, generator=torch.Generator().manual_seed(1))
    for vectors in (out.values(), other.values()):
        ((vectors - target.to(vectors.device)) ** 2).sum().backward()
    for one, two in zip(here.weights, there.weights, strict=True):
        # The first step of an Adagrad is a gradient over its own size: where terms of 3 add up to 0.0002, as they once
        # do here, their rounding moves a weight by 0.00002.
        torch.testing.assert_close(two.detach().cpu(), one.detach(), atol=5e-5, rtol=1e-5)
        assert (two.detach().cpu() - one.detach()).norm() <= 1e-4 * one.detach().norm() + 1e-5
    for (name, one), two in zip(here.method.named_parameters(), there.method.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name  # noqa: PT018
        torch.testing.assert_close(two.grad.cpu(), one.grad, atol=1e-4, rtol=1e-4, msg=name)


@each_method
@each_length
def test_vectors_and_a_training_step_are_those_of_the_cpu(method: Variant, max_length: int | None, device):
    specs = make_specs(max_length=max_length)
    here, there = twins(specs, lambda: fitted(method, specs), device)
    plain = CompressedEmbeddingBagCollection(specs, fitted(method, specs))
    plain.load_state_dict(there.state_dict())
    batch = make_batch(specs, bags=33)
    found = there(batch.to(device)).values()
    torch.testing.assert_close(found.cpu(), plain(batch).values(), atol=1e-5, rtol=1e-5)
    # Every bag of one id, the usual case, and bags of 0 to 3 ids, some of them empty.
    assert_equal_after_a_step(here, there, make_batch(specs, bags=65, seed=1, empty=False))
    assert_equal_after_a_step(here, there, batch)


@each_method
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd"])
def test_other_optimizers_take_the_same_step(method: Variant, optimizer: str, device):
    specs = make_specs(max_length=1)
    here, there = twins(specs, lambda: fitted(method, specs), device, optimizer)
    for seed in (1, 2):
        assert_equal_after_a_step(here, there, make_batch(specs, bags=65, seed=seed))


@pytest.mark.parametrize("dim", [10, 16, 128])
@pytest.mark.parametrize("form", ["matrices", "zeros", "bits"])
@pytest.mark.parametrize("adds", [False, True], ids=["single", "bags"])
def test_rows_of_many_widths_are_widened_in_one_kernel(dim: int, form: str, adds: bool, device):
    needs_cuda(device)
    from recemb.tables.widening import Widened, Widening

    random = torch.Generator().manual_seed(dim)
    widths = [dim, dim - 1, 3, 2, 5, dim, 1, max(dim // 2, 1)]
    counts = [700, 1300, 2500, 0, 64, 1, 33, 999]
    stored_widths = [stored_shape(PhysicalTable("", 4, width, 0.0)).dim for width in widths]
    lookups = [
        Widened(width, stored, form == "matrices" and width < dim and index != 4)
        for index, (width, stored) in enumerate(zip(widths, stored_widths, strict=True))
    ]
    lane = [torch.randint(lanes_of(width), (n,), generator=random) for width, n in zip(widths, counts, strict=True)]
    masks = [
        torch.rand(n, dim, generator=random).argsort(dim=1) < width for width, n in zip(widths, counts, strict=True)
    ]
    rows = sum(counts)
    place = torch.randint(rows // 2, (rows,), generator=random) if adds else torch.randperm(rows, generator=random)
    stored = torch.randn(sum(n * wide for n, wide in zip(counts, stored_widths, strict=True)), generator=random)
    matrices = [torch.randn(one.width, dim, generator=random) for one in lookups if one.multiplied]
    target = torch.randn(rows + 9, dim, generator=random)

    def reference(stored, *matrices):
        vectors, left = [], list(matrices)
        parts = stored.split([n * wide for n, wide in zip(counts, stored_widths, strict=True)])
        for part, lanes, mask, one in zip(parts, lane, masks, lookups, strict=True):
            number = lanes.unsqueeze(1) * one.width + torch.arange(one.width)
            found = part.view(-1, one.stored).gather(1, number)
            if one.multiplied:
                found = found @ left.pop(0)
            elif form == "bits":
                found = found.new_zeros(mask.shape).masked_scatter(mask, found)
            vectors.append(torch.nn.functional.pad(found, (0, dim - found.shape[1])))
        return stored.new_zeros(rows + 9, dim).index_add(0, place, torch.cat(vectors))

    exact = [one.double().requires_grad_() for one in (stored, *matrices)]
    expected = reference(*exact)
    expected.backward(target.double())
    given = [one.to(device).requires_grad_() for one in (stored, *matrices)]
    widening, bits = Widening(lookups, dim, adds), pack_bits(torch.cat(masks)).to(device) if form == "bits" else None
    for _ in range(2):
        found = widening(given[0], counts, torch.cat(lane).to(device), bits, place.to(device), given[1:], rows + 9)
    found.backward(target.to(device))
    for one, other in [(found, expected), *((one.grad, other.grad) for one, other in zip(given, exact, strict=True))]:
        assert (one.detach().cpu().double() - other.detach()).norm() <= 1e-5 * other.detach().norm()


@each_method
@each_length
def test_ids_that_were_turned_into_rows_ahead_give_the_same(method: Variant, max_length: int | None, device):
    specs = make_specs(max_length=max_length)
    one, other = (
        CompressedEmbeddingBagCollection(specs, fitted(method, specs), optimizer=FusedOptimizer(), device=device)
        for _ in range(2)
    )
    batches = []
    for seed in range(7):
        sparse = make_batch(specs, bags=65 - seed, seed=seed, empty=seed % 2 == 0)
        batches.append(Batch(torch.zeros(65 - seed, 1), sparse, torch.zeros(65 - seed)))
    ahead = Ahead([one], device)
    waiting = (batch.pin_memory() if device.type == "cuda" else batch for batch in batches)
    for batch in batches:
        ready = ahead.take(waiting)
        vectors = [one(ready.sparse).values(), other(batch.sparse.to(device)).values()]
        for found in vectors:
            found.square().sum().backward()
        torch.testing.assert_close(vectors[0], vectors[1], atol=1e-6, rtol=1e-6)
    assert ahead.take(waiting) is None
    ahead.close()


@pytest.mark.parametrize("name", PRUNED)
def test_budgets_are_solved_on_the_device_as_on_the_cpu(name: str, device):
    specs = make_specs(max_length=1)
    config = get_table(name).config().fit(specs, total_full_bytes(specs) // 4)
    pruning = config.pruning_table(specs)
    weights = [torch.randn(spec.num_embeddings, spec.embedding_dim) * 0.05 for spec in specs]
    kept = pruning.structure(weights)
    found = pruning.to(device).structure([weight.to(device) for weight in weights])
    same = [
        np.isin(np.asarray(ids), np.asarray(others)).mean() for ids, others in zip(kept.kept, found.kept, strict=True)
    ]
    assert min(same) > 0.99  # margins are summed in another order
    assert found.layout(specs).serving_bytes <= config.budget_bytes


@pytest.mark.parametrize("name", PRUNED)
@each_length
def test_tables_that_learn_what_to_keep_mask_as_on_the_cpu(name: str, max_length: int | None, device):
    specs = make_specs(max_length=max_length)
    config = get_table(name).config().fit(specs, total_full_bytes(specs) // 4)
    here, there = twins(specs, lambda: config.pruning_table(specs), device)
    for tables in (here, there):
        # Not in training mode: optembed would draw other widths on each device.
        tables.eval().method.after_step(lambda tables=tables: tables.weights, config.ramp)
    torch.testing.assert_close(there.method.level.cpu(), here.method.level)
    # The level is the margin of a row, which another order of summing may bring to either side of it.
    for tables in (here, there):
        tables.method.level.copy_(here.method.level * (1 + 1e-5))
    batch = make_batch(specs, bags=65)
    share = (here(batch).values() == 0).float().mean()
    assert 0.05 < share < 1
    assert_equal_after_a_step(here, there, batch)
    there.train()(batch.to(device)).values().sum().backward()


@pytest.mark.parametrize("unit", ["row", "entry"])
@each_length
def test_packed_tables_are_those_of_the_cpu(unit: str, max_length: int | None, device):
    specs = make_specs(max_length=max_length)
    known = get_table("magnitude")
    structure = random_structure(specs, unit)
    config = known.config(unit=unit)
    here, there = twins(specs, lambda: known.table(config, specs, structure.layout(specs)), device)
    assert_equal_after_a_step(here, there, make_batch(specs, bags=65))
    full = [torch.randn(spec.num_embeddings, spec.embedding_dim, device=device) for spec in specs]
    structure.pack_into([weight.data for weight in there.weights], full.__getitem__)
    structure.pack_into([weight.data for weight in here.weights], lambda table: full[table].cpu())
    for one, two in zip(here.weights, there.weights, strict=True):
        assert torch.equal(two.cpu(), one)


@each_method
def test_bags_without_ids_and_a_batch_without_any(method: Variant, device):
    specs = make_specs()
    tables = CompressedEmbeddingBagCollection(specs, fitted(method, specs), optimizer=FusedOptimizer(), device=device)
    nothing = torch.zeros(0, dtype=torch.int64)
    lengths = torch.zeros(3 * len(specs), dtype=torch.int64)
    out = tables(KeyedJaggedTensor([spec.name for spec in specs], nothing, lengths=lengths).to(device))
    assert out.values().shape == (3, sum(tables.method.layout.dims))
    assert not out.values().any()


@each_method
def test_ids_out_of_range_are_named(method: Variant, device):
    specs = make_specs(max_length=1)
    tables = CompressedEmbeddingBagCollection(specs, fitted(method, specs), optimizer=FusedOptimizer(), device=device)
    ids = torch.tensor([0, 1, 307, 5, 6, 7, 8, 9])
    batch = KeyedJaggedTensor([spec.name for spec in specs], ids, lengths=torch.ones(8, dtype=torch.int64))
    with pytest.raises(RecembError, match="feature city: id 307 is out of range"):
        tables(batch.to(device))


@each_method
def test_rows_trained_on_the_device_are_served_on_the_cpu(method: Variant, device):
    specs = make_specs(max_length=1)
    tables = CompressedEmbeddingBagCollection(specs, fitted(method, specs), optimizer=FusedOptimizer(), device=device)
    batch = make_batch(specs, bags=65)
    tables(batch.to(device)).values().square().sum().backward()
    weights = tables.weights
    round_rows_(tables.method.layout.tables, weights)  # some are served in 8 bits
    tables.write(weights)
    trained = tables(batch.to(device)).values().detach().cpu()
    torch.testing.assert_close(tables.quantized()(batch).values(), trained, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "rows"
    assert main(["prepare", "dataset=synthetic", "dataset.rows=8000", f"dataset.path={path}"]) == 0
    return path


@pytest.mark.parametrize("name", ["hashing", "low_rank", "mixed_dimension", "compositional", *PRUNED])
def test_a_run_on_the_device_is_evaluated_alike_on_the_cpu(name: str, data: Path, tmp_path: Path, device):
    run = tmp_path / "run"
    search = SEARCH if name == "optembed" else []
    arguments = [f"table={name}", "budget=1/4", f"trainer.device={device.type}", *SMALL, *search]
    assert main(["train", f"dataset.path={data}", *arguments, f"hydra.run.dir={run}"]) == 0
    record = json.loads((run / "run.json").read_text())
    reopened = open_run(run)
    again = evaluate(reopened.built.model, reopened.dataset, "test", 4096, torch.device("cpu"))
    written = pd.read_parquet(run / "predictions.parquet")
    assert record["metrics"]["test"] == pytest.approx(again.metrics, abs=1e-4)
    assert record["metrics"]["test"]["logloss"] < 0.7
    np.testing.assert_allclose(written["probability"], torch.sigmoid(again.logits), atol=1e-5)
