"""Training-step time against the usual ways to train embedding tables, as ratios of interleaved runs in one process.

    .venv/bin/python tools/bench_train.py [peers] [methods] [feeding] [--rows 1000000] [--steps 9]

One step is lookup, backward and update of 26 tables for one batch, without a dense network, which would be the same
for all. Who is compared takes turns, two steps a turn of which the second is timed, so that nobody pays for the caches
another one swept. Absolute times of a shared machine mean little, ratios within a run mean more. FBGEMM's CPU kernels
use one core and torch's own all, so both counts are shown.

- peers: the uncompressed table against torch's `nn.EmbeddingBag(sparse=True)` with Adagrad, one bag a feature, and one
  concatenated `nn.Embedding` with dense-gradient Adam, as common CTR libraries train theirs.
- methods: each compressed table against an uncompressed collection of the same physical tables that is handed the same
  row numbers: what remap and combine cost on top of the lookups. Ids follow a Zipf law.
- feeding: the share of a training step, DLRM included, that feeding a batch from a prepared data set takes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from tqdm import tqdm

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, TableSpec, get_table
from recemb.datasets import SyntheticConfig, prepare
from recemb.models import DLRMConfig
from recemb.tables.base import total_full_bytes
from recemb.tables.full import FullConfig

FEATURES, WIDTH = 26, 16
KEYS = [f"C{index + 1}" for index in range(FEATURES)]
Step = Callable[[torch.Tensor], None]
METHODS: dict[str, dict[str, Any]] = {
    "hashing": {},
    "low_rank": {},
    "mixed_dimension": {},
    "mixed_dimension blocks=feature": {"blocks": "feature"},
    "compositional": {},
    "compositional combine=add": {"combine": "add"},
    "compositional combine=concat": {"combine": "concat"},
    "compositional chinese_remainder k=3": {"scheme": "chinese_remainder", "partitions": 3},
    "multiplexed": {},
    "multiplexed probes=2": {"probes": 2},
}


def recemb_full(rows: int, batch: int) -> Step:
    specs = [TableSpec(name=key, num_embeddings=rows, embedding_dim=WIDTH, max_length=1) for key in KEYS]
    tables = CompressedEmbeddingBagCollection(specs, FullConfig(), optimizer=FusedOptimizer(lr=0.01))

    def step(ids: torch.Tensor) -> None:
        tables(one_each(KEYS, ids)).values().mean().backward()

    return step


def sparse_bags(rows: int, batch: int) -> Step:
    bags = nn.ModuleList(nn.EmbeddingBag(rows, WIDTH, mode="sum", sparse=True) for _ in KEYS)
    optimizer = torch.optim.Adagrad(bags.parameters(), lr=0.01)
    offsets = torch.arange(batch)

    def step(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.cat([bag(one, offsets) for bag, one in zip(bags, ids, strict=True)], dim=1).mean().backward()
        optimizer.step()

    return step


def concatenated_adam(rows: int, batch: int) -> Step:
    table = nn.Embedding(rows * FEATURES, WIDTH)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.001)
    first = torch.arange(FEATURES) * rows

    def step(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        table((ids.T + first).contiguous()).flatten(1).mean().backward()
        optimizer.step()

    return step


def compare(rows: int, batch: int, steps: int) -> None:
    """Print the step of each peer over ours."""
    makers = {
        "recemb full": recemb_full,
        "sparse bags + Adagrad": sparse_bags,
        "concatenated + Adam": concatenated_adam,
    }
    runs = {name: make(rows, batch) for name, make in makers.items()}
    random = torch.Generator().manual_seed(0)
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)

        def two_batches() -> list[dict[str, torch.Tensor]]:
            drawn = [torch.randint(0, rows, (FEATURES, batch), generator=random) for _ in range(2)]
            return [dict.fromkeys(runs, ids) for ids in drawn]

        seconds = interleave(runs, two_batches, steps, f"{threads} threads")
        print(f"{FEATURES} tables x {rows:,} rows x {WIDTH}, batch {batch:,}, {threads} threads")
        for name, times in seconds.items():
            ratios = [other / own for other, own in zip(times, seconds["recemb full"], strict=True)]
            print(f"  {name:24} median {statistics.median(times) * 1e3:8.1f} ms   {statistics.median(ratios):6.2f}x")


def interleave(
    runs: dict[str, Callable[[Any], None]], two_batches: Callable[[], list[dict[str, Any]]], steps: int, title: str
) -> dict[str, list[float]]:
    """Let the runs take turns and return the seconds of each one's second step a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in tqdm(range(steps + 1), desc=title):
        first, second = two_batches()
        for name, step in runs.items():
            step(first[name])
            clock = time.perf_counter()
            step(second[name])
            if round_ >= 1:  # the first round touches memory for the first time
                seconds[name].append(time.perf_counter() - clock)
    return seconds


