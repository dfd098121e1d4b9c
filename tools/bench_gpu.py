"""Training throughput of every method beside plain torchrec with full tables, on one GPU; small sizes on a CPU.

    .venv/bin/python tools/bench_gpu.py [--dims 16 128] [--methods hashing "optembed packed"] [--small] [--out DIR]

Whole training steps of recemb's DLRM (lookup, network, backward, updates) over the 26 tables of Criteo Kaggle's real
cardinalities, 33.8 million ids. Ids follow a Zipf law and lie on the device before the clock starts, several batches in
rotation. Compressed tables keep 1/8 of the bytes; pruned ones are measured while they learn what to keep, and packed.
Three take turns in one process, in alternating order; a turn is a step to get warm and then some that are timed as a
block between two synchronisations, so that the host may run ahead of the device as it does in training:

- plain: one FBGEMM kernel over all full tables with row-wise Adagrad in its backward pass and FBGEMM's defaults, as
  torchrec's sharded collections call it on each device. torchrec's unsharded module is measured like a method.
- method: recemb's collection, one batch ahead as `recemb train` works on GPUs.
- equal lookups: the same network, and a plain collection of the method's physical tables that is handed the row
  numbers that the method reads. Its vectors go into a mean and the network reads constants: remap and combine are all
  that the method does more. Widths are rounded up to multiples of four. Where ids read one of several tables it has one
  table a feature, of full width. Full tables and those being learned have the lookups of plain.

Ratios are medians over turns of the method's time over the other's in the same turn. Peak memory is what a step of the
method alone takes, tables and network included; reserved is that of the process, plain included. The split is measured
afterwards, one part after the other without working ahead, between CUDA events: where the host launches more slowly
than the device works, parts hold the wait too, so that they come to more than the step.
A solve sets the level of a table that is being pruned, 16 times a pass. tools/gpu_suite.sh makes tables of the results.
"""

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor
from tqdm import tqdm

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, TableSpec, get_table
from recemb.datasets import Batch
from recemb.datasets.criteo_kaggle_shape import CARDINALITIES
from recemb.datasets.criteo_text import CATEGORICAL
from recemb.models import DLRMConfig
from recemb.tables.base import CompressedTable, total_full_bytes
from recemb.tables.collection import BagConfig
from recemb.tables.pruned import PrunedConfig
from recemb.training.ahead import Ahead
from recemb.training.run import versions

UNSHARDED = "FusedEmbeddingBagCollection"
METHODS = (
    UNSHARDED, "full", "frequency", "hashing", "low_rank", "mixed_dimension", "mixed_dimension blocks=feature",
    "compositional", "multiplexed", "optembed learning", "optembed packed", "pep learning", "pep packed",
    "magnitude learning", "magnitude packed",
)  # fmt: skip
TRAINING_ROWS = 45_840_617  # of Criteo Kaggle; frequencies are what that many rows show
MOST_ENTRIES = 600_000_000  # that are pruned one by one, which happens on the host
SMALL_IDS = 10_000
PARTS = ("remap", "lookup", "combine", "rest of tables", "network", "backward", "optimizer")
OPTIMIZER = FusedOptimizer()
ADAGRAD = {"lr": OPTIMIZER.lr, "eps": OPTIMIZER.eps}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
WHERE = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if ON_GPU else (EmbeddingLocation.HOST, ComputeDevice.CPU)


class Run(NamedTuple):
    """What takes turns: the loss of a batch by number, None for the next one, and optimizers beside the fused one."""

    loss: Callable[[int | None], Tensor]
    optimizers: list[torch.optim.Optimizer]
    tables: nn.Module

    def step(self, number: int | None, ranges: Callable[[str], Any] = lambda _: nullcontext()) -> None:
        with ranges("forward"):
            loss = self.loss(number)
        with ranges("backward"):
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with ranges("optimizer"):
            for optimizer in self.optimizers:
                optimizer.step()


