"""The command line, `recemb VERB ...`: the only file that prints."""

import argparse
import datetime
import json
import logging
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recemb import help as pages
from recemb.budget import TooSmallBudgetError
from recemb.config import PrepareConfig, RunConfig, register_configs, to_plan_config, to_run_config
from recemb.mistakes import in_one_sentence
from recemb.options import RecembError
from recemb.overrides import asked_of_data, flags_first, refuse_additions, resumed, with_plan
from recemb.plan import table_specs
from recemb.plan_file import read_plan
from recemb.record import metric_text
from recemb.sweep import Outcome, SideBySide, folder_name, register_launcher
from recemb.synonyms import verb_meant
from recemb.tables.auto import AutoConfig
from recemb.tables.registry import config_from_dict, get_table
from recemb.training import processes
from recemb.training.sharding import plan_lines, planned

_OK, _FAILED, _INTERRUPTED = 0, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit status: 0, 2 after an error said in one sentence, 130 when interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(pages.OVERVIEW)
        return _OK
    if verb not in _VERBS:
        close = verb_meant(verb) or next(iter(get_close_matches(verb, _VERBS, n=1)), None)
        hint = f" Did you mean {close}?" if close else ""
        return _say(f"there is no verb {verb!r}.{hint} Verbs: {', '.join(_VERBS)}.")
    # A service manager's stop is a person's Ctrl-C: both leave a readable record.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a note to those who write torchrec
    try:
        if verb in ("prepare", "plan", "train"):
            refuse_additions(rest)
        status = _VERBS[verb](rest)
        sys.stdout.flush()  # a reader that has gone is noticed here and not at exit
        return status
    except KeyboardInterrupt:
        return _say("interrupted.", _INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OK
    except (RecembError, HydraException, OmegaConfBaseException, OSError) as error:
        return _say(in_one_sentence(error, verb))


def _train(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(pages.train_help())
        return _OK
    processes.join()
    moment = processes.on_first(datetime.datetime.now)
    # Processes that start together must not name their folder by clocks of their own.
    OmegaConf.register_new_resolver("recemb_now", moment.strftime, replace=True)
    status = _with_hydra("train", with_plan(resumed(arguments)), _train_job)
    if status == _OK:
        processes.leave()
    return status


def _train_job(composed: Any) -> Outcome:
    from recemb.training import train
    from recemb.training.record import read_status

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    overrides = list(job.overrides.task)
    if not processes.is_first():
        logging.getLogger("recemb").setLevel(logging.ERROR)  # the first process says it all
    config = to_run_config(composed)
    fresh = read_status(folder) != "completed"
    # A command that repeats the run does not go on with it.
    command = shlex.join(["recemb", "train", *(one for one in overrides if not one.startswith("resume="))])
    planned = None if config.plan is None else read_plan(config.plan)
    record = train(config, folder, command, asked_of_data(overrides), planned)
    if not processes.is_first():
        return Outcome(record=record, fresh=fresh)
    test = record["metrics"]["test"]
    print(
        f"{record['method']}: test AUC {metric_text(test['auc'])}, logloss {metric_text(test['logloss'])}, "
        f"kept {record['kept']:.4g} ({1 / record['kept']:.1f}x smaller), {record['seconds']:.0f} s: {folder}"
    )
    return Outcome(record=record, fresh=fresh)


def _prepare(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(pages.prepare_help())
        return _OK
    return _with_hydra("prepare", arguments, _prepare_job)


def _prepare_job(composed: Any) -> None:
    from recemb.datasets import prepare

    config = OmegaConf.to_object(composed)
    assert isinstance(config, PrepareConfig)
    dataset = prepare(config.dataset, on_bad_rows=config.on_bad_rows, overwrite=config.overwrite)
    rows = {split: dataset.num_rows(split) for split in ("train", "valid", "test")}
    ids = sum(feature.num_embeddings for feature in dataset.features)
    print(
        f"{dataset.path}: {rows['train']:,} training, {rows['valid']:,} validation and {rows['test']:,} test rows, "
        f"{ids:,} ids in {len(dataset.features)} features"
    )
    skipped = dataset.meta.get("skipped") or {}
    for reason, count in skipped.items():
        print(f"  skipped {count:,} rows: {reason}")
    ceiling = (dataset.meta.get("ceiling") or {}).get("test")
    if ceiling:
        auc, logloss = (metric_text(ceiling[name]) for name in ("auc", "logloss"))
        print(f"  best reachable on test: AUC {auc}, logloss {logloss}")


def _plan(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(pages.plan_help())
        return _OK
    if several := [argument for argument in arguments if argument in ("-m", "--multirun")]:
        raise RecembError(f"recemb plan lays out one method at a time; leave {several[0]} out and call it for each.")
    as_json = "--json" in arguments
    return _with_hydra("plan", [a for a in arguments if a != "--json"], partial(_plan_job, as_json=as_json))


def _plan_job(composed: Any, as_json: bool) -> None:
    from recemb.plan import known_features, make_plan
    from recemb.plan_text import plan_text

    config = to_plan_config(composed)
    features = known_features(config.dataset, asked_of_data(HydraConfig.get().overrides.task))
    plan = make_plan(
        features,
        config.table,
        config.model,
        config.budget,
        precision=config.precision,
        dataset=config.dataset.name,
        path=config.dataset.path,
    )
    sharing = None
    if config.processes > 1:
        specs = table_specs(features, config.model, config.precision)
        sharing = planned(specs, config_from_dict(plan.table), config.trainer, config.processes, config.memory)
    if as_json:
        print(json.dumps(plan.to_dict() | ({"sharding": sharing} if sharing else {}), indent=2), flush=True)
    else:
        print("\n".join([plan_text(plan), *(["", *plan_lines(sharing)] if sharing else [])]), flush=True)


def _inspect(arguments: list[str]) -> int:
    from recemb.inspection.arguments import read_arguments

    asked = read_arguments(arguments)
    return _with_hydra("plan", asked.options, partial(_inspect_job, asked=asked))


def _inspect_job(composed: Any, asked: Any) -> None:
    from recemb.datasets import PreparedDataset
    from recemb.inspection.inspection import inspect
    from recemb.inspection.page import make_folder, write_inspection
    from recemb.inspection.text import inspection_text

    if asked.out is not None:
        make_folder(asked.out)
    inspection = inspect(PreparedDataset.open(asked.dataset), to_plan_config(composed), with_plan=asked.with_plan)
    page = None if asked.out is None else write_inspection(inspection, asked.out)
    if asked.as_json:
        print(json.dumps(inspection.to_dict(), indent=2, allow_nan=False), flush=True)
    else:
        print("\n".join([inspection_text(inspection), *(["", str(page.resolve())] if page else [])]), flush=True)


def _advise(arguments: list[str]) -> int:
    from recemb.advice.arguments import read_arguments

    asked = read_arguments(arguments)
    return _with_hydra("plan", ["table=auto", *asked.options], partial(_advise_job, asked=asked))


def _advise_job(composed: Any, asked: Any) -> None:
    from recemb.advice.command import advice_text, advise
    from recemb.training.record import finite

    composed_config = to_plan_config(composed)
    table = AutoConfig(trials=asked.trials, coarsest=asked.coarsest)
    config = RunConfig(
        dataset=composed_config.dataset, table=table, model=composed_config.model, trainer=composed_config.trainer,
        budget=asked.budget, seed=asked.seed,
    )  # fmt: skip
    plan = advise(asked, config)
    if asked.as_json:
        print(json.dumps(finite(plan.to_dict()), indent=2, ensure_ascii=False), flush=True)
    else:
        print(advice_text(plan, asked.out), flush=True)


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="recemb report",
        description="Gather the run.json records below some folders into results.csv, results.parquet, the picture "
        "tradeoff.png and report.html, which opens offline.",
    )
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="folder with runs at any depth")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the first DIR)")
    parser.add_argument("--title", help="title of the page")
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="what points are compared with: full, a point ('hashing 1/16'), or a series or method (hashing), whose "
        "table of the same budget is meant (default: full where there is one)",
    )
    parser.add_argument(
        "--target",
        type=float,
        action="append",
        default=[],
        metavar="AUC",
        help="test AUC to look the fewest bytes up for; may be repeated (default: 0.001, 0.005 and 0.01 below full)",
    )
    parser.add_argument(
        "--before",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of earlier runs: says point by point what changed since, also in changes.csv; may be repeated",
    )
    options = parser.parse_args(arguments)
    from recemb.report import write_report

    report = write_report(
        options.dirs,
        options.out or options.dirs[0],
        options.title,
        baseline=options.baseline,
        targets=options.target,
        before=options.before,
    )
    for left_out in report.left_out:
        print(f"not in the charts: {left_out.run}: {left_out.reason}", file=sys.stderr)
    for sentence in report.changed:
        print(sentence)
    print(f"{report.runs} runs, {report.points} points: {report.html.resolve()}")
    return _OK


