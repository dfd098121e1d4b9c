"""Trains every method in every sharding for five steps, and one process on the same rows, and prints how they differ.

    torchrun --nproc-per-node 2 tests/training/parity_worker.py [WORD ...]

Each process is its own reference: it also trains the unsharded tables on the whole batches.
"""

import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from tables_samples import VARIANTS, Variant, make_batch, make_specs

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec
from recemb.datasets import Batch
from recemb.models import DLRMConfig
from recemb.tables.base import CompressedTable, TableConfig, total_full_bytes
from recemb.tables.collection import HERE
from recemb.tables.pruned import PrunedConfig
from recemb.training import processes
from recemb.training.build import Built, trained_beside_rows
from recemb.training.checkpoint import load_tensors, save_tensors
from recemb.training.optimizers import Optimizers
from recemb.training.processes import mean_over_processes, on_first, rank, world_size
from recemb.training.sharding import check_sharding, held_as_asked, spread
from recemb.training.steps import Steps

STEPS, ROWS, NUMBERS, PAUSED_AFTER = 5, 13, 3, 2
CPU = torch.device("cpu")
SHARDINGS = ["auto", "table_wise", "row_wise", "column_wise", "data_parallel"]


class Case(NamedTuple):
    variant: Variant
    sharding: str
    optimizer: str
    multi: bool
    learning: bool
    pipelined: bool
    dim: int = 16

    @property
    def name(self) -> str:
        words = [self.variant.name, self.sharding, self.optimizer, "multi" if self.multi else "single"]
        words += ["learning"] * self.learning + ["pipelined"] * self.pipelined
        return " ".join(words + [f"{self.dim}-wide"] * (self.dim != 16))


