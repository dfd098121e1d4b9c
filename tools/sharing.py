"""Say who shares rows with whom under each method: the figures behind a method's accuracy at a size.

    .venv/bin/python tools/sharing.py data/sample-2 [--budgets 1/4 1/16 1/64]

For each method and budget, over the cells of the training rows (one cell is one row's value of one feature):

- own vector: share of cells whose id has a combination of rows, and with it a vector, that no other id has.
- foreign: of all updates that the rows of a cell get, the share that comes from other ids, averaged over its rows. The
  frequent ids of a table that keeps them apart have none.
- test cells with an own row: share of test cells whose id was seen in training and reads at least one row alone.
"""

import argparse

import torch
from torch import Tensor
from tqdm import tqdm

from recemb import TableSpec, list_tables
from recemb.datasets import PreparedDataset
from recemb.models import DLRMConfig
from recemb.options import RecembError
from recemb.plan import sized, table_specs
from recemb.tables.base import CompressedTable, TableConfig
from recemb.tables.registry import create_table, get_table

VARIANTS: dict[str, dict[str, object]] = {
    **{method.name: {} for method in list_tables()},
    "compositional quotient": {"large": "quotient"},
    "compositional radix 3": {"scheme": "mixed_radix", "partitions": 3},
    "multiplexed 2 probes": {"probes": 2},
}


def keys_of(method: CompressedTable, spec: TableSpec, index: int) -> Tensor:
    """Which rows each id of a table reads, (V, lookups), rows of different tables having different numbers."""
    layout, ids = method.layout, torch.arange(spec.num_embeddings)
    first = sum(map(len, layout.lookups[:index]))
    begins = torch.tensor([0, *(table.rows for table in layout.tables)]).cumsum(0)
    if layout.alternatives:
        tables, rows = method.route(ids, torch.full_like(ids, index))
        return (begins[tables] + rows).unsqueeze(1)
    columns = [
        begins[table] + method.remap(ids, torch.full_like(ids, first + position))
        for position, table in enumerate(layout.lookups[index])
    ]
    return torch.stack(columns, dim=1)


def figures(config: TableConfig, specs: list[TableSpec], test: list[Tensor]) -> tuple[float, float, float]:
    """Own vectors, foreign updates, own rows in test cells."""
    method = create_table(config, specs)
    keys = [keys_of(method, spec, index) for index, spec in enumerate(specs)]
    counts = [spec.counts.double() for spec in specs if spec.counts is not None]
    rows = sum(table.rows for table in method.layout.tables)
    traffic, readers = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.int64)
    for key, count in zip(keys, counts, strict=True):
        for column in key.T:
            traffic.index_add_(0, column, count)
            readers.index_add_(0, column, torch.ones_like(column))
    cells = own_vector = foreign = test_cells = own_row = 0.0
    for key, count, seen in zip(keys, counts, test, strict=True):
        cells += float(count.sum())
        _, combination, ids = torch.unique(key, dim=0, return_inverse=True, return_counts=True)
        # A combination is one id's alone within its feature; across features no two share all of their rows.
        own_vector += float(count[ids[combination] == 1].sum())
        own = count.unsqueeze(1) / traffic[key].clamp(min=1)
        foreign += float((count.unsqueeze(1) * (1 - own)).sum() / key.shape[1])
        alone = (readers[key] == 1).any(dim=1) & (count > 0)
        alone[0] = False
        own_row += float((seen * alone).sum())
        test_cells += float(seen.sum())
    return own_vector / cells, foreign / cells, own_row / test_cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a prepared data set of single-valued features with a vocabulary")
    parser.add_argument("--budgets", nargs="+", default=["1/4", "1/16", "1/64"])
    options = parser.parse_args()
    dataset = PreparedDataset.open(options.data)
    specs = table_specs(dataset.features, DLRMConfig())
    test = [torch.zeros(spec.num_embeddings, dtype=torch.int64) for spec in specs]
    for batch in dataset.batches("test", 1 << 16):
        for one, ids in zip(test, batch.sparse.values().view(len(specs), -1), strict=True):
            one.index_add_(0, ids, torch.ones_like(ids))
    print("| method | budget | own vector | foreign updates | test cells with an own row |\n|---|---|--:|--:|--:|")
    for title in tqdm(VARIANTS):
        for budget in options.budgets:
            try:
                config = sized(get_table(title.split()[0]).config(**VARIANTS[title]), budget, specs)
            except RecembError as error:
                tqdm.write(f"| {title} | {budget} | {str(error).split(':')[-1].strip()} | | |")
                continue
            numbers = " | ".join(f"{share:.1%}" for share in figures(config, specs, test))
            tqdm.write(f"| {title} | {budget} | {numbers} |")


if __name__ == "__main__":
    main()