def _compress(arguments: list[str]) -> int:
    parser = pages.compress_parser()
    options, overrides = parser.parse_known_intermixed_args(arguments)
    from recemb.packing.compress import Finetuning, compress_run
    from recemb.training.reopen import open_run

    if options.table is None and options.precision is None:
        raise RecembError("nothing is asked for: give a --table with a --budget, a --precision, or both.")
    table = None if options.table is None else _table_config(options.table, overrides)
    if table is not None and options.budget is None and not overrides:
        raise RecembError(f"nothing says how small --table {options.table} shall be: give a --budget.")
    if table is None and overrides:
        raise RecembError(f"{overrides[0]} is an option of a table; name the table with --table.")
    run = open_run(options.run, options.data)
    record = compress_run(
        run,
        options.out,
        table=table,
        budget=options.budget,
        precision=options.precision or run.config.precision,
        finetuning=Finetuning(steps=options.finetune, lr_factor=options.lr_factor),
        overwrite=options.overwrite,
        command=shlex.join(["recemb", "compress", *arguments]),
    )
    print(pages.compressed(record, options.out))
    return _OK


def _table_config(name: str, overrides: Sequence[str]) -> Any:
    """Make the options of a table from `table.option=value` texts."""
    if wrong := [override for override in overrides if not re.fullmatch(r"table\.\w+=.*", override, re.DOTALL)]:
        raise RecembError(f"{wrong[0]!r} cannot be read: options of a table are given as table.name=value.")
    schema = OmegaConf.structured(get_table(name).config)
    values = OmegaConf.from_dotlist([override.removeprefix("table.") for override in overrides])
    return OmegaConf.to_object(OmegaConf.merge(schema, values))


