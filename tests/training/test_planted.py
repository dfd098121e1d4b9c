"""The paper's claim: OptEmbed finds the values that say nothing and the features that need few floats."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from planted_samples import CONTEXT, NARROW, VALUES, WIDE, WIDTH, Planted, prepare_planted

from recemb.config import RunConfig
from recemb.models import DLRMConfig
from recemb.plan import table_specs
from recemb.tables.optembed import OptEmbedConfig
from recemb.tables.structure import Structure
from recemb.training import TrainerConfig, train

# The supernet learns what only two wide vectors together say late, since widths are drawn at random: prune after that.
TABLE = OptEmbedConfig(ramp=10)
TRAINER = TrainerConfig(
    epochs=15, batch_size=256, table_lr=0.1, patience=50, evaluations_per_epoch=1, device="cpu", eval_batch_size=2048
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return prepare_planted(tmp_path_factory.mktemp("planted") / "rows")


def bytes_of_what_was_planted(planted: Planted, model: DLRMConfig) -> int:
    """Serving bytes of the useful values in the widths they need, wide ones with room for one float more."""
    needed = {**dict.fromkeys(NARROW, 1), **dict.fromkeys((*WIDE, CONTEXT), WIDTH + 1)}
    specs = table_specs(planted.dataset.features, model)
    kept = [(~planted.useless[spec.name]).nonzero().flatten() for spec in specs]
    return Structure(kept=kept, widths=[needed[spec.name] for spec in specs]).layout(specs).serving_bytes


@pytest.mark.wide
def test_optembed_finds_useless_values_and_narrow_features(planted: Planted, tmp_path: Path):
    model = DLRMConfig()
    config = RunConfig(
        dataset=planted.config, table=TABLE, model=model, trainer=TRAINER,
        budget=bytes_of_what_was_planted(planted, model),
    )  # fmt: skip
    record = train(config, tmp_path / "run")
    frame = pd.read_parquet(tmp_path / "run" / "kept.parquet")
    pruned, useless = [], []
    for name in (*NARROW, *WIDE):
        dropped = torch.ones(VALUES + 1, dtype=torch.bool)
        dropped[frame.loc[frame["table"] == name, "id"].to_numpy(copy=True)] = False
        pruned.append(dropped)
        useless.append(planted.useless[name])
    found, wanted = torch.cat(pruned), torch.cat(useless)
    hits = int((found & wanted).sum())
    assert hits / int(wanted.sum()) >= 0.9  # recall
    assert hits / int(found.sum()) >= 0.9  # precision
    widths = {name: table["width"] for name, table in record["structure"]["per_table"].items()}
    # Once all useful rows have room, a float more does no harm: single neighbours may change places, groups may not.
    pairs = [
        (widths[narrow] < widths[wide]) + (widths[narrow] == widths[wide]) / 2 for narrow in NARROW for wide in WIDE
    ]
    assert sum(pairs) / len(pairs) >= 0.9
    assert sum(widths[name] for name in NARROW) <= 0.6 * sum(widths[name] for name in WIDE)
    ceiling = planted.dataset.meta["ceiling"]["test"]["auc"]
    assert record["metrics"]["test"]["auc"] > ceiling - 0.03
