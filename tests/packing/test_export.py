"""An exported folder: every form gives the live logits, loads by itself, and is whole or absent."""

import copy
import json
import os
import pickle
import re
import shutil
import stat
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from isolated import isolated_python
from parameters import mostly_wide
from safetensors.torch import load_file, save_file

import recemb
from recemb import RecembError
from recemb.cli import main
from recemb.packing.export import export
from recemb.packing.programs import run_onnx
from recemb.packing.weights import load_model
from recemb.tables.bags import flat_ids
from recemb.training.reopen import open_run

RUNS = ["full_run", "packed_run", "bags_run"]


@pytest.fixture(scope="module", params=mostly_wide(RUNS, "bags_run"))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and what was exported of it."""
    run = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("an export") / "to carry away"
    assert main(["export", str(run), "--out", str(folder)]) == 0
    return run, folder


def test_all_forms_give_the_live_logits(exported: tuple[Path, Path]):
    run, folder = open_run(exported[0]), exported[1]
    loaded = recemb.load(folder)
    program = torch.export.load(folder / "model.pt2").module()
    onnx = run_onnx(folder / "model.onnx")
    for rows in (1, 2, 300):
        batch = next(iter(run.dataset.batches("test", rows)))
        flat = flat_ids(batch.sparse, loaded.tables.features)
        with torch.no_grad():
            wanted = run.built.model(batch.dense, batch.sparse)
            assert rows == 1 or wanted.std() > 0
            close = {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(loaded(batch.dense, *flat), wanted, **close)
            inputs = dict(zip(("dense", "values", "offsets"), (batch.dense, *flat), strict=True))
            torch.testing.assert_close(program(**inputs), wanted, **close)
            torch.testing.assert_close(onnx(batch.dense, *flat), wanted, **close)


def test_tables_alone_give_the_live_vectors(exported: tuple[Path, Path]):
    run, folder = open_run(exported[0]), exported[1]
    batch = next(iter(run.dataset.batches("test", 50)))
    flat = flat_ids(batch.sparse, run.built.tables.features)
    wanted = run.built.tables(batch.sparse).values()
    program = torch.export.load(folder / "tables.pt2").module()
    torch.testing.assert_close(program(values=flat[0], offsets=flat[1]), wanted)
    torch.testing.assert_close(run_onnx(folder / "tables.onnx")(*flat), wanted)


def test_the_recorded_bytes_are_the_bytes_in_the_file(exported: tuple[Path, Path]):
    record = json.loads((exported[0] / "run.json").read_text())
    tensors = load_file(exported[1] / "model.safetensors")
    of_tables = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("tables."))
    assert of_tables == record["bytes"]["tables_serving"]


def test_raw_values_are_served_in_one_call(exported: tuple[Path, Path]):
    loaded, run = recemb.load(exported[1]), open_run(exported[0])
    vocabulary = pd.read_parquet(exported[1] / "vocabulary.parquet")
    feature = loaded.raw_values.features[0]
    known = vocabulary[(vocabulary["feature"] == feature) & vocabulary["value"].notna()].iloc[0]
    rows = [{feature: known["value"]}, {feature: "no such value"}, {}]
    dense, values, offsets = loaded.encode(rows)
    assert values[offsets[0, :-1]].tolist()[:2] == [known["id"], 0]
    probabilities = loaded.predict(rows)
    torch.testing.assert_close(probabilities, torch.sigmoid(loaded(dense, values, offsets)))
    assert loaded.predict(rows[0]).shape == (1,)
    vectors = loaded.look_up(rows)
    assert list(vectors) == run.built.tables.features
    assert not torch.equal(vectors[feature][0], vectors[feature][1])
    for wrong, sentence in (
        ({"colour": "red"}, "feature 'colour', which the model does not take"),
        ({1: 2}, "feature 1, which"),
        (None, "one is a NoneType"),
        (pd.DataFrame(rows), "to_dict"),
        ([], "there are no rows"),
    ):
        with pytest.raises(RecembError, match=sentence):
            loaded.predict(wrong)


def known_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of a value that training has seen, one that it has not, and nothing."""
    vocabulary = pd.read_parquet(folder / "vocabulary.parquet")
    feature = recemb.load(folder).raw_values.features[0]
    known = vocabulary[(vocabulary["feature"] == feature) & vocabulary["value"].notna()].iloc[0]
    return [{feature: known["value"]}, {feature: "no such value"}, {}]


def test_a_loaded_model_goes_through_a_pickle_and_torch_save(exported: tuple[Path, Path], tmp_path: Path):
    loaded, rows = recemb.load(exported[1]), known_rows(exported[1])
    torch.save(loaded, tmp_path / "saved.pt")
    for twin in (
        pickle.loads(pickle.dumps(loaded)),
        copy.deepcopy(loaded),
        copy.copy(loaded),
        torch.load(tmp_path / "saved.pt", weights_only=False),
    ):
        assert torch.equal(twin.predict(rows), loaded.predict(rows))
        assert twin.manifest == loaded.manifest


@pytest.mark.parametrize(("cast", "close"), [("half", 2e-3), ("bfloat16", 2e-2), ("double", 1e-6)])
def test_a_cast_model_predicts_nearly_the_same(exported: tuple[Path, Path], cast: str, close: float):
    loaded, rows = recemb.load(exported[1]), known_rows(exported[1])
    rows.append(dict.fromkeys(loaded.raw_values.dense_names, 1e6))  # past what a half can hold
    wanted, held = loaded.predict(rows), loaded.tables.serving_bytes
    found = getattr(loaded, cast)().predict(rows)
    assert found.dtype == {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}[cast]
    torch.testing.assert_close(found.double(), wanted.double(), atol=close, rtol=0)
    assert loaded.tables.serving_bytes == held