def _export(arguments: list[str]) -> int:
    options = pages.export_parser().parse_args(arguments)
    from recemb.packing.export import export
    from recemb.training.reopen import open_run

    run = open_run(options.run, options.data)
    exported = export(run, options.out, options.to.split(","), overwrite=options.overwrite)
    print(pages.exported(exported))
    return _OK


def _tables(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print("recemb tables         list the table methods\nrecemb tables NAME    explain one")
    elif arguments:
        print("\n".join(pages.tables_page(get_table(name)) for name in arguments))
    else:
        print(pages.tables_list())
    return _OK


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "prepare": _prepare,
    "inspect": _inspect,
    "advise": _advise,
    "plan": _plan,
    "train": _train,
    "compress": _compress,
    "export": _export,
    "report": _report,
    "tables": _tables,
}


def _with_hydra(verb: str, arguments: list[str], job: Callable[[Any], Outcome | None]) -> int:
    """Let Hydra compose the configuration of each job and run them; one that fails does not end a sweep."""
    register_configs()
    register_launcher(_tell)
    OmegaConf.register_new_resolver("recemb_slug", folder_name, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here and not as Hydra's own report
    alone: list[Outcome] = []

    def one_job(composed: Any) -> Outcome:
        alone.append(_outcome(composed, verb, job))
        return alone[-1]

    sys.argv = [f"recemb {verb}", *flags_first(arguments)]
    try:
        hydra.main(version_base="1.3", config_path="pkg://recemb.conf", config_name=verb)(one_job)()
    except (ValueError, KeyError) as error:
        if isinstance(error, (RecembError, OmegaConfBaseException)):
            raise
        raise RecembError(f"Hydra cannot compose this: {str(error).splitlines()[0]}") from error
    outcomes = SideBySide.outcomes or alone
    if any(outcome.reader_gone for outcome in outcomes):
        raise BrokenPipeError
    failures = [outcome for outcome in outcomes if outcome.failure is not None]
    # Which methods can be how small is what a sweep over several shows.
    serious = [outcome for outcome in failures if not outcome.impossible or len(failures) == len(outcomes)]
    if len(serious) > 1:
        _say(f"{len(serious)} jobs failed.")
    return _FAILED if serious else _OK


def _outcome(composed: Any, verb: str, job: Callable[[Any], Outcome | None]) -> Outcome:
    """Run one job, and say what failed."""
    try:
        return job(composed) or Outcome()
    except processes.ToldElsewhereError as error:
        failed = Outcome(str(error))
    except BrokenPipeError as error:
        return Outcome(str(error), reader_gone=True)  # raised past Hydra, which would report it
    except (RecembError, OmegaConfBaseException, OSError) as error:
        failed = Outcome(in_one_sentence(error, verb), impossible=isinstance(error, TooSmallBudgetError))
        _say(failed.failure or "")
    except Exception as error:
        # Not foreseen, so whoever mends it needs the traceback; a sweep goes on all the same.
        failed = Outcome(repr(error))
        traceback.print_exc()
    if processes.world_size() > 1:
        raise SystemExit(_FAILED)  # the others may be at another point, and there is no going on together
    return failed


def _tell(line: str) -> None:
    """Show a line to whoever waits, in one of the processes that take part."""
    if processes.is_first():
        print(line, file=sys.stderr, flush=True)


def _say(sentence: str, status: int = _FAILED) -> int:
    who = f"recemb (process {processes.rank()})" if processes.world_size() > 1 else "recemb"
    print(f"{who}: {sentence}", file=sys.stderr, flush=True)
    return status