def methods(rows: int, batch: int, steps: int) -> None:
    """Print the step of each method over that of its own lookups."""
    counts = (rows * 10 // torch.arange(1, rows + 1)).clamp(min=1)
    specs = [TableSpec(name=key, num_embeddings=rows, embedding_dim=WIDTH, max_length=1, counts=counts) for key in KEYS]
    random = torch.Generator().manual_seed(0)
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        print(f"{FEATURES} tables x {rows:,} rows x {WIDTH} kept 1/8, batch {batch:,}, {threads} threads")
        for title, options in METHODS.items():
            config = get_table(title.split()[0]).config(**options)
            config = config.fit(specs, total_full_bytes(specs) // 8)
            method = CompressedEmbeddingBagCollection(specs, config, optimizer=FusedOptimizer())
            plain = Lookups(method)

            def two_batches(method=method, plain=plain) -> list[dict[str, Any]]:  # type: ignore[no-untyped-def]
                batches = []
                for _ in range(2):
                    ids = (rows ** torch.rand(FEATURES, batch, generator=random)).long().clamp(max=rows - 1)
                    batches.append({"method": one_each(KEYS, ids), "lookups": plain.batch(method, ids)})
                return batches

            runs = {"method": step_of(method), "lookups": step_of(plain.tables)}
            seconds = interleave(runs, two_batches, steps, title)
            ratio = statistics.median(m / p for m, p in zip(*seconds.values(), strict=True))
            own, bare = (statistics.median(times) * 1e3 for times in seconds.values())
            print(f"  {title:36} {own:7.1f} ms, its {plain.count:3} lookups alone {bare:7.1f} ms   {ratio:5.2f}x")


class Lookups:
    """An uncompressed collection of a method's physical tables, and the batches that make it do the same lookups.

    Where ids read one of several blocks, it has full rows for all that have rows at all: as many lookups, one an id.
    """

    def __init__(self, method: CompressedEmbeddingBagCollection) -> None:
        layout = method.method.layout
        if layout.alternatives:
            sizes = [(sum(layout.tables[table].rows for table in tables), WIDTH) for tables in layout.lookups]
            reads = list(range(len(sizes)))
        else:
            sizes = [(table.rows, table.dim) for table in layout.tables]
            reads = [table for tables in layout.lookups for table in tables]
        specs = [
            TableSpec(name=f"t{index}", num_embeddings=rows, embedding_dim=dim, max_length=1,
                      feature_names=[f"f{lookup}" for lookup, table in enumerate(reads) if table == index])
            for index, (rows, dim) in enumerate(sizes)
        ]  # fmt: skip
        self.count = len(reads)
        self.tables = CompressedEmbeddingBagCollection(specs, FullConfig(), optimizer=FusedOptimizer())
        self.keys = [name for spec in specs for name in spec.feature_names]
        self._most = torch.tensor([spec.num_embeddings - 1 for spec in specs]).unsqueeze(1)

    def batch(self, method: CompressedEmbeddingBagCollection, ids: torch.Tensor) -> KeyedJaggedTensor:
        """The row numbers that the method's remap gives, in the order that costs this collection least."""
        if method.method.layout.alternatives:
            return one_each(self.keys, torch.where(ids > self._most, 0, ids))
        of_spec = [index for index, tables in enumerate(method.method.layout.lookups) for _ in tables]
        rows = method.method.remap(ids[of_spec], torch.arange(len(of_spec)).unsqueeze(1))
        return one_each(self.keys, rows[[int(name[1:]) for name in self.keys]])


def one_each(keys: list[str], ids: torch.Tensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=keys, values=ids.flatten(), lengths=torch.ones(ids.numel(), dtype=torch.int64))


def step_of(tables: CompressedEmbeddingBagCollection) -> Callable[[KeyedJaggedTensor], None]:
    weights = list(tables.method.parameters())

    def step(batch: KeyedJaggedTensor) -> None:
        for weight in weights:
            weight.grad = None
        tables(batch).values().mean().backward()

    return step


def feeding(batch: int) -> None:
    """Print the share of a training step that making the batch takes, feeding and training by turns."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare(SyntheticConfig(rows=400_000, path=str(Path(folder) / "rows")))
        specs = [
            TableSpec(name=feature.name, num_embeddings=feature.num_embeddings, embedding_dim=WIDTH, max_length=1)
            for feature in dataset.features
        ]
        tables = CompressedEmbeddingBagCollection(specs, FullConfig(), optimizer=FusedOptimizer())
        batches = list(dataset.batches("train", batch, drop_last=True))
        model = DLRMConfig().build(tables, batches[0].dense)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        feed, train = [], []
        for round_ in range(4):
            clock = time.perf_counter()
            count = sum(1 for _ in dataset.batches("train", batch, shuffle=True, epoch=round_, drop_last=True))
            feed.append((time.perf_counter() - clock) / count)
            clock = time.perf_counter()
            for one in batches:
                logits = model(one.dense, one.sparse)
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(logits, one.labels).backward()
                optimizer.step()
            train.append((time.perf_counter() - clock) / len(batches))
    share = statistics.median(fed / trained for fed, trained in zip(feed, train, strict=True))
    print(f"feeding a batch of {batch:,} takes {share:.1%} of a training step (a thread does it meanwhile)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["peers", "methods", "feeding"], help="what to measure (all of it)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each table (the peers need 11 GB at 1e6)")
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=9)
    options = parser.parse_args()
    if "peers" in options.what:
        compare(options.rows, options.batch, options.steps)
    if "methods" in options.what:
        methods(options.rows, options.batch, options.steps)
    if "feeding" in options.what:
        feeding(options.batch)


if __name__ == "__main__":
    main()
