"""A serving model in one safetensors file: every tensor by name, and in the header what it takes to build the module.

The header's entry `recemb` is JSON: the table method with its options, the logical tables, what is held for them, and
the backbone with its options. Nothing in the file is ever executed; what it says is checked against the tensors it
holds before a module is made of it.
"""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recemb.files import parse_json
from recemb.models import MODELS, ModelConfig
from recemb.options import RecembError
from recemb.packing.serving import ServingModel, ServingTables, Widths
from recemb.tables.base import DenseParameter, Layout, PhysicalTable, TableSpec
from recemb.tables.precision import PRECISIONS
from recemb.tables.registry import config_from_dict, config_to_dict, method_of

SCHEMA = 1
_KEY = "recemb"
_CONSTANTS = "tables.method."


def save_model(model: ServingModel, config: ModelConfig, dense: int, path: Path) -> None:
    """Write a model.

    Args:
        model: the model.
        config: what its backbone was built from.
        dense: K, the number of dense features.
        path: the file.

    Raises:
        OSError: it cannot be written.
    """
    method = model.tables.method
    layout = method.layout
    header = {
        "schema": SCHEMA,
        "table": config_to_dict(method.config),
        "specs": [
            {
                "name": spec.name, "num_embeddings": spec.num_embeddings, "embedding_dim": spec.embedding_dim,
                "feature_names": spec.feature_names, "max_length": spec.max_length, "init_std": spec.init_std,
                "raw_ids": spec.raw_ids, "precision": spec.precision,
            }
            for spec in method.specs
        ],
        "layout": {
            "tables": [table._asdict() for table in layout.tables],
            "lookups": layout.lookups,
            "dims": layout.dims,
            "constants": list(layout.constants),
            "parameters": [parameter._asdict() for parameter in layout.parameters],
            "alternatives": layout.alternatives,
        },
        "places": [place._asdict() for place in model.tables.places],
        "model": config.to_dict(),
        "dense": dense,
    }  # fmt: skip
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", _KEY: json.dumps(header, separators=(",", ":"))})
    except SafetensorError as error:
        raise _as_os_error(error, path) from error


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """Make what safetensors tells of the file system an error of Python's."""
    code = re.search(r"\(os error (\d+)\)|code: (\d+)", str(error))
    number = int(code[1] or code[2]) if code else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def load_model(path: Path) -> ServingModel:
    """Read what `save_model` wrote.

    Raises:
        RecembError: the file is missing, cut short, none of recemb's, or its header does not fit its tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if header["schema"] != SCHEMA:
            raise RecembError(f"{path} is of form {header['schema']}, and this recemb reads form {SCHEMA}.")
        return _build(header, tensors)
    except RecembError as error:
        raise RecembError(f"{path} cannot be loaded: {error}") from error
    except (
        SafetensorError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        IndexError,
    ) as error:
        raise RecembError(f"{path} is damaged or no model of recemb's ({type(error).__name__}: {error}).") from error


def _build(header: dict[str, Any], tensors: dict[str, Tensor]) -> ServingModel:
    specs = [TableSpec(**one) for one in header["specs"]]
    config = config_from_dict(header["table"])
    layout = _layout(header["layout"], tensors)
    # What the header promises must be in the file before anything of its size is made.
    for table in layout.tables:
        if table.precision not in PRECISIONS or table.rows < 1 or table.dim < 1:
            raise RecembError(f"table {table.name} is {table.rows} rows of {table.dim} in {table.precision}.")
    held = sum(table.bytes for table in layout.tables)
    found = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("tables.stores."))
    if held != found:
        raise RecembError(f"its header describes rows of {held:,} bytes, and it holds {found:,}.")
    tables = ServingTables(method_of(config).table(config, specs, layout), None)
    options = dict(header["model"])
    backbone_config = MODELS[options.pop("name")](**options)
    backbone = backbone_config.build(Widths(tables.embedding_bag_configs()), torch.zeros(2, int(header["dense"])))
    model = ServingModel(tables, backbone)
    model.load_state_dict(tensors)
    return model


def _layout(values: dict[str, Any], tensors: dict[str, Tensor]) -> Layout:
    layout = Layout(
        tables=[PhysicalTable(**one) for one in values["tables"]],
        lookups=[[int(table) for table in one] for one in values["lookups"]],
        dims=[int(dim) for dim in values["dims"]],
        constants={name: tensors[_CONSTANTS + name] for name in values["constants"]},
        parameters=[DenseParameter(**one | {"shape": tuple(one["shape"])}) for one in values["parameters"]],
        alternatives=bool(values["alternatives"]),
    )
    for parameter in layout.parameters:
        if tensors[_CONSTANTS + parameter.name].shape != parameter.shape:
            raise RecembError(f"{parameter.name} has another shape than its header says.")
    return layout