class PlainTables(nn.Module):
    """Plain torchrec: one fused kernel over all tables, given (rows, width) and the features of each."""

    def __init__(self, sizes: Sequence[tuple[int, int]], features: Sequence[list[str]]) -> None:
        super().__init__()
        sizes = [(rows, -(-width // 4) * 4) for rows, width in sizes]
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(*size, *WHERE) for size in sizes],
            feature_table_map=[table for table, names in enumerate(features) for _ in names],
            device=DEVICE,
            **OPTIMIZER.kwargs(),
        )
        for weight in kernel.split_embedding_weights():
            weight.uniform_(-0.017, 0.017)
        self.kernel = [kernel]  # in a list: its optimizer is its own, and no other shall see its weights
        self.keys = [name for names in features for name in names]
        configs = [BagConfig(names[0], *size, names) for size, names in zip(sizes, features, strict=True)]
        self.embedding_bag_configs = lambda: configs
        self._widths = [width for (_, width), names in zip(sizes, features, strict=True) for _ in names]

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        return KeyedTensor(self.keys, self._widths, self.kernel[0](features.values(), features.offsets()))


class Bench:
    """The sizes of one comparison, its batches, and plain torchrec."""

    def __init__(self, options: argparse.Namespace, dim: int) -> None:
        self.options, self.dim = options, dim
        sizes = [min(size, SMALL_IDS) if options.small else size for size in CARDINALITIES]
        self.specs = [
            TableSpec(name=name, num_embeddings=size, embedding_dim=dim, counts=zipf_counts(size), max_length=1)
            for name, size in zip(CATEGORICAL, sizes, strict=True)
        ]
        self.entries = sum(sizes) * dim
        random = torch.Generator(DEVICE).manual_seed(0)
        self.batches = [self._batch(random) for _ in range(options.batches)]
        before = torch.cuda.memory_allocated()
        self.plain = self.trained(PlainTables([(size, dim) for size in sizes], [[name] for name in CATEGORICAL]))
        self.plain_peak = self.peak_bytes(self.plain, before)

    def _batch(self, random: torch.Generator) -> Batch:
        draws = torch.rand(len(self.specs), self.options.batch, generator=random, device=DEVICE, dtype=torch.float64)
        sizes = torch.tensor([spec.num_embeddings for spec in self.specs], device=DEVICE).unsqueeze(1)
        ids = torch.minimum((sizes**draws).long(), sizes - 1)
        return Batch(
            torch.randn(self.options.batch, 13, generator=random, device=DEVICE),
            KeyedJaggedTensor(CATEGORICAL, ids.flatten(), lengths=torch.ones_like(ids).flatten()),
            torch.randint(0, 2, (self.options.batch,), generator=random, device=DEVICE).float(),
        )

    def peak_bytes(self, run: Run, before: int) -> int | None:
        """Bytes beyond `before` that a step takes at most, once optimizers have their state; None without a GPU."""
        run.step(None)
        if not ON_GPU:
            return None
        torch.cuda.reset_peak_memory_stats()
        run.step(None)
        return torch.cuda.max_memory_allocated() - before

    def network(self, tables: Any) -> Any:
        torch.manual_seed(0)
        return DLRMConfig().build(tables, self.batches[0].dense[:10_000].cpu()).to(DEVICE)

    def trained(self, tables: nn.Module) -> Run:
        """DLRM over these tables, trained as `recemb train` does."""
        model, method = self.network(tables), getattr(tables, "method", None)
        own = [] if method is None else method.optimizers()
        others = {one for optimizer in own for group in optimizer.param_groups for one in group["params"]}
        others |= set(tables.parameters()) if method is None else set()  # what plain torchrec's kernel updates

        batches = cycle(self.batches)
        ahead = Ahead([tables], DEVICE) if ON_GPU and isinstance(tables, CompressedEmbeddingBagCollection) else None

        def loss(number: int | None) -> Tensor:
            if number is not None:
                batch = self.batches[number % len(self.batches)]
            else:
                following = next(batches) if ahead is None else ahead.take(batches)
                assert following is not None
                batch = following
            found = F.binary_cross_entropy_with_logits(model(batch.dense, batch.sparse), batch.labels)
            penalty = None if method is None else method.penalty()
            return found if penalty is None else found + penalty

        return Run(loss, [adam(model, others), *own], tables)

    def equal_lookups(self, tables: CompressedEmbeddingBagCollection) -> Run:
        """The same network, and a plain collection that does the lookups of a method and nothing else."""
        method, layout = tables.method, tables.method.layout
        reads = [table for lookups in layout.lookups for table in lookups]
        sizes = [(table.rows, table.dim) for table in layout.tables]
        if layout.alternatives:
            rows = [sum(layout.tables[table].rows for table in lookups) for lookups in layout.lookups]
            sizes = [(min(spec.num_embeddings, most), self.dim) for spec, most in zip(self.specs, rows, strict=True)]
            reads = list(range(len(sizes)))
        features = [[f"{lookup}" for lookup, read in enumerate(reads) if read == table] for table in range(len(sizes))]
        bare = PlainTables(sizes, features)
        order = [int(key) for key in bare.keys]
        ends = torch.tensor([sizes[reads[lookup]][0] for lookup in order], device=DEVICE).unsqueeze(1)
        batches = []
        for batch in self.batches:
            found = lookup_rows(method, batch.sparse.values().view(len(self.specs), -1))[order]
            found = torch.where(found < ends, found, 0)
            batches.append(KeyedJaggedTensor(bare.keys, found[found >= 0], lengths=(found >= 0).long().flatten()))
        model = self.network(self.plain.tables)
        vectors = torch.zeros(self.options.batch, len(self.specs) * self.dim, device=DEVICE, requires_grad=True)

        following = cycle(range(len(batches)))

        def loss(_: int | None) -> Tensor:
            number = next(following)
            vectors.grad, batch = None, self.batches[number]
            looked_up = bare(batches[number]).values()
            logits = model.head(batch.dense, vectors)
            return F.binary_cross_entropy_with_logits(logits, batch.labels) + looked_up.mean()

        return Run(loss, [adam(model, ())], bare)

    def measure(self, title: str) -> dict[str, Any]:
        """Measure one method beside plain torchrec."""
        before = torch.cuda.memory_allocated()
        tables, found = self._tables(title)
        runs = {"plain": self.plain, "method": self.trained(tables)}
        peak = self.peak_bytes(runs["method"], before)
        if title not in (UNSHARDED, "full") and not tables.method.gates:
            runs["equal"] = self.equal_lookups(tables)
        seconds = self._take_turns(runs, title)
        return found | {
            "step_ms": statistics.median(seconds["method"]) * 1e3,
            "plain_ms": statistics.median(seconds["plain"]) * 1e3,
            "over_plain": ratio(seconds["method"], seconds["plain"]),
            "over_equal_lookups": ratio(seconds["method"], seconds.get("equal", seconds["plain"])),
            "rows_per_second": self.options.batch / statistics.median(seconds["method"]),
            "peak_bytes": peak,
            "reserved_bytes": torch.cuda.max_memory_reserved() if ON_GPU else None,
            "split_ms": self.split(runs["method"]),
        }

    def _tables(self, title: str) -> tuple[Any, dict[str, Any]]:
        """Make the tables of a method, and say what is worth noting of them."""
        if title == UNSHARDED:
            configs = [
                EmbeddingBagConfig(spec.num_embeddings, self.dim, spec.name, feature_names=spec.feature_names)
                for spec in self.specs
            ]
            tables = FusedEmbeddingBagCollection(configs, RowWiseAdagrad, ADAGRAD, device=DEVICE)
            return tables, {"kept": 1.0, "lookups": len(configs)}
        name, *words = title.split()
        config: Any = get_table(name).config(**dict(word.split("=") for word in words if "=" in word))
        if name != "full":
            config = config.fit(self.specs, total_full_bytes(self.specs) // 8)
        table = config.pruning_table(self.specs).to(DEVICE) if isinstance(config, PrunedConfig) else config
        if "packed" in words:  # what the method keeps of random rows
            weights = [torch.randn(spec.num_embeddings, self.dim, device=DEVICE) * 0.05 for spec in self.specs]
            widths = torch.randint(1, self.dim + 1, (len(self.specs),)).tolist() if table.searches else None
            layout = table.structure(weights, widths).layout(self.specs)
            table, weights = get_table(name).table(config, self.specs, layout), []
        tables = CompressedEmbeddingBagCollection(self.specs, table, optimizer=OPTIMIZER, device=DEVICE)
        lookups = [1 if tables.method.layout.alternatives else len(of_spec) for of_spec in tables.method.layout.lookups]
        found: dict[str, Any] = {"kept": tables.kept, "lookups": sum(lookups)}
        if "learning" in words and (name != "pep" or self.entries <= MOST_ENTRIES):
            sync()
            clock = time.perf_counter()
            tables.method.after_step(lambda: tables.weights, config.ramp)
            found["solve_seconds"] = time.perf_counter() - clock
        return tables, found

    def _take_turns(self, runs: dict[str, Run], title: str) -> dict[str, list[float]]:
        """Seconds of a step of each run, turn by turn."""
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in tqdm(range(self.options.turns + 1), desc=f"D={self.dim} {title}", mininterval=1):
            for name in list(runs) if turn % 2 else list(runs)[::-1]:
                runs[name].step(None)
                sync()
                clock = time.perf_counter()
                for _ in range(self.options.steps):
                    runs[name].step(None)
                sync()
                if turn:  # the first one touches memory for the first time
                    seconds[name].append((time.perf_counter() - clock) / self.options.steps)
        return seconds

    def split(self, run: Run) -> dict[str, float]:
        """Median milliseconds of the parts of a step."""
        clock, tables = PartClock(), run.tables
        # The method's own part is all of `ask` and `answer`.
        targets: list[tuple[Any, str, str]] = [(tables, "forward", "tables")]
        if isinstance(tables, CompressedEmbeddingBagCollection):
            targets += [(tables.tables, name, "lookup") for name in ("forward", "values", "stored")]
            targets += [(tables.ask, "forward", "remap"), (tables.answer, "forward", "combine")]
        for owner, name, part in targets:
            setattr(owner, name, clock.range(part)(getattr(owner, name)))
        steps = []
        for number in range(self.options.steps + 2):
            run.step(number, clock.range)
            steps.append(clock.read())
        for owner, name, _ in targets:
            delattr(owner, name)
        known = {part: statistics.median(step[part] for step in steps[2:]) for part in (*PARTS, "forward", "tables")}
        known["lookup"] = known["tables"] if len(targets) == 1 else known["lookup"]
        known["rest of tables"] = known["tables"] - known["remap"] - known["lookup"] - known["combine"]
        known["network"] = known["forward"] - known["tables"]
        return {part: known[part] for part in PARTS}


class PartClock:
    """Milliseconds of named ranges of a step: between CUDA events, or on the host where there is no GPU."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def range(self, part: str) -> Iterator[None]:
        start = self._now()
        yield
        self._spans.append((part, start, self._now()))

    def _now(self) -> Any:
        if not ON_GPU:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> Counter[str]:
        """Sums since the last call."""
        sync()
        sums: Counter[str] = Counter()
        for part, start, end in self._spans:
            sums[part] += start.elapsed_time(end) if ON_GPU else (end - start) * 1e3
        self._spans.clear()
        return sums


def sync() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def zipf_counts(size: int) -> Tensor:
    """How often each id is seen in training rows whose ids are drawn as the batches are."""
    ids = torch.arange(1, size + 1, dtype=torch.float64)
    return (TRAINING_ROWS * torch.log1p(1 / ids) / ids[-1].log()).long().clamp(min=1)


def adam(model: nn.Module, others: Collection[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [one for one in model.parameters() if one.requires_grad and one not in others], fused=ON_GPU or None
    )


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def lookup_rows(method: CompressedTable, ids: Tensor) -> Tensor:
    """The rows (L, B) that ids (F, B) read, lookup by lookup; -1 for none."""
    lookups = [range(1)] * len(ids) if method.layout.alternatives else method.layout.lookups
    spec = torch.tensor([index for index, of_spec in enumerate(lookups) for _ in of_spec], device=ids.device)
    if method.layout.alternatives:
        _, rows = method.route(ids.flatten(), spec.repeat_interleave(ids.shape[1]))
        return rows.view(ids.shape)
    return method.remap(ids[spec], torch.arange(len(spec), device=ids.device).unsqueeze(1))


def compare(options: argparse.Namespace, dim: int, found: dict[str, Any]) -> None:
    """Measure all methods of one width; what is there is written after each."""
    bench = Bench(options, dim)
    found["plain"].append({"dim": dim, "peak_bytes": bench.plain_peak, "split_ms": bench.split(bench.plain)})
    print(f"D = {dim}, batch {options.batch}, on {found['device']}")
    for title in options.methods:
        if title == "pep packed" and bench.entries > MOST_ENTRIES:
            continue
        try:
            one = bench.measure(title)
        except Exception as error:  # told in the table, and by the exit status
            traceback.print_exc()
            one = {"failed": " ".join(f"failed: {type(error).__name__}: {error}".replace("|", "/").split())[:300]}
        found["methods"].append({"method": title, "dim": dim, **one})
        words = "{step_ms:8.2f} ms, {over_plain:5.2f}x plain, {over_equal_lookups:5.2f}x its {lookups} lookups"
        print(f"  {title:30} {one.get('failed') or words.format(**one)}", flush=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help=f"tables of at most {SMALL_IDS} ids, few and small steps")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--methods", nargs="+", default=METHODS, help='as in the table, for instance "pep packed"')
    parser.add_argument("--batches", type=int, default=4, help="batches in rotation")
    parser.add_argument("--out", type=Path, default=Path("bench_gpu.json"), help="file of the results")
    parser.add_argument("--batch", type=int, default=65_536, help="rows of a batch")
    parser.add_argument("--turns", type=int, default=9, help="turns that are timed, of --steps steps")
    parser.add_argument("--steps", type=int, default=5)
    if "--small" in sys.argv:
        parser.set_defaults(batch=512, turns=2, steps=1)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} threads",
        "versions": {**versions(), "cuda": torch.version.cuda},
        "options": {name: getattr(options, name) for name in ("small", "batch", "batches", "turns", "steps")},
        "plain": [],
        "methods": [],
    }
    for dim in options.dims:
        compare(options, dim, found)
    sys.exit(any("failed" in one for one in found["methods"]))


if __name__ == "__main__":
    main()
