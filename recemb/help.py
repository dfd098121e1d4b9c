"""The texts of `--help` and `recemb tables`, made from the config classes and the registry."""

import argparse
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

from recemb.budget import format_bytes
from recemb.config import GROUPS, PlanConfig, PrepareConfig, RunConfig
from recemb.models import ModelConfig
from recemb.options import Option, options_of
from recemb.record import change_text, metric_text
from recemb.tables.precision import PRECISIONS
from recemb.tables.registry import Method, approximating_methods, list_tables
from recemb.training.trainer_config import TrainerConfig
from recemb.training.tune_config import TuneConfig

OVERVIEW = """recemb: embedding-table compression for recommenders

  recemb prepare dataset=criteo dataset.source=train.txt dataset.path=data/criteo
                                    raw text to a memory-mapped data set
  recemb inspect data/criteo        say which features hold the bytes, what is rare, unseen, drifting or telling
  recemb advise data/criteo --budget 64MiB --trials 4
                                    choose method, sizes and precision of every feature under one budget
  recemb plan table=hashing budget=1/16
                                    show what a method would hold; allocates nothing
  recemb train table=hashing budget=1/16
                                    train one model; -m a,b sweeps
  recemb compress RUN --table low_rank --budget 1/8 --precision int8 --out SMALLER
                                    make a trained run's tables smaller, without training it anew
  recemb export RUN --out FOLDER    carry model and tables away: safetensors, torch.export, ONNX
  recemb report runs                gather runs into a table and a page
  recemb tables [NAME]              list the methods, or explain one

`recemb VERB --help` says more about each.
"""

_TRAIN_HEAD = """Train one model, or a sweep of them with -m.

  recemb train dataset=criteo dataset.path=data/criteo table=hashing budget=1/16 seed=0 hydra.run.dir=runs/x
  recemb train -m table=frequency,hashing budget=1/4,1/16 seed=0,1,2 hydra.sweep.dir=runs/sweep
  recemb train plan=plan.json
  recemb train -m experiment=tradeoff dataset=criteo dataset.path=data/criteo

plan=FILE trains a plan of `recemb advise`, on its data set and backbone unless others are given.
experiment=tradeoff sweeps all methods at four budgets; given again, it goes on where it was stopped. A sweep makes
hydra.launcher.jobs runs at a time (1; null: one for each core), in folders of hydra.sweep.dir.
experiment=tuned_tradeoff does the same and chooses the learning rates of every run by eight trials on validation rows.

Every option is given as name=value. --cfg job prints the composed configuration, --hydra-help what Hydra adds.
"""

_PREPARE_HEAD = """Turn raw rows into the memory-mapped form that training reads.

  recemb prepare dataset=criteo dataset.source=train.txt dataset.path=data/criteo dataset.protocol=last_day
  recemb prepare dataset=synthetic dataset.rows=1000000 dataset.path=data/synthetic
"""

_PLAN_HEAD = """Show which tables a method would hold for a data set and a budget; allocates none of them.

  recemb plan table=compositional budget=1/16
  recemb plan table=hashing budget=64MiB dataset=criteo dataset.path=data/criteo
  recemb plan table=multiplexed budget=1/16 model.embedding_dim=32 --json
  recemb plan table=full processes=8 memory=80GiB trainer.device=cuda

dataset=criteo_kaggle_shape needs no data: it knows the sizes of the Criteo Kaggle tables. Any other data set must be
prepared. --json prints one JSON document for programs, whose keys `recemb.plan.Plan` describes.
"""


def train_help() -> str:
    """The page of `recemb train --help`."""
    parts = [_TRAIN_HEAD, "Methods (`recemb tables NAME` explains one):", _methods()]
    parts += ["Options of a run:", _columns(_run_options())]
    parts += [*_choices("dataset", "synthetic"), *_choices("table", "full"), *_choices("model", "dlrm")]
    parts += ["Training:", _columns(_rows(options_of(TrainerConfig), "trainer."))]
    parts += ["Tuning:", _columns(_rows(options_of(TuneConfig), "tune."))]
    return "\n".join(parts)


def plan_help() -> str:
    """The page of `recemb plan --help`."""
    groups = [
        ("dataset=criteo_kaggle_shape", f"data set: {', '.join(GROUPS['dataset'])}"),
        ("table=full", "table method, see above"),
        ("model=dlrm", f"backbone: {', '.join(GROUPS['model'])}; a plan depends on none but the options below"),
    ]
    own = [row for row in _rows(options_of(PlanConfig), "") if row[0].split("=")[0] not in GROUPS]
    path = [("dataset.path=...", "folder of the prepared data set")]
    parts = [_PLAN_HEAD, "Methods (`recemb tables NAME` explains one):", _methods()]
    parts += ["Options:", _columns([*groups, *own, *path, *_rows(options_of(ModelConfig), "model."), *_sharing_rows()])]
    return "\n".join([*parts, *_choices("table", "full")])


def _sharing_rows() -> list[tuple[str, str]]:
    """Options of training that a plan for several processes depends on."""
    names = ("sharding", "table_optimizer", "batch_size", "device", "cache_share")
    return [row for row in _rows(options_of(TrainerConfig), "trainer.") if row[0].split(".")[1].split("=")[0] in names]


def prepare_help() -> str:
    """The page of `recemb prepare --help`."""
    rows = [row for row in _rows(options_of(PrepareConfig), "") if not row[0].startswith("dataset=")]
    parts = [_PREPARE_HEAD, "Options:", _columns(rows)]
    for name, node in GROUPS["dataset"].items():
        parts += [f"With dataset={name}:", _columns(_rows(options_of(node), "dataset."))]
    return "\n".join(parts)


