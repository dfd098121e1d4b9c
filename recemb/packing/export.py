"""Exports a trained run: one folder with the model, its tables alone, a vocabulary, and how to load each.

The folder is made beside its final place, checked there against the live model on real rows, every form of it, and only
then gets its name: it is there whole or not at all.
"""

import contextlib
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.datasets.raw_values import RawValues
from recemb.files import reason_of
from recemb.options import RecembError
from recemb.packing.load import MANIFEST, MANIFEST_SCHEMA, WEIGHTS, describe_file, read_manifest
from recemb.packing.programs import capture, run_onnx, write_onnx, write_pt2
from recemb.packing.serving import ServingModel, ServingTables, Widths
from recemb.packing.weights import load_model, save_model
from recemb.record import metric_text
from recemb.tables.bags import flat_ids
from recemb.training.reopen import TrainedRun

FORMS = ("safetensors", "pt2", "onnx")
_CHECKED_ROWS = (1, 4, 2048)
_TOLERANCE = 1e-4
"""Of logits, in units of the largest one or of 1: what float32 sums in another order come to, with room to spare."""
_EXAMPLE_ROWS = 3
_TRACED_ROWS = 3


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        folder: where it lies.
        files: bytes by file name.
        tables_bytes: every tensor that serving the tables needs.
        checked: the largest difference of a logit to the live model's, by form.
        rows: on how many real rows.
    """

    folder: Path
    files: dict[str, int]
    tables_bytes: int
    checked: dict[str, float]
    rows: int


def export(run: TrainedRun, folder: Path, forms: Sequence[str] = FORMS, *, overwrite: bool = False) -> Exported:
    """Export a run.

    Args:
        run: the run, as `open_run` gives it.
        folder: the folder to make.
        forms: some of `FORMS`.
        overwrite: replace an earlier export there.

    Raises:
        RecembError: a form is unknown, the folder cannot be made or holds something else, what is needed to write a
            form is missing, or an exported form gives other logits than the live model.
    """
    forms = [form.strip() for form in forms] or ["nothing"]
    if unknown := sorted(set(forms) - set(FORMS)):
        raise RecembError(f"there is no form {unknown[0]!r} to export to; choose some of {', '.join(FORMS)}.")
    forms = [form for form in FORMS if form in forms]
    _refuse_to_touch(folder, overwrite)
    model = serving_model(run)
    with _appearing(folder) as partial:
        inputs = _example(run, model)
        save_model(model, run.config.model, len(run.dataset.dense_names), partial / WEIGHTS)
        if "safetensors" in forms:
            model = load_model(partial / WEIGHTS)  # whatever follows is of what was written
        else:
            (partial / WEIGHTS).unlink()
        programs: dict[str, Callable[..., Tensor]] = {"safetensors": model} if "safetensors" in forms else {}
        programs |= _write_programs(model, _traced_inputs(run, model), forms, partial)
        checked, rows = _check(run, programs)
        RawValues.of(run.dataset).save(partial)
        _write_example(model, inputs, partial)
        manifest = _manifest(run, model, forms, checked, rows)
        _write_readme(manifest, len(inputs["dense"]), partial)
        manifest["files"] = {path.name: describe_file(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    return Exported(folder, files, model.tables.serving_bytes, checked, rows)


def serving_model(run: TrainedRun) -> ServingModel:
    """Make the module that serves a run: its tables in the run's precision, and its backbone."""
    live, tables, _ = run.built
    served = ServingTables(tables.method, tables.weights)
    backbone = run.config.model.build(
        Widths(served.embedding_bag_configs()), torch.zeros(2, len(run.dataset.dense_names))
    )
    state = live.state_dict()
    backbone.load_state_dict({name: state[name].cpu() for name in backbone.state_dict()})
    return ServingModel(served, backbone)


def _write_programs(
    model: ServingModel, inputs: dict[str, Tensor], forms: Sequence[str], folder: Path
) -> dict[str, Callable[..., Tensor]]:
    """Write tables and model as programs, and give back the written models, to be called."""
    written: dict[str, Callable[..., Tensor]] = {}
    if not {"pt2", "onnx"} & set(forms):
        return written
    of_tables = {name: tensor for name, tensor in inputs.items() if name != "dense"}
    modules: list[tuple[str, nn.Module, dict[str, Tensor], str]] = [
        ("tables", model.tables, of_tables, "vectors"), ("model", model, inputs, "logits"),
    ]  # fmt: skip
    for name, module, arguments, output in modules:
        program = capture(module, arguments)
        if "pt2" in forms:
            write_pt2(program, folder / f"{name}.pt2")
        if "onnx" in forms:
            write_onnx(program, folder / f"{name}.onnx", output)
    if "pt2" in forms:
        loaded = torch.export.load(folder / "model.pt2").module()
        written["pt2"] = lambda dense, values, offsets: loaded(dense=dense, values=values, offsets=offsets)
    if "onnx" in forms:
        written["onnx"] = run_onnx(folder / "model.onnx")
    return written


