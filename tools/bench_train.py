"""Training-step time against the usual ways to train embedding tables, as ratios of interleaved runs in one process.

    .venv/bin/python tools/bench_train.py [--rows 1000000] [--steps 15]

One step is lookup, backward and update of 26 tables for one batch, without a dense network, which would be the same
for all. The peers: torch's `nn.EmbeddingBag(sparse=True)` with Adagrad, one bag a feature; and one concatenated
`nn.Embedding` with dense-gradient Adam, as common CTR libraries train theirs. The three take turns; each takes two
steps a turn and the second is timed, so that nobody pays for the caches another one swept. Absolute times of a shared
machine mean little, ratios within a run mean more. FBGEMM's CPU kernels use one core and torch's own all, so both
counts are shown. The second figure is the share of a training step, DLRM included, that feeding a
batch from a prepared data set takes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from tqdm import tqdm

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, TableSpec
from recemb.datasets import SyntheticConfig, prepare
from recemb.models import DLRMConfig
from recemb.tables.full import FullConfig

FEATURES, WIDTH = 26, 16
KEYS = [f"C{index + 1}" for index in range(FEATURES)]
Step = Callable[[torch.Tensor], None]


def recemb_full(rows: int, batch: int) -> Step:
    specs = [TableSpec(name=key, num_embeddings=rows, embedding_dim=WIDTH, max_length=1) for key in KEYS]
    tables = CompressedEmbeddingBagCollection(specs, FullConfig(), optimizer=FusedOptimizer(lr=0.01))
    lengths = torch.ones(FEATURES * batch, dtype=torch.int64)

    def step(ids: torch.Tensor) -> None:
        tables(KeyedJaggedTensor(keys=KEYS, values=ids.view(-1), lengths=lengths)).values().mean().backward()

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
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in tqdm(range(steps + 1), desc=f"{threads} threads"):
            first, second = (torch.randint(0, rows, (FEATURES, batch), generator=random) for _ in range(2))
            for name, step in runs.items():
                step(first)
                clock = time.perf_counter()
                step(second)
                if round_ >= 1:  # the first round touches memory for the first time
                    seconds[name].append(time.perf_counter() - clock)
        print(f"{FEATURES} tables x {rows:,} rows x {WIDTH}, batch {batch:,}, {threads} threads")
        for name, times in seconds.items():
            ratios = [other / own for other, own in zip(times, seconds["recemb full"], strict=True)]
            print(f"  {name:24} median {statistics.median(times) * 1e3:8.1f} ms   {statistics.median(ratios):6.2f}x")


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
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each table (the peers need 11 GB at 1e6)")
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=9)
    options = parser.parse_args()
    compare(options.rows, options.batch, options.steps)
    feeding(options.batch)


if __name__ == "__main__":
    main()
