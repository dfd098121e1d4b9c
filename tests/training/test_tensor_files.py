"""Tensors on disk: read back by whoever, also as earlier versions wrote them, and nothing in a file is ever run."""

import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from recemb import RecembError
from recemb.training import tensor_files
from recemb.training.checkpoint import load_tensors, save_tensors

TENSORS = {
    "matrix": torch.rand(30, 4, generator=torch.Generator().manual_seed(0)),
    "number": torch.tensor(3.5),
    "codes": torch.arange(7, dtype=torch.uint8),
    "ids": torch.arange(5) << 40,
    "half": torch.rand(3).bfloat16(),
    "kept": torch.tensor([True, False]),
    "nothing": torch.zeros(0, 4),
}


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    found = {name: torch.ones_like(tensor) for name, tensor in TENSORS.items()}
    load_tensors(found, folder, "the weights in {folder} cannot be read; train them anew.")
    return found


def check(found: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def write_as_before(folder: Path, extra: dict | None = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({**TENSORS, **(extra or {})}, checkpoint_id=folder, no_dist=True)
    return folder


def test_what_is_saved_is_read_back_and_opens_without_recemb(tmp_path: Path):
    save_tensors(TENSORS, tmp_path / "saved", "{}")
    check(loaded(tmp_path / "saved"))
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    check(load_file(file))
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {file.name, "note.json"}


def test_large_tensors_are_spread_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensor_files, "_LARGEST_FILE", 30)
    save_tensors(TENSORS, tmp_path / "saved")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 2
    check(loaded(tmp_path / "saved"))


def test_what_earlier_versions_wrote_is_read(tmp_path: Path):
    check(loaded(write_as_before(tmp_path / "before")))


class Code:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.trace),)


def damage_metadata(folder: Path, trace: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Code(trace)))


def damage_data(folder: Path, trace: Path) -> None:
    for path in folder.glob("*.distcp"):
        path.write_bytes(pickle.dumps(Code(trace)))


def add_code_to_metadata(folder: Path, trace: Path) -> None:
    found = pickle.loads((folder / ".metadata").read_bytes())
    found.planner_data = Code(trace)
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def lead_out_of_the_folder(folder: Path, trace: Path) -> None:
    found = pickle.loads((folder / ".metadata").read_bytes())
    for info in found.storage_data.values():
        info.relative_path = "../before/" + info.relative_path
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def something_else(folder: Path, trace: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(torch.Size([3])))


def cut_metadata(folder: Path, trace: Path) -> None:
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes()[:100])


def store_an_object(folder: Path, trace: Path) -> None:
    for path in [*folder.glob("*.distcp"), folder / ".metadata"]:
        path.unlink()
    write_as_before(folder, {"matrix": Code(trace)})


@pytest.mark.parametrize(
    "damage",
    [damage_metadata, damage_data, add_code_to_metadata, lead_out_of_the_folder, something_else, cut_metadata,
     store_an_object],
)  # fmt: skip
def test_nothing_in_an_earlier_folder_is_run(damage, tmp_path: Path):
    folder, trace = write_as_before(tmp_path / "before"), tmp_path / "it ran"
    damage(folder, trace)
    with pytest.raises(RecembError, match="before cannot be read; train them anew"):
        loaded(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04" + bytes(100), pickle.dumps({"a": 3}), b"\xff" * 8 + b"{}",
        (1 << 40).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}",
        (60).to_bytes(8, "little") + b'{"matrix":{"dtype":"F32","shape":[30,4],"data_offsets":[0,9]}}'.ljust(60),
    ],
    ids=["nothing", "a zip", "a pickle", "a length too large", "a header too large", "no tensors", "too short"],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path):
    save_tensors(TENSORS, tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    file.write_bytes(content)
    with pytest.raises(RecembError, match="saved cannot be read; train them anew"):
        loaded(tmp_path / "saved")


def test_tensors_of_other_shapes_are_refused(tmp_path: Path):
    save_tensors(TENSORS | {"matrix": torch.zeros(31, 4)}, tmp_path / "saved")
    with pytest.raises(RecembError, match="saved cannot be read"):
        loaded(tmp_path / "saved")