def readme_code(folder: Path, heading: str) -> str:
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"## {heading}.*?```python\n(.*?)```", text, re.DOTALL)
    assert found, text
    return found[1]


@pytest.mark.parametrize(
    ("heading", "packages"),
    [("With torch alone", ["torch"]), ("With onnxruntime alone", ["onnxruntime", "numpy"])],
)
def test_the_readme_loads_it_without_recemb(
    exported: tuple[Path, Path], tmp_path: Path, heading: str, packages: list[str]
):
    python = isolated_python(tmp_path / "venv", packages)
    absent = [name for name in ("recemb", "torchrec", "fbgemm_gpu", "torch", "onnxruntime") if name not in packages]
    code = readme_code(exported[1], heading)
    check = f"import importlib.util as u\nassert not [n for n in {absent!r} if u.find_spec(n)]\n"
    done = python(check + code, exported[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("heading", ["With recemb", "The vocabulary"])
def test_the_readme_runs_with_recemb(exported: tuple[Path, Path], heading: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(exported[1])
    exec(compile(readme_code(exported[1], heading), "README.md", "exec"), {})


def test_there_is_no_pickle_and_no_path_of_this_machine(exported: tuple[Path, Path]):
    names = {path.name for path in exported[1].iterdir()}
    assert names == {
        "model.safetensors", "tables.pt2", "model.pt2", "tables.onnx", "model.onnx", "vocabulary.parquet",
        "values.json", "example.json", "export.json", "README.md",
    }  # fmt: skip
    for path in exported[1].glob("*.pt2"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                content = archive.read(name)
                assert not content.startswith((b"\x80\x02", b"\x80\x04", b"PK")), name
                assert b'"use_pickle": true' not in content
                assert str(Path(recemb.__file__).parent).encode() not in content
    for path in exported[1].glob("*.onnx"):
        assert str(Path(recemb.__file__).parent).encode() not in path.read_bytes()


@pytest.fixture
def copied(exported: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[1], tmp_path / "copy"))


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.parquet", "values.json", "export.json"])
@pytest.mark.parametrize("harm", ["gone", "cut", "empty", "noise"])
def test_a_damaged_folder_is_refused_in_words(copied: Path, name: str, harm: str):
    path = copied / name
    content = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "noise":
        path.write_bytes(b"\x80\x04noise" + content[8:])
    with pytest.raises(RecembError):
        recemb.load(copied)
    if name != "export.json":
        with pytest.raises(RecembError):  # also where nobody compares checksums
            recemb.load(copied, verify=False)


def test_one_changed_bit_is_noticed(copied: Path):
    content = bytearray((copied / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (copied / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(RecembError, match="is not the file that was exported"):
        recemb.load(copied)


def rewritten(folder: Path, change) -> None:
    """Change the header of the weights' file, its tensors staying as they are."""
    from safetensors import safe_open

    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["recemb"])
    tensors = load_file(path)
    change(header)
    save_file(tensors, path, metadata={"recemb": json.dumps(header)})


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(schema=99),
        lambda header: header["table"].update(name="os.system"),
        lambda header: header["model"].update(name="__class__"),
        lambda header: header["layout"]["tables"][0].update(rows=10**13),
        lambda header: header["layout"]["tables"][0].update(dim=-1),
        lambda header: header["layout"]["lookups"][0].append(99),
        lambda header: header["specs"][0].update(num_embeddings="many"),
        lambda header: header["specs"].pop(),
        lambda header: header.pop("layout"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(copied: Path, change):
    rewritten(copied, change)
    with pytest.raises(RecembError):
        recemb.load(copied, verify=False)


def test_an_export_is_not_replaced_unasked_and_nothing_else_ever(
    full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "out"
    command = ["export", str(full_run), "--out", str(folder), "--to", "safetensors"]
    assert main(command) == 0
    assert not list(folder.glob("*.pt2"))
    assert main(command) == 2
    assert "holds an export already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1  # whoever may read one file may read all
    (folder / "mine.txt").write_text("keep me")
    assert main([*command, "--overwrite"]) == 2
    assert "holds mine.txt beside an export" in capsys.readouterr().err
    (folder / "mine.txt").unlink()
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary.txt").write_text("dear diary")
    assert main(["export", str(full_run), "--out", str(other), "--overwrite"]) == 2
    assert (other / "diary.txt").read_text() == "dear diary"
    assert "holds something that is no export" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert main(["export", str(full_run), "--out", str(locked / "out")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_an_export_that_goes_wrong_leaves_nothing(full_run: Path, tmp_path: Path):
    run = open_run(full_run)
    with torch.no_grad():  # the tables are exported as they are, the live model is another: what a broken writer gives
        before = export(run, tmp_path / "fine", ["safetensors"])
        assert max(before.checked.values()) < 1e-5
        forward = run.built.model.forward
        run.built.model.forward = lambda *inputs: forward(*inputs) + 0.01
        with pytest.raises(RecembError, match="off by"):
            export(run, tmp_path / "wrong", ["safetensors"])
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


def test_unknown_forms_and_runs_are_refused(full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(full_run), "--out", str(tmp_path / "a"), "--to", "pickle"]) == 2
    assert "there is no form 'pickle'" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "a")]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    assert main(["export", str(full_run), "--out", str(tmp_path / "a"), "--data", str(tmp_path)]) == 2
    assert "say where it lies with --data" in capsys.readouterr().err


def test_a_header_nested_too_deeply_is_a_sentence(tmp_path: Path):
    header = '{"a":' * 5000 + "1" + "}" * 5000
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"recemb": header})
    with pytest.raises(RecembError, match=r"damaged or no model of recemb.s .*nested too deeply"):
        load_model(tmp_path / "model.safetensors")
