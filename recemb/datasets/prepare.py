"""Turns the rows of any source into a prepared folder, or opens the one that is there already."""

import json
import logging
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recemb.datasets.base import BAD_ROW_POLICIES, DatasetConfig, RowSource
from recemb.datasets.containers import COMPRESSED
from recemb.datasets.machine import writing_to
from recemb.datasets.passes import Preparation
from recemb.datasets.prepared import META, PreparedDataset
from recemb.datasets.splits import SPLITS
from recemb.datasets.workspace import publish, workspace
from recemb.options import RecembError

log = logging.getLogger(__name__)

_PARTS = ("vocabulary", *(f"{split}.arrow" for split in SPLITS))


def prepare(
    config: DatasetConfig, *, on_bad_rows: str = "error", overwrite: bool = False, progress: bool = True
) -> PreparedDataset:
    """Prepare a data set, or open it when the same one is already there.

    Args:
        config: which data set, how it is split and numbered, and where it goes.
        on_bad_rows: "error" stops at the first row that is not as it should be, "skip" leaves such rows out and
            counts them by reason in `meta["skipped"]`.
        overwrite: replace a prepared data set that was made differently. Nothing else is ever replaced.
        progress: show progress bars on stderr.

    Returns:
        The finished data set, opened.

    Raises:
        RecembError: one sentence on what is wrong with the source, the options or the place to write to.
    """
    if on_bad_rows not in BAD_ROW_POLICIES:
        raise RecembError(f"on_bad_rows={on_bad_rows} is not known; choose one of {', '.join(BAD_ROW_POLICIES)}.")
    source = config.open(on_bad_rows=on_bad_rows)
    _check_min_counts(config, source)
    with writing_to(Path(config.path)):
        target = _resolved(config.path)
    if (finished := _reusable(target, config, source, on_bad_rows, overwrite)) is not None:
        log.info("%s holds this data set already; nothing to do.", config.path)
        return finished
    started = time.perf_counter()
    with workspace(target, config.path) as folder, writing_to(Path(config.path), _bytes_needed(source)):
        # Once more, now that nobody else can be at work on it.
        if (finished := _reusable(target, config, source, on_bad_rows, overwrite)) is not None:
            return finished
        meta = Preparation(config, source, folder, progress).run()
        meta["on_bad_rows"] = on_bad_rows
        (folder / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        publish(folder, target, replace=overwrite and (target / META).is_file())
    seconds, rows = time.perf_counter() - started, sum(meta["rows"].values())
    summary = f"{config.path}: {rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f} rows/s"
    if progress:
        tqdm.write(summary, file=sys.stderr)
    else:
        log.info(summary)
    _warn_of_one_label(config.path, meta["positive_rate"])
    return PreparedDataset.open(config.path)


def _warn_of_one_label(path: str, positive_rate: dict[str, float]) -> None:
    splits = [("training", positive_rate["train"]), ("test", positive_rate["test"])]
    if found := [f"all {name} rows have label {rate:.0f}" for name, rate in splits if rate in (0, 1)]:
        log.warning("%s: %s; nothing is learnt from one label, and there is no AUC.", path, ", and ".join(found))


def _bytes_needed(source: RowSource) -> int:
    """Guess the size of spool and Arrow files together from what a row of Criteo takes."""
    if not source.files:
        return source.total * 330
    return round(sum(file["size"] * (4.0 if file["name"].endswith(COMPRESSED) else 1.4) for file in source.files))


def _check_min_counts(config: DatasetConfig, source: RowSource) -> None:
    for name in config.min_counts:
        names = source.feature_names
        if name not in names:
            raise RecembError(
                f"dataset.min_counts names the feature {name}, which dataset={config.name} does not have; "
                f"it has {', '.join(names) if len(names) < 10 else f'{names[0]} to {names[-1]}'}."
            )


def _reusable(
    target: Path, config: DatasetConfig, source: RowSource, on_bad_rows: str, overwrite: bool
) -> PreparedDataset | None:
    """Return the data set at `target` if it is the wanted one, None if the place is free; refuse anything else."""
    if not target.exists():
        return None
    if not target.is_dir():
        raise RecembError(f"{config.path} is a file; choose another dataset.path.")
    if not any(target.iterdir()):
        return None
    try:
        there = PreparedDataset.open(config.path)
    except RecembError as error:
        if not ((target / META).is_file() and any((target / name).exists() for name in _PARTS)):
            raise RecembError(
                f"{config.path} is a folder with other things in it, which will not be touched; "
                "choose another dataset.path."
            ) from error
        if not overwrite:
            raise
        _refuse_foreign(target, config)
        return None
    differences = _differences(there.meta, config, source, on_bad_rows)
    if not differences:
        return there
    if overwrite:
        _refuse_foreign(target, config)
        return None
    raise RecembError(
        f"{config.path} holds a data set made with {'; '.join(differences)}; "
        "pass overwrite=true to replace it, or choose another dataset.path."
    )


def _refuse_foreign(target: Path, config: DatasetConfig) -> None:
    """Let a prepared data set be replaced only where nothing else lies in its folder, its own source least of all."""
    if foreign := sorted(path.name for path in target.iterdir() if path.name not in (META, *_PARTS)):
        raise RecembError(
            f"{config.path} holds {foreign[0]} beside a prepared data set, and would lose it; move it away, or choose "
            "another dataset.path."
        )


def _resolved(path: str) -> Path:
    """Follow the path of a data set to where it will lie."""
    try:
        target = Path(path).expanduser().resolve()
    except RuntimeError as error:
        raise RecembError(f"{path} cannot be followed ({error}); choose another dataset.path.") from error
    if target.is_mount():
        raise RecembError(f"{path} is a mount point, which cannot be replaced whole; name a folder inside it.")
    return target


def _differences(meta: dict[str, Any], config: DatasetConfig, source: RowSource, on_bad_rows: str) -> list[str]:
    if meta["dataset"] != config.name:
        return [f"dataset={meta['dataset']} (asked for: {config.name})"]
    then, now = meta["config"], json.loads(json.dumps(config.identity()))
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    differences = []
    for name in names:
        was, wanted = then.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(wanted, dict):  # a large one is told by its differences
            keys = [key for key in {**was, **wanted} if was.get(key) != wanted.get(key)]
            was, wanted = ({key: one[key] for key in keys if key in one} for one in (was, wanted))
        differences.append(f"{name}={was} (asked for: {wanted})")
    if meta["sources"] != source.files:
        differences.append(f"other source files: {_files(meta['sources'])} (asked for: {_files(source.files)})")
    if meta["skipped"] and on_bad_rows == "error":
        differences.append(f"{sum(meta['skipped'].values())} bad rows skipped (asked for: on_bad_rows=error)")
    return differences


def _files(files: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{file['name']} of {file['size']} bytes, written {datetime.fromtimestamp(file['modified_ns'] / 1e9)}"
        for file in files
    )
