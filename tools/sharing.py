"""Say who shares rows with whom under each method: the figures behind a method's accuracy at a size.

    .venv/bin/python tools/sharing.py data/sample-2 [--budgets 1/4 1/16 1/64]

One line for each method, some of its variants, and each budget, of what `recemb inspect DATA table=... budget=...` says
about one of them (`recemb.inspection.sharing`), over the cells of all features:

- own vector: share of training cells whose id has a combination of rows, and with it a vector, that no other id has.
- foreign updates: of all updates that the rows of a training cell get, the share that comes from other ids.
- test cells with an own row: share of test cells whose id was seen in training and reads at least one row alone.
"""

import argparse

from tqdm import tqdm

from recemb import list_tables
from recemb.datasets import PreparedDataset
from recemb.inspection.sharing import share_rows
from recemb.inspection.traffic import Traffic
from recemb.models import DLRMConfig
from recemb.options import RecembError
from recemb.plan import sized, table_specs
from recemb.tables.registry import get_table

VARIANTS: dict[str, dict[str, object]] = {
    **{method.name: {} for method in list_tables()},
    "compositional quotient": {"large": "quotient"},
    "compositional radix 3": {"scheme": "mixed_radix", "partitions": 3},
    "multiplexed 2 probes": {"probes": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a prepared data set")
    parser.add_argument("--budgets", nargs="+", default=["1/4", "1/16", "1/64"])
    options = parser.parse_args()
    dataset = PreparedDataset.open(options.data)
    specs = table_specs(dataset.features, DLRMConfig())
    traffic = Traffic(dataset)
    print("| method | budget | own vector | foreign updates | test cells with an own row |\n|---|---|--:|--:|--:|")
    for title in tqdm(VARIANTS):
        for budget in options.budgets:
            try:
                config = sized(get_table(title.split()[0]).config(**VARIANTS[title]), budget, specs)
                total = share_rows(config, specs, traffic).total
            except RecembError as error:
                tqdm.write(f"| {title} | {budget} | {str(error).split(':')[-1].strip()} | | |")
                continue
            shares = (total.own_vector["train"], total.foreign_updates, total.own_row["test"])
            numbers = " | ".join("–" if share is None else f"{share:.1%}" for share in shares)
            tqdm.write(f"| {title} | {budget} | {numbers} |")


if __name__ == "__main__":
    main()