def compress_parser() -> argparse.ArgumentParser:
    """The arguments of `recemb compress`."""
    from recemb.packing.compress import Finetuning

    parser = argparse.ArgumentParser(
        prog="recemb compress",
        usage="recemb compress RUN --out DIR [--table TABLE] [--budget BUDGET] [--precision PRECISION] "
        "[--finetune STEPS] [table.OPTION=VALUE ...]",
        description="Make the tables of a trained run smaller without training it anew. The result is a run of its "
        "own, compared with the first one on the same test rows.",
    )
    defaults = {option.name: option for option in options_of(Finetuning)}
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a completed run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new run")
    parser.add_argument(
        "--table",
        help=f"what shall hold the tables: {', '.join(approximating_methods())}; left out, they stay as they are",
    )
    parser.add_argument(
        "--budget", help="serving bytes of the tables: a share of the full ones (1/16) or a size (64MiB)"
    )
    parser.add_argument("--precision", help=f"how rows are held: {', '.join(PRECISIONS)} (default: as in RUN)")
    parser.add_argument(
        "--finetune", type=int, default=defaults["steps"].default, metavar="STEPS",
        help=f"{defaults['steps'].help} (default: {defaults['steps'].default})",
    )  # fmt: skip
    parser.add_argument(
        "--lr-factor", type=float, default=defaults["lr_factor"].default, metavar="FACTOR",
        help=f"{defaults['lr_factor'].help} (default: {defaults['lr_factor'].default})",
    )  # fmt: skip
    _add_common(parser)
    return parser


def export_parser() -> argparse.ArgumentParser:
    """The arguments of `recemb export`."""
    from recemb.packing.export import FORMS

    parser = argparse.ArgumentParser(
        prog="recemb export",
        description="Write a trained run's model and its tables alone, with the vocabulary and how to load each, into "
        "one folder; every form is compared with the run's own model on real rows before the folder appears.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a completed run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--to", default=",".join(FORMS), metavar="FORMS", help=f"some of {','.join(FORMS)} (default: all of them)"
    )
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="where the run's prepared data lies, if it was moved")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier command left in --out")


def compressed(record: dict[str, Any], folder: Path) -> str:
    """What `recemb compress` says at its end."""
    before, change = record["compressed"], record["compressed"]["change"]
    rows: list[tuple[str, ...]] = [
        ("", "before", "after", "change, and 95 % interval"),
        (
            "table bytes",
            format_bytes(before["bytes"]["tables_serving"]),
            format_bytes(record["bytes"]["tables_serving"]),
            f"{before['bytes']['tables_serving'] / record['bytes']['tables_serving']:.3g}x smaller",
        ),
    ]
    for name in ("auc", "logloss"):
        values = (metric_text(run["metrics"]["test"][name]) for run in (before, record))
        rows.append((f"test {name}", *values, change_text(change[name])))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    tuned = record["training"].get("steps")
    steps = f", {tuned} steps of fine-tuning, the best after {record['training']['best_step']}" if tuned else ""
    return "\n".join([*lines, f"{record['method']}, kept {record['kept']:.4g}{steps}: {folder}"])


def exported(result: Any) -> str:
    """What `recemb export` says at its end."""
    rows = [(name, format_bytes(size)) for name, size in result.files.items()]
    largest = max(result.checked.values())
    return (
        f"{_columns(rows)}tables {format_bytes(result.tables_bytes)}; logits as the run's on {result.rows:,} rows, "
        f"largest difference {largest:.1e}: {result.folder}"
    )


def tables_list() -> str:
    """The list of methods."""
    rows = _columns([(method.name, method.summary) for method in list_tables()])
    return f"Table methods; `recemb tables NAME` explains one:\n{rows}"


def tables_page(method: Method) -> str:
    """One method: what it does, where it is from, its options."""
    about = inspect.getdoc(sys.modules[method.table.__module__]) or method.summary
    rows = _rows(options_of(method.config), "table.")
    options = _columns(rows) if rows else "  none"
    return (
        f"table={method.name}: {method.summary}\n\n{about}\n\nOptions:\n{options}\n"
        f"Use: recemb train table={method.name} budget=1/16\n"
    )


def _methods() -> str:
    return _columns([(f"table={method.name}", method.summary) for method in list_tables()])


def _choices(group: str, default: str) -> list[str]:
    """Give a heading and the options of everything that a group offers."""
    parts = []
    for name, node in GROUPS[group].items():
        rows = _rows(options_of(node), f"{group}.")
        mark = " (the default)" if name == default else ""
        parts += [f"With {group}={name}{mark}:", _columns(rows) if rows else "  no options"]
    return parts


def _run_options() -> list[tuple[str, str]]:
    groups = [
        ("dataset=synthetic", f"data set: {', '.join(GROUPS['dataset'])}"),
        ("table=full", "table method, see above"),
        ("model=dlrm", f"backbone: {', '.join(GROUPS['model'])}"),
    ]
    return groups + [
        row
        for row in _rows(options_of(RunConfig), "")
        if row[0].split("=")[0] not in ("dataset", "table", "model", "trainer", "tune")
    ]


def _rows(options: Any, prefix: str) -> list[tuple[str, str]]:
    return [(f"{prefix}{option.name}={_shown(option)}", option.help) for option in options]


def _shown(option: Option) -> str:
    if option.default is None:
        return "null"
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return str(option.default).replace("'", "")


def _columns(rows: list[tuple[str, str]]) -> str:
    width = min(max((len(left) for left, _ in rows), default=0), 40)
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, 100 - width) or [""]
        first = f"  {left:<{width}}  {wrapped[0]}"
        lines += [first.rstrip(), *(f"  {'':<{width}}  {more}" for more in wrapped[1:])]
    return "\n".join(lines) + "\n"