def _check(run: TrainedRun, programs: dict[str, Callable[..., Tensor]]) -> tuple[dict[str, float], int]:
    """Compare written forms with the live model on test rows, one row and none of a bag's ids included.

    Returns:
        The largest difference by form, and the number of rows.
    """
    largest, rows = dict.fromkeys(programs, 0.0), 0
    for size in _CHECKED_ROWS:
        batch = next(iter(run.dataset.batches("test", size)))
        for sparse in (batch.sparse, _emptied(batch.sparse)):
            with torch.no_grad():
                wanted = run.built.model(batch.dense, sparse)
                flat = flat_ids(sparse, run.built.tables.features)
                for form, program in programs.items():
                    found = program(batch.dense, *flat)
                    off = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
                    if not off <= _TOLERANCE:
                        raise RecembError(
                            f"the exported {form} gives logits that are off by {off:.3g} of those of the run's own "
                            "model; nothing was exported. Please report this with the run's config.yaml."
                        )
                    largest[form] = max(largest[form], off)
            rows += len(batch.labels)
    return largest, rows


def _emptied(sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """The same batch with every third bag empty."""
    lengths = sparse.lengths()
    kept = torch.arange(len(lengths)) % 3 > 0
    return KeyedJaggedTensor(
        keys=sparse.keys(),
        values=sparse.values()[kept.repeat_interleave(lengths)],
        lengths=torch.where(kept, lengths, 0),
    )


def _traced_inputs(run: TrainedRun, model: ServingModel) -> dict[str, Tensor]:
    """Make rows to trace a model with: however few real rows there are, tracing takes a size of 1 for a constant.

    Returns:
        `dense`, `values` and `offsets` of `_TRACED_ROWS` rows; bags of a multi-valued feature have 1, 2, ... values.
    """
    several = {feature.name for feature in run.dataset.features if feature.max_length != 1}
    lengths = torch.ones(len(model.tables.features), _TRACED_ROWS, dtype=torch.int64)
    for number, name in enumerate(model.tables.features):
        if name in several:
            lengths[number] = torch.arange(1, _TRACED_ROWS + 1)
    ends = lengths.flatten().cumsum(0).view_as(lengths)
    return {
        "dense": torch.zeros(_TRACED_ROWS, len(run.dataset.dense_names)),
        "values": torch.zeros(int(lengths.sum()), dtype=torch.int64),
        "offsets": torch.cat([ends[:, :1] - lengths[:, :1], ends], dim=1),
    }


def _example(run: TrainedRun, model: ServingModel) -> dict[str, Tensor]:
    """Give some real rows in the form that the model takes."""
    batch = next(iter(run.dataset.batches("test", _EXAMPLE_ROWS)))
    values, offsets = flat_ids(batch.sparse, model.tables.features)
    return {"dense": batch.dense.nan_to_num(), "values": values, "offsets": offsets}


def _write_example(model: ServingModel, inputs: dict[str, Tensor], folder: Path) -> None:
    with torch.no_grad():
        logits = model(**inputs)
    example = {name: tensor.tolist() for name, tensor in inputs.items()} | {"logits": logits.tolist()}
    (folder / "example.json").write_text(json.dumps(example) + "\n", encoding="utf-8")


def _manifest(
    run: TrainedRun, model: ServingModel, forms: Sequence[str], checked: dict[str, float], rows: int
) -> dict[str, Any]:
    record, tables = run.record, model.tables
    return {
        "schema": MANIFEST_SCHEMA,
        "forms": list(forms),
        "method": record["method"],
        "precision": run.config.precision,
        "model": record["model"],
        "dataset": record["dataset"],
        "features": tables.features,
        "dense": run.dataset.dense_names,
        "bytes": {"tables_serving": tables.serving_bytes, "tables_full": record["bytes"]["tables_full"]},
        "kept": tables.serving_bytes / record["bytes"]["tables_full"],
        "metrics": record["metrics"],
        "checked": {"rows": rows, "largest_difference": checked},
        "versions": record["versions"],
    }


def _write_readme(manifest: dict[str, Any], rows: int, folder: Path) -> None:
    """Write how to load what lies in the folder; the example has so many rows."""
    text = resources.files("recemb.packing").joinpath("README.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["metric"] = metric_text
    example_rows = "a row" if rows == 1 else f"{rows} rows"
    text = environment.from_string(text).render(**manifest, example_rows=example_rows)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _refuse_to_touch(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise RecembError(f"{folder} holds something that is no export; choose another --out.")
    if not overwrite:
        raise RecembError(f"{folder} holds an export already; choose another --out, or pass --overwrite.")
    ours = {MANIFEST, *read_manifest(folder)["files"]}
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in ours):
        raise RecembError(f"{folder} holds {foreign[0]} beside an export; move it away, or choose another --out.")


def _remove_stale(folder: Path) -> None:
    """Remove what exports to this folder have left behind that were killed."""
    for partial in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        process = partial.name.rpartition(".partial-")[2].partition("-")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its place when all of it is there and leaves nothing behind when not."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-{os.getpid()}-", dir=folder.parent))
    except OSError as error:
        raise RecembError(f"cannot write to {folder.parent}: {error.strerror}.") from error
    try:
        yield partial
        # As the umask has it: temporary folders, and what safetensors writes, are for nobody but their owner.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        for path in partial.iterdir():
            path.chmod(0o666 & ~umask)
        replaced = partial.with_name(partial.name + ".replaced")
        if folder.exists():
            os.replace(folder, replaced)
        try:
            os.replace(partial, folder)
        except OSError:
            if replaced.exists():
                os.replace(replaced, folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise RecembError(f"cannot write {error.filename or folder}: {reason_of(error)}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
