"""Loads an exported folder: the model as a module, which also takes raw values as the data set's text spells them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recemb.datasets.raw_values import RawValues
from recemb.files import read_json
from recemb.options import RecembError
from recemb.packing.serving import ServingModel
from recemb.packing.weights import load_model

MANIFEST = "export.json"
MANIFEST_SCHEMA = 1
WEIGHTS = "model.safetensors"

Row = Mapping[str, Any]


class LoadedModel(ServingModel):
    """An exported model.

    Attributes:
        raw_values: turns raw values into ids and numbers.
        manifest: the contents of export.json.
    """

    def __init__(self, model: ServingModel, raw_values: RawValues, manifest: dict[str, Any]) -> None:
        super().__init__(model.tables, model.backbone)
        self.raw_values = raw_values
        self.manifest = manifest

    @property
    def device(self) -> torch.device:
        """Where the model is; `predict` and `look_up` take rows from anywhere and answer there."""
        return next(self.backbone.parameters()).device

    def encode(self, rows: Row | Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Turn raw rows into what the module takes.

        Args:
            rows: a row, or B of them: values by feature, e.g. {"C1": "68fd1e64", "I1": 3}; a list of values where a
                feature has several. What is left out is missing; what training has not seen is the unknown value.

        Returns:
            dense (B, K), values (N,) and offsets (F, B + 1).

        Raises:
            RecembError: a row names a feature that there is not.
        """
        batch: list[Any] = list(rows) if isinstance(rows, (list, tuple)) else [rows]
        if not batch:
            raise RecembError("there are no rows to encode; give at least one.")
        if wrong := [row for row in batch if not isinstance(row, Mapping)]:
            raise RecembError(
                f"a row must be a mapping from features to values, and one is a {type(wrong[0]).__name__}; of a pandas "
                "frame, give frame.to_dict('records')."
            )
        known = {*self.raw_values.features, *self.raw_values.dense_names}
        for row in batch:
            if unknown := sorted(set(row) - known, key=str):
                raise RecembError(
                    f"a row has feature {unknown[0]!r}, which the model does not take; it takes "
                    f"{', '.join(sorted(known))}."
                )
        dense = [self.raw_values.dense(name, [row.get(name) for row in batch]) for name in self.raw_values.dense_names]
        ids, offsets, start = [], [], 0
        for name in self.raw_values.features:
            column = [row.get(name) for row in batch]
            if self.raw_values.is_multi_valued(name):
                found, lengths = self.raw_values.bags(name, [[] if value is None else value for value in column])
            else:
                found, lengths = self.raw_values.ids(name, column), np.ones(len(batch), dtype=np.int64)
            ends = torch.from_numpy(lengths).cumsum(0) + start
            offsets.append(torch.cat([torch.tensor([start]), ends]))
            start = int(ends[-1])
            ids.append(torch.from_numpy(found))
        columns = [torch.from_numpy(column) for column in dense]
        numbers = torch.stack(columns, dim=1) if columns else torch.empty(len(batch), 0)
        return numbers, torch.cat(ids), torch.stack(offsets)

    @torch.no_grad()
    def predict(self, rows: Row | Sequence[Row]) -> Tensor:
        """Predict from raw rows, as `encode` takes them: (B,) probabilities of a 1."""
        return torch.sigmoid(self(*(part.to(self.device) for part in self.encode(rows))))

    @torch.no_grad()
    def look_up(self, rows: Row | Sequence[Row]) -> dict[str, Tensor]:
        """Look the vectors of raw rows up, as `encode` takes them: (B, D) by categorical feature."""
        _, values, offsets = (part.to(self.device) for part in self.encode(rows))
        configs = self.tables.embedding_bag_configs()
        widths = [config.embedding_dim for config in configs for _ in config.feature_names]
        return dict(zip(self.tables.features, self.tables(values, offsets).split(widths, dim=1), strict=True))


def load(folder: str | Path, *, verify: bool = True) -> LoadedModel:
    """Load what `recemb export` wrote.

    Args:
        folder: the exported folder, with safetensors among its forms.
        verify: compare every file with the checksum in export.json first.

    Returns:
        The model in evaluation mode; its tables alone are `model.tables`.

    Raises:
        RecembError: something is missing, damaged or was changed; no code in the folder is ever run.
    """
    path = Path(folder).expanduser()
    manifest = read_manifest(path)
    if WEIGHTS not in manifest["files"]:
        raise RecembError(f"{path} was exported without safetensors, which load reads; export with --to safetensors.")
    if verify:
        verify_files(path, manifest)
    return LoadedModel(load_model(path / WEIGHTS), RawValues.load(path), manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read export.json.

    Raises:
        RecembError: it is missing, damaged or of another version.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        schema, files = manifest["schema"], manifest["files"]
        if not all(name == Path(name).name and {"bytes", "sha256"} <= set(entry) for name, entry in files.items()):
            raise ValueError("a file's entry is damaged")
    except FileNotFoundError:
        raise RecembError(f"{folder} is no exported folder: it has no {MANIFEST}.") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecembError(f"{folder / MANIFEST} cannot be read ({error}); export anew.") from error
    if schema != MANIFEST_SCHEMA:
        raise RecembError(f"{folder} was exported in form {schema}, and this recemb reads form {MANIFEST_SCHEMA}.")
    return dict(manifest)


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare files with their entries in the manifest.

    Raises:
        RecembError: one is missing or differs.
    """
    for name, entry in manifest["files"].items():
        try:
            found = describe_file(folder / name)
        except OSError as error:
            raise RecembError(f"{folder / name} cannot be read ({error.strerror}); export anew.") from error
        if found != {"bytes": entry["bytes"], "sha256": entry["sha256"]}:
            raise RecembError(
                f"{folder / name} is not the file that was exported: {found['bytes']:,} bytes of "
                f"{entry['bytes']:,}, checksum {'differs' if found['sha256'] != entry['sha256'] else 'equal'}; "
                "export anew."
            )


def describe_file(path: Path) -> dict[str, Any]:
    """Give a file's size and checksum, as the manifest lists them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
