"""Files that hold a run's tensors: safetensors, each process its own, with nothing in them that could be run.

Earlier versions wrote torch.distributed.checkpoint's own format, whose `.metadata` is a pickle. It is still read, by an
unpickler that makes nothing but the descriptions of tensors that belong there.
"""

import os
import pickle
import queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, hf_storage, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner, WriteItem

_LARGEST_FILE = 1 << 28
"""Bytes of tensors in a file, which is made in memory; a piece of a table that is larger is a file of its own."""


def tensor_writer(folder: Path) -> dcp.StorageWriter:
    """Return what writes the tensors of this process to a folder."""
    return _SafetensorsWriter(os.fspath(folder), save_distributed=True)


def tensor_reader(folder: Path) -> dcp.StorageReader:
    """Return what reads the tensors that any number of processes wrote to a folder, in this or an earlier format."""
    if (folder / ".metadata").exists() and not any(folder.glob("*.safetensors")):
        return _EarlierReader(folder)
    return _SafetensorsReader(os.fspath(folder))


class TensorsOnlyPlanner(DefaultLoadPlanner):
    """Plans the reading of tensors; whatever else a folder holds is pickled, and refused."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{read_item.dest_index.fqn} is no tensor")


class _SafetensorsWriter(hf_storage.HuggingFaceStorageWriter):
    """Writes tensors, or pieces of them, to files of a limited size.

    torch's own writes one file a process, in which a second piece of a tensor takes the place of the first.
    """

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        """Write what this process holds."""
        process = plan.storage_data["shard_index"]
        files: queue.Queue[tuple[Any, str, list[WriteItem]]] = queue.Queue()
        parts = _split(plan.items)
        for number, items in enumerate(parts, start=1):
            name = f"process-{process:05d}-part-{number:05d}-of-{len(parts):05d}.safetensors"
            files.put((self.fs.concat_path(self.path, name), name, items))
        return self._write_data(planner, files)


def _split(items: list[WriteItem]) -> list[list[WriteItem]]:
    """Distribute pieces over files, of which none holds two pieces of one tensor."""
    parts: list[list[WriteItem]] = []
    names: list[set[str]] = []
    sizes: list[int] = []
    for item in items:
        assert item.tensor_data is not None, item.index.fqn
        size = item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
        if not parts or item.index.fqn in names[-1] or sizes[-1] + size > _LARGEST_FILE:
            parts.append([])
            names.append(set())
            sizes.append(0)
        parts[-1].append(item)
        names[-1].add(item.index.fqn)
        sizes[-1] += size
    return parts


class _SafetensorsReader(hf_storage.HuggingFaceStorageReader):
    """Reads tensors and pieces of them, single numbers included."""

    def _process_read_request(self, f: Any, req: ReadItem, planner: dcp.LoadPlanner) -> None:
        if len(req.lengths):
            super()._process_read_request(f, req, planner)
            return
        target = planner.resolve_tensor(req).detach()
        target.copy_(f.get_tensor(req.storage_index.fqn))
        planner.commit_tensor(req, target)


class _EarlierReader(filesystem.FileSystemReader):
    """Reads what torch.distributed.checkpoint writes by default."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """Read the description of the tensors.

        Raises:
            pickle.UnpicklingError: it is, or holds, something else.
        """
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = _TensorDescriptions(file).load()
        if not isinstance(found, metadata.Metadata):
            raise pickle.UnpicklingError("this describes no tensors")
        for info in (found.storage_data or {}).values():
            if Path(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"{info.relative_path} is not a file of this folder")
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class _TensorDescriptions(pickle.Unpickler):
    """Makes objects of the classes that describe tensors, and of no others."""

    _CLASSES = (
        metadata.Metadata, metadata.MetadataIndex, metadata.TensorStorageMetadata, metadata.TensorProperties,
        metadata.ChunkStorageMetadata, metadata.BytesStorageMetadata, metadata.StorageMeta,
        metadata._MEM_FORMAT_ENCODING, filesystem._StorageInfo, torch.Size, torch.serialization._get_layout,
    )  # fmt: skip
    _BY_NAME = {(one.__module__, one.__qualname__): one for one in _CLASSES}  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that belongs there.

        Raises:
            pickle.UnpicklingError: it does not.
        """
        if (module, name) in self._BY_NAME:
            return self._BY_NAME[module, name]
        if module == "pathlib" and name in ("PosixPath", "PurePosixPath"):
            return Path
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"{module}.{name} describes no tensor")
