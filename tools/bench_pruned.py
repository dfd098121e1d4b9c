"""Time of a training step while it is being learned what to prune, and of the packed table, over a plain step.

    .venv/bin/python tools/bench_pruned.py [--rows 200000] [--batch 16384] [--steps 9]

Whole steps of DLRM, its network and optimizers included: 26 tables, ids by a Zipf law, the pruned tables at 1/8. The
steps take turns in one process (see bench_train.py); the ratios are to the step of full tables. `solve` is what setting
the level anew takes, which happens 16 times in a pass over the training rows, in steps of the same size.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_train import FEATURES, KEYS, WIDTH, interleave, one_each

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, TableSpec, get_table
from recemb.models import DLRMConfig
from recemb.tables.base import CompressedTable, TableConfig, total_full_bytes
from recemb.tables.full import FullConfig
from recemb.tables.pruned import PackedTable, PrunedConfig

METHODS: dict[str, dict[str, Any]] = {
    "optembed": {},
    "optembed per=row": {"per": "row"},
    "pep": {},
    "magnitude": {},
    "magnitude unit=entry": {"unit": "entry"},
}


def trained(specs: list[TableSpec], table: TableConfig | CompressedTable) -> Callable[[Any], None]:
    """A model over these tables, and its training step."""
    tables = CompressedEmbeddingBagCollection(specs, table, optimizer=FusedOptimizer())
    model = DLRMConfig().build(tables, torch.randn(1000, 13))
    own = tables.method.optimizers()
    of_method = {id(one) for optimizer in own for group in optimizer.param_groups for one in group["params"]}
    dense = [one for one in model.parameters() if one.requires_grad and id(one) not in of_method]
    optimizers = [torch.optim.AdamW(dense), *own]

    def step(batch: Any) -> None:
        loss = F.binary_cross_entropy_with_logits(model(batch[0], batch[1]), batch[2])
        if (penalty := tables.method.penalty()) is not None:
            loss = loss + penalty
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="rows of each table")
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=9)
    options = parser.parse_args()
    counts = (options.rows * 10 // torch.arange(1, options.rows + 1)).clamp(min=1)
    specs = [
        TableSpec(name=key, num_embeddings=options.rows, embedding_dim=WIDTH, max_length=1, counts=counts)
        for key in KEYS
    ]
    budget = total_full_bytes(specs) // 8
    random = torch.Generator().manual_seed(0)
    print(f"DLRM over {FEATURES} tables x {options.rows:,} rows x {WIDTH}, batch {options.batch:,}")
    for title, chosen in METHODS.items():
        config = get_table(title.split()[0]).config(**chosen).fit(specs, budget)
        assert isinstance(config, PrunedConfig)
        pruning = config.pruning_table(specs)
        weights = [torch.randn(options.rows, WIDTH) * 0.05 for _ in KEYS]
        clock = time.perf_counter()
        pruning.after_step(weights.copy, config.ramp)
        solve = time.perf_counter() - clock
        widths = torch.randint(1, WIDTH + 1, (FEATURES,), generator=random).tolist() if pruning.searches else None
        method = get_table(title.split()[0]).table
        assert issubclass(method, PackedTable)
        packed = method(config, specs, pruning.structure(weights, widths))

        def two_batches() -> list[dict[str, Any]]:
            batches = []
            for _ in range(2):
                ids = (options.rows ** torch.rand(FEATURES, options.batch, generator=random)).long()
                sparse = one_each(KEYS, ids.clamp(max=options.rows - 1))
                batch = (torch.randn(options.batch, 13), sparse, torch.ones(options.batch))
                batches.append(dict.fromkeys(("plain", "learning", "packed"), batch))
            return batches

        runs = {
            "plain": trained(specs, FullConfig()),
            "learning": trained(specs, pruning),
            "packed": trained(specs, packed),
        }
        seconds = interleave(runs, two_batches, options.steps, title)
        ratios = {
            name: statistics.median(one / plain for one, plain in zip(seconds[name], seconds["plain"], strict=True))
            for name in ("learning", "packed")
        }
        plain = statistics.median(seconds["plain"])
        print(
            f"  {title:22} learning {ratios['learning']:5.2f}x, packed {ratios['packed']:5.2f}x a plain step of "
            f"{plain * 1e3:.0f} ms; a solve {solve / plain:.1f} steps"
        )


if __name__ == "__main__":
    main()
