"""Runs of several stages: what they leave, that they go on where they were broken off, and end as if they had not."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import recemb, start
from parameters import mostly_wide
from pruned_samples import masked_full

from recemb import CompressedEmbeddingBagCollection
from recemb.cli import main
from recemb.datasets import PreparedDataset, SyntheticConfig, prepare
from recemb.models import DLRMConfig
from recemb.plan import table_specs
from recemb.tables.optembed import OptEmbedConfig, OptEmbedTable
from recemb.tables.structure import Structure
from recemb.training.build import dense_sample
from recemb.training.checkpoint import load_weights

SMALL = ["trainer.batch_size=512", "trainer.epochs=2", "trainer.evaluations_per_epoch=2", "model.embedding_dim=8"]
SEARCH = ["table.rounds=3", "table.mutants=3", "table.crossovers=3", "table.parents=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("some data") / "rows"
    prepare(SyntheticConfig(rows=8000, path=str(path)), progress=False)
    return path


def arguments(data: Path, folder: Path, method: str, *more: str) -> list[str]:
    search = SEARCH if method == "optembed" else []
    return ["train", f"dataset.path={data}", f"table={method}", f"hydra.run.dir={folder}", *SMALL, *search, *more]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module", params=["optembed", "pep", "magnitude"])
def whole(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A method, and the folder of an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("a run") / request.param
    assert main(arguments(data, folder, request.param, "budget=1/4")) == 0
    return request.param, folder


STAGES = {
    "optembed": ["supernet", "search", "retrain"],
    "pep": ["prune", "retrain"],
    "magnitude": ["prune", "finetune"],
}


def test_a_run_leaves_one_record_of_all_stages(whole: tuple[str, Path]):
    method, folder = whole
    record = record_of(folder)
    assert record["status"] == "completed"
    assert [stage["name"] for stage in record["stages"]] == STAGES[method]
    assert record["stages"][0]["training"]["steps"] > 0
    assert record["bytes"]["tables_serving"] <= record["bytes"]["tables_full"] / 4
    assert record["bytes"]["tables_serving"] > 0.9 * record["bytes"]["tables_full"] / 4
    assert record["bytes"]["tables_training"] >= record["bytes"]["tables_full"]
    kept = record["structure"]["per_table"]
    assert record["structure"]["pruned_ids"] == "zero"
    assert sum(table["kept"] for table in kept.values()) < sum(table["ids"] for table in kept.values())
    frame = pd.read_parquet(folder / "kept.parquet")
    assert frame.groupby("table", observed=True).size().to_dict() == {name: t["kept"] for name, t in kept.items()}
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("events")) == [
        "checkpoint", "config.yaml", "kept.parquet", "predictions.parquet", "run.json",
    ]  # fmt: skip
    if method == "optembed":
        search = record["stages"][1]
        assert search["best"] == max(auc for _, auc in search["history"])
        assert search["evaluated"] == search["history"][-1][0]


@pytest.mark.parametrize("pruned", ["zero", "shared"])
def test_packed_logits_are_those_of_the_masked_model(data: Path, tmp_path: Path, pruned: str):
    """The best weights, read back into the packed model; and unpacked into full tables, masked."""
    assert main(arguments(data, tmp_path, "optembed", "budget=1/4", f"table.pruned={pruned}")) == 0
    dataset = PreparedDataset.open(str(data))
    backbone = DLRMConfig(embedding_dim=8)
    specs = table_specs(dataset.features, backbone)
    structure = Structure.load(tmp_path / "kept.parquet", specs)
    packed = OptEmbedTable(OptEmbedConfig(pruned=pruned), specs, structure.layout(specs))
    tables = CompressedEmbeddingBagCollection(specs, packed)
    model = backbone.build(tables, dense_sample(dataset))
    load_weights(model, tmp_path / "checkpoint")
    full = []
    for spec, ids, weight in zip(specs, structure.kept, tables.weights, strict=True):
        unpacked = torch.randn(spec.num_embeddings, 8)  # what is dropped may hold anything
        unpacked[torch.as_tensor(ids), : weight.shape[1]] = weight.detach()
        full.append(unpacked)
    masked = backbone.build(masked_full(specs, full, structure, pruned), dense_sample(dataset))
    dense = {name: value for name, value in model.state_dict().items() if ".embedding_bag_collection." not in name}
    assert not masked.load_state_dict(dense, strict=False).unexpected_keys
    found = []
    with torch.no_grad():
        for batch in dataset.batches("test", 500):
            packed_logits = model(batch.dense, batch.sparse)
            torch.testing.assert_close(packed_logits, masked(batch.dense, batch.sparse), atol=1e-6, rtol=0)
            found.append(torch.sigmoid(packed_logits).numpy())
    stored = pd.read_parquet(tmp_path / "predictions.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(np.concatenate(found), stored, atol=1e-6)


def killed_when(arrives: Path, command: list[str], cwd: Path) -> None:
    """Start a run, and kill it without warning as soon as a file or folder is there."""
    process = start(*command, cwd=cwd)
    deadline = time.monotonic() + 120
    while not arrives.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"


@pytest.mark.parametrize(
    "moment", mostly_wide(["stages/supernet", "stages/search.jsonl", "kept.parquet", "checkpoint"], "kept.parquet")
)
def test_a_killed_run_goes_on_and_ends_the_same(moment: str, data: Path, tmp_path: Path):
    """Killed while or after each stage, then resumed, against the same run left alone: same structure, same metrics."""
    alone, broken = tmp_path / "alone", tmp_path / "broken off"
    assert main(arguments(data, alone, "optembed", "budget=1/4")) == 0
    command = arguments(data, broken, "optembed", "budget=1/4")
    killed_when(broken / moment, command, tmp_path)
    assert record_of(broken)["status"] == "running"
    before = [stage["name"] for stage in record_of(broken).get("stages", [])]
    seconds = [stage["seconds"] for stage in record_of(broken).get("stages", [])]
    assert main([*command, "resume=true"]) == 0
    ours, theirs = record_of(broken), record_of(alone)
    assert ours["metrics"] == theirs["metrics"]
    assert ours["structure"] == theirs["structure"]
    assert [stage["seconds"] for stage in ours["stages"]][: len(before)] == seconds  # not done again
    assert "resume" not in ours["command"]
    pd.testing.assert_frame_equal(
        pd.read_parquet(broken / "predictions.parquet"), pd.read_parquet(alone / "predictions.parquet")
    )


@pytest.mark.wide
def test_a_search_goes_on_with_what_it_has_evaluated(data: Path, tmp_path: Path):
    command = arguments(data, tmp_path, "optembed", "budget=1/4")
    assert main(command) == 0
    wanted = record_of(tmp_path)
    record = {**wanted, "status": "interrupted", "stages": wanted["stages"][:1]}
    # The supernet's weights are gone with the finished run: make them anew in a run that is stopped after them.
    shutil.rmtree(tmp_path / "checkpoint")
    (tmp_path / "run.json").write_text(json.dumps({**record, "stages": []}))
    killed_when(tmp_path / "stages" / "search.jsonl", [*command, "resume=true"], tmp_path)
    lines = (tmp_path / "stages" / "search.jsonl").read_text().splitlines()
    (tmp_path / "stages" / "search.jsonl").write_text("\n".join([*lines, '{"widths": [1, 2']))  # cut short
    assert main([*command, "resume=true"]) == 0
    assert record_of(tmp_path)["stages"][1]["widths"] == wanted["stages"][1]["widths"]
    assert record_of(tmp_path)["metrics"] == wanted["metrics"]


def test_a_completed_run_is_left_alone(whole: tuple[str, Path], data: Path):
    method, folder = whole
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(arguments(data, folder, method, "budget=1/4", "resume=true")) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_run_of_other_options_is_not_gone_on_with(
    whole: tuple[str, Path], data: Path, capsys: pytest.CaptureFixture[str]
):
    method, folder = whole
    assert main(arguments(data, folder, method, "budget=1/4", "trainer.lr=0.5", "resume=true")) == 2
    assert "has trainer.lr=0.003, not 0.5; give its own options" in capsys.readouterr().err
    assert record_of(folder)["status"] == "completed"
    assert main(arguments(data, folder, method, "budget=1/4", "resume=true", "overwrite=true")) == 2
    assert "contradict each other" in capsys.readouterr().err


def test_an_empty_folder_is_simply_run(data: Path, tmp_path: Path):
    assert main(["train", f"dataset.path={data}", "resume=true", f"hydra.run.dir={tmp_path}/new", *SMALL]) == 0
    assert record_of(tmp_path / "new")["status"] == "completed"


def test_stages_are_announced(data: Path, tmp_path: Path):
    command = arguments(data, tmp_path, "optembed", "budget=1/4")
    done = recemb(*command, cwd=tmp_path)
    assert done.returncode == 0
    told = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("stage ")]
    assert told == [
        "stage 1 of 3: supernet; then search, retrain", "stage 2 of 3: search; then retrain", "stage 3 of 3: retrain",
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["optembed", "pep", "magnitude"])
def test_without_a_budget_nothing_is_started(
    method: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments(data, tmp_path, method)) == 2
    assert "a pruned table needs a budget" in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()


def test_the_paper_s_mode_runs_without_a_budget(data: Path, tmp_path: Path):
    assert main(arguments(data, tmp_path, "optembed", "table.mode=paper", "table.per=row")) == 0
    record = record_of(tmp_path)
    assert record["budget"] is None
    assert record["kept"] < 1


@pytest.mark.wide
@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_a_stage_whose_weights_are_damaged_is_done_again(damage: str, data: Path, tmp_path: Path):
    command = arguments(data, tmp_path, "optembed", "budget=1/4")
    killed_when(tmp_path / "stages" / "search.jsonl", command, tmp_path)
    if damage == "removed":
        shutil.rmtree(tmp_path / "stages")
    else:
        for file in (tmp_path / "stages" / "supernet").iterdir():
            file.write_bytes(file.read_bytes()[:100])
        with (tmp_path / "stages" / "search.jsonl").open("a") as journal:
            journal.write('{"widths": [99, 1], "auc": 2.0}\n')
    assert main([*command, "resume=true"]) == 0
    record = record_of(tmp_path)
    assert record["status"] == "completed"
    assert [stage["name"] for stage in record["stages"]] == ["supernet", "search", "retrain"]
    assert record["stages"][1]["best"] <= 1


def test_candidates_need_rows_of_both_classes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(arguments(data, tmp_path, "optembed", "budget=1/4", "table.search_rows=1")) == 2
    assert "the 1 validation rows that candidates are judged by are all of one class" in capsys.readouterr().err


@pytest.mark.wide
def test_seconds_are_those_of_all_stages(data: Path, tmp_path: Path):
    command = arguments(data, tmp_path, "optembed", "budget=1/4")
    killed_when(tmp_path / "kept.parquet", command, tmp_path)
    assert main([*command, "resume=true"]) == 0
    record = record_of(tmp_path)
    assert record["seconds"] >= sum(stage["seconds"] for stage in record["stages"]) - 0.01
