"""What `recemb advise` does: chooses a plan, writes its file, and says what it chose."""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recemb.advice.advise import Advisor
from recemb.advice.arguments import Asked
from recemb.advice.record import new_advice
from recemb.advice.words import sizes_in_words
from recemb.budget import format_bytes
from recemb.datasets import PreparedDataset
from recemb.options import RecembError
from recemb.plan import Plan, plan_of
from recemb.record import FREE_TO_CHANGE, metric_text
from recemb.tables.auto import AutoConfig
from recemb.training.record import finite, read_mapping

if TYPE_CHECKING:
    from recemb.config import RunConfig

_JOURNAL = "advice.json"


def advise(asked: Asked, config: "RunConfig") -> Plan:
    """Choose a plan and write its file; trials that an earlier call has finished are not repeated.

    Args:
        asked: the command.
        config: a run of it: backbone, training, and an `AutoConfig` without a plan.

    Raises:
        RecembError: there is a plan in the file already, the file cannot be written, the data cannot be read, or
            nothing can be made as small as asked.
    """
    if not asked.out.name or asked.out.is_dir():
        raise RecembError(f"--out {asked.out} is no file's name; choose one such as plan.json.")
    if asked.out.exists() and not asked.overwrite:
        raise RecembError(f"{asked.out} is there already; choose another --out, or pass --overwrite.")
    dataset = PreparedDataset.open(asked.dataset)
    trainer = config.trainer.with_defined_monitor(dataset.meta["positive_rate"]["valid"])
    config = dataclasses.replace(config, trainer=trainer)
    with _journal(asked, config, dataset) as (folder, advice):

        def save() -> None:
            if config.table.trials:
                _write(folder / _JOURNAL, {"asked": _asked(config, dataset), "advice": advice})

        chosen = Advisor(config, dataset, folder, advice, save).choose()
        plan = plan_of(
            chosen.specs,
            chosen.candidate.table,
            config.model,
            asked.budget,
            dataset=dataset.meta["dataset"],
            path=str(asked.dataset.expanduser().resolve()),
            advice=advice,
        )
        _write(asked.out, plan.to_dict())
    shutil.rmtree(folder, ignore_errors=True)
    return plan


def advice_text(plan: Plan, out: Path) -> str:
    """What `recemb advise` prints."""
    advice = plan.advice
    assert advice is not None
    totals = plan.totals
    lines = [
        f"{plan.dataset}: {sizes_in_words(totals.ids, len(plan.features), totals.bytes, totals.full_bytes)}",
    ]
    if advice["tried"]:
        lines += ["", *_trials(advice)]
    lines += ["", f"chosen: {advice['chosen']['method']}: {advice['because']}", ""]
    width = max(len(one["name"]) for one in advice["features"])
    lines += [
        f"  {one['name']:<{width}}  {format_bytes(one['bytes']):>8}  {one['sentence']}" for one in advice["features"]
    ]
    # Hydra reads quotes of its own, and the shell's are around them.
    plain = re.fullmatch(r"[\w./-]+", str(out), re.ASCII)
    option = f"plan={out if plain else json.dumps(str(out), ensure_ascii=False)}"
    return "\n".join([*lines, "", f"plan: {out}", f"train it: recemb train {shlex.quote(option)}"])


def _trials(advice: dict[str, Any]) -> list[str]:
    rows = [("trained", "coarsest", "bytes", "valid logloss", "valid AUC", "seconds")]
    for one in advice["tried"]:
        valid = one["valid"]
        metrics = ("no number", "") if valid is None else (metric_text(valid["logloss"]), metric_text(valid["auc"]))
        rows.append((one["method"], one["precision"], format_bytes(one["bytes"]), *metrics, f"{one['seconds']:.0f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) if n == 0 else cell.rjust(width)
                         for n, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip


def _asked(config: "RunConfig", dataset: PreparedDataset) -> dict[str, Any]:
    """Everything that trials depend on."""
    values = {**config.to_dict(), "fingerprint": dataset.fingerprint}
    del values["dataset"]
    values["table"] = {name: value for name, value in values["table"].items() if name != "trials"}
    values["trainer"] = {name: value for name, value in values["trainer"].items() if name not in FREE_TO_CHANGE}
    return dict(json.loads(json.dumps(values)))


@contextlib.contextmanager
def _journal(asked: Asked, config: "RunConfig", dataset: PreparedDataset) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give the folder of the trials and what was found so far; for as long as that lasts, nobody else gets it."""
    folder, table = asked.trials_folder, config.table
    assert isinstance(table, AutoConfig)
    advice = new_advice(table.trials, config.trainer.monitor)
    if not table.trials:
        yield folder, advice
        return
    if folder.exists() and not (folder / _JOURNAL).exists() and any(folder.iterdir()):
        raise RecembError(f"{folder} holds what no advice left there; choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RecembError(f"cannot make the folder of the trials {folder}: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecembError(f"another advice is being made in {folder}; choose another --out.") from error
        earlier = read_mapping(folder / _JOURNAL) or {}
        if earlier and earlier.get("asked") == _asked(config, dataset):
            advice = {**earlier["advice"], "trials": table.trials, "tried": earlier["advice"]["tried"][: table.trials]}
        elif earlier and not asked.overwrite:
            raise RecembError(
                f"{folder} holds unfinished trials of other options; give those again to go on, choose another "
                "--out, or pass --overwrite."
            )
        else:
            for path in folder.glob("[0-9][0-9][0-9]"):
                shutil.rmtree(path, ignore_errors=True)
            _write(folder / _JOURNAL, {"asked": _asked(config, dataset), "advice": advice})
        yield folder, advice
    finally:
        os.close(handle)


def _write(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(
            json.dumps(finite(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        os.replace(partial, path)
    except OSError as error:
        raise RecembError(f"cannot write {path}: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