def table_of(case: Case, specs: list[TableSpec]) -> TableConfig | CompressedTable:
    config = case.variant.config().fit(specs, total_full_bytes(specs) // (4 if case.dim == 16 else 1))
    return config.pruning_table(specs) if case.learning and isinstance(config, PrunedConfig) else config


def batch_of(specs: list[TableSpec], step: int, process: int, processes: int) -> Batch:
    """One process's rows of a step's batch, of which the others have as many, be it that not all count."""
    first, end = ROWS * process // processes, ROWS * (process + 1) // processes
    last = first + -(-ROWS // processes)
    random = torch.Generator().manual_seed(step)
    dense, labels = torch.randn(ROWS, NUMBERS, generator=random), torch.rand(ROWS, generator=random).round()
    whole = make_batch(specs, bags=ROWS, seed=step)
    keys = whole.keys()
    jagged = [whole[key].to_dense()[first:last] for key in keys]
    sparse = KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([ids for bags in jagged for ids in bags]),
        lengths=torch.tensor([len(ids) for bags in jagged for ids in bags]),
    )
    return Batch(dense[first:last], sparse, labels[first:last], ROWS, end - first)


def build(specs: list[TableSpec], table: TableConfig | CompressedTable, optimizer: FusedOptimizer, sharding: str):
    held = held_as_asked(sharding) if sharding != "none" else HERE
    torch.manual_seed(0)
    tables = CompressedEmbeddingBagCollection(specs, table, optimizer=optimizer, seed=3, held=held)
    model = DLRMConfig(bottom_layers=[8], top_layers=[8]).build(tables, torch.randn(50, NUMBERS))
    runs = model if held == HERE else spread(model, tables, 3, CPU, sharding=sharding, batch_size=ROWS)
    built = Built(model, tables, runs)
    return built, Optimizers(trained_beside_rows(model), [tables], 0.01, 0.0, optimizer.lr)


def train(
    built: Built,
    optimizers: Optimizers,
    specs: list[TableSpec],
    process: int,
    processes: int,
    *,
    pipelined: bool = False,
) -> Tensor:
    losses = []
    batches = (batch_of(specs, step, process, processes) for step in range(STEPS))
    steps = Steps(built, [built.tables], optimizers, CPU, processes, pipelined=pipelined)
    for step in range(STEPS):
        optimizers.scale_rates(1 - step / 10)
        _, loss = steps.take(batches)
        losses.append(loss)
        built.tables.method.after_step(lambda: built.tables.weights, (step + 1) / STEPS)
        if step == PAUSED_AFTER:
            steps.pause()
            look = batch_of(specs, STEPS, process, processes)
            with torch.no_grad():
                losses.append(mean_of_counted(built.runs(look.dense, look.sparse), look, processes))
    steps.pause()
    assert steps.take(batches) is None
    return torch.stack(losses)


def mean_of_counted(logits: Tensor, batch: Batch, processes: int) -> Tensor:
    """What each process adds to the mean of all logits of a batch, times the processes."""
    return logits[: batch.counted].sum() / ROWS * processes


def compare(case: Case) -> dict[str, float]:
    variant, optimizer, learning = case.variant, FusedOptimizer(case.optimizer, 0.02, 1e-4), case.learning
    # OptEmbed's supernet draws a width for each vector, and each process draws for itself: 1 leaves nothing to chance.
    dim = 1 if learning and variant.method == "optembed" else case.dim
    specs = make_specs(dim, max_length=None if case.multi else 1)
    check_sharding(case.sharding, optimizer, None)
    table = table_of(case, specs)
    together, its = build(specs, table, optimizer, case.sharding)
    mine = train(together, its, specs, rank(), world_size(), pipelined=case.pipelined)
    losses = mean_over_processes(mine)
    states = its.tensors(together.model)
    table = table_of(case, specs)
    alone, own = build(specs, table, optimizer, "none")
    wanted = train(alone, own, specs, 0, 1)
    found = {"loss": worst([losses], [wanted])}
    found["rows"] = worst(together.tables.weights, alone.tables.weights)
    beside = [name for name, one in alone.model.state_dict().items() if ".embedding_bags." not in name]
    others, ours = together.model.state_dict(), alone.model.state_dict()
    found["rest"] = worst([others[name] for name in beside], [ours[name] for name in beside])
    moments = own.tensors(alone.model)
    whole = [name for name in states if type(states[name]) is Tensor]
    found["moments"] = worst([states[name] for name in whole], [moments[name] for name in whole])
    found["accumulators"] = max([0.0, *(shards_differ(one, moments[name]) for name, one in states.items())])
    found["saved"] = reread(others | states, ours | moments) if case.dim != 16 else 0.0
    return found


def reread(saved: dict[str, Any], wanted: dict[str, Tensor]) -> float:
    """Say how what the processes save together differs from what one process has, once it is read as that is."""
    folder = Path(on_first(tempfile.mkdtemp)) / "saved"
    save_tensors(saved, folder)
    read = {name: torch.full_like(one, torch.nan) for name, one in wanted.items()}
    load_tensors(read, folder, "{folder} cannot be read.")
    on_first(lambda: shutil.rmtree(folder.parent))
    assert not any(one.isnan().any() for one in read.values())
    return worst(list(read.values()), list(wanted.values()))


def worst(ours: list[Tensor], wanted: list[Tensor]) -> float:
    pairs = zip(ours, wanted, strict=True)
    return max([0.0, *(float((a - b).abs().nan_to_num().max()) for a, b in pairs if a.numel())])


def shards_differ(found: object, whole: Tensor) -> float:
    if type(found) is Tensor:
        return 0.0
    worst_here = 0.0
    for shard in found.local_shards():
        part = whole
        for axis, (start, size) in enumerate(
            zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
        ):
            part = part.narrow(axis, start, size)
        worst_here = max(worst_here, worst([shard.tensor], [part]))
    return worst_here


def cases(only: list[str]) -> Iterator[Case]:
    """Those whose names hold all words; `chosen` stands for what a test has time for, of the methods named after it.

    Of some methods alone, only rows that are shared out are looked at.
    """
    for values in itertools.product(
        VARIANTS, SHARDINGS, ("rowwise_adagrad", "adagrad", "sgd"), (False, True), (False, True), (False, True)
    ):
        case = Case(*values)
        if case.learning and not isinstance(case.variant.config(), PrunedConfig):
            continue
        if case.pipelined and case.sharding == "data_parallel":
            continue
        if only[:1] == ["chosen"]:
            if only[1:] and (case.variant.name not in only or case.sharding != "row_wise"):
                continue
            wanted = {"column_wise": "adagrad", "auto": "sgd"}.get(case.sharding, "rowwise_adagrad")
            refused = case.sharding == "column_wise" and case.optimizer == "rowwise_adagrad" and not case.multi
            bags = case.multi or (case.sharding == "row_wise" and not case.learning)
            pipelined = case.pipelined == (case.sharding in ("auto", "row_wise"))
            if pipelined and (refused or (case.optimizer == wanted and bags)):
                yield case
        elif all(word in case.name.split() for word in only):
            yield case
    # Rows of 61 floats are stored in 64, which two processes can cut between columns.
    full = next(variant for variant in VARIANTS if variant.name == "full")
    for sharding, optimizer, multi in (
        ("column_wise", "adagrad", False), ("column_wise", "sgd", True), ("row_wise", "rowwise_adagrad", True),
        ("data_parallel", "adagrad", True),
    ):  # fmt: skip
        case = Case(full, sharding, optimizer, multi, learning=False, pipelined=sharding == "row_wise", dim=61)
        if only == ["chosen"] or all(word in case.name.split() for word in only):
            yield case


def main() -> None:
    torch.set_num_threads(1)
    processes.join()
    for case in cases(sys.argv[1:]):
        found: dict[str, Any]
        try:
            found = compare(case)
        except RecembError as error:
            found = {"refused": str(error)}
        sys.stdout.write(json.dumps({"case": case.name, "process": rank(), **found}) + "\n")
        sys.stdout.flush()
    processes.leave()


main()
