"""Trained tables made smaller: near to what they were, right to the method's claim, and a run of their own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tables_samples import make_specs

from recemb import TableSpec
from recemb.cli import main
from recemb.packing.compress import compress_run, full_vectors
from recemb.packing.serving import ServingTables
from recemb.tables.frequency import FrequencyConfig
from recemb.tables.low_rank import LowRankConfig
from recemb.tables.projection import factorized
from recemb.tables.registry import approximating_methods, config_from_dict
from recemb.training.reopen import open_run, read_record


def vectors_of(specs: list[TableSpec], seed: int = 0) -> list[torch.Tensor]:
    """Vectors whose directions matter unequally, as those of trained tables do."""
    random = torch.Generator().manual_seed(seed)
    fall = 0.7 ** torch.arange(16)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=random))[0]
    return [(torch.randn(spec.num_embeddings, 16, generator=random) * fall) @ turn for spec in specs]


def error_of(method: str, share: float, precision: str = "fp32") -> float:
    """Mean squared error of approximated vectors, ids weighted by frequency, relative to their mean square."""
    specs = make_specs()
    for spec in specs:
        spec.precision = precision
    vectors = vectors_of(specs)
    config = config_from_dict({"name": method}).fit(specs, int(share * sum(spec.full_bytes for spec in specs)))
    made = config.approximate(specs, vectors)
    served = ServingTables(made.method, made.weights)
    assert served.serving_bytes <= share * sum(spec.full_bytes for spec in specs)
    off = total = 0.0
    for spec, wanted, found in zip(specs, vectors, full_vectors(served), strict=True):
        off += float(((found - wanted).square().sum(dim=1) * spec.popularity).sum())
        total += float((wanted.square().sum(dim=1) * spec.popularity).sum())
    return off / total


@pytest.mark.parametrize("method", approximating_methods())
def test_the_whole_budget_gives_the_vectors_back(method: str):
    assert error_of(method, 1.0) < 1e-10


@pytest.mark.parametrize("method", [name for name in approximating_methods() if name != "full"])
def test_more_bytes_are_nearer(method: str):
    errors = [error_of(method, share) for share in (1 / 12, 1 / 4, 1 / 2)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < 1.0


def test_widths_by_popularity_beat_one_width_for_all():
    assert error_of("mixed_dimension", 1 / 5) < 0.7 * error_of("low_rank", 1 / 5)


def test_cheaper_numbers_leave_bytes_for_more_of_them():
    assert error_of("mixed_dimension", 1 / 6, "int8") < 0.7 * error_of("mixed_dimension", 1 / 6)


def test_factors_are_the_weighted_singular_vectors():
    random = np.random.default_rng(0)
    vectors, weights = random.normal(size=(60, 8)), random.uniform(1, 50, size=60)
    root = np.sqrt(weights)[:, None]
    _, _, right = np.linalg.svd(root * vectors, full_matrices=False)
    best = vectors @ right[:3].T @ right[:3]
    rows, matrix = factorized(torch.from_numpy(vectors).float(), torch.from_numpy(weights), 3)
    np.testing.assert_allclose((rows @ matrix).numpy(), best, atol=1e-5)
    assert float(matrix.square().mean()) == pytest.approx(1 / 3)
    # No other projection of the same rank is nearer, that of plain singular vectors included.
    _, _, plain = np.linalg.svd(vectors, full_matrices=False)
    errors = [(weights[:, None] * (vectors @ v[:3].T @ v[:3] - vectors) ** 2).sum() for v in (right, plain)]
    assert errors[0] < errors[1]


def test_rare_ids_share_the_mean_of_their_vectors():
    counts = torch.tensor([3, 9, 5, 1, 0])
    spec = TableSpec(name="a", num_embeddings=5, embedding_dim=4, counts=counts)
    vectors = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    made = FrequencyConfig(keep=2).approximate([spec], [vectors])
    (rows,) = made.weights
    torch.testing.assert_close(rows[1:], vectors[1:3])
    weights = torch.tensor([4.0, 2.0, 1.0])  # of ids 0, 3 and 4
    torch.testing.assert_close(rows[0], (weights.unsqueeze(1) * vectors[[0, 3, 4]]).sum(0) / 7)


@pytest.fixture(scope="module")
def made(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smaller") / "a run"
    command = ["compress", str(full_run), "--out", str(folder), "--table", "magnitude", "--budget", "1/6"]
    assert main([*command, "--precision", "int8", "table.unit=entry"]) == 0
    return folder


def test_the_result_is_a_run_that_opens_and_exports(full_run: Path, made: Path, tmp_path: Path):
    before, record = read_record(full_run), read_record(made)
    assert record["method"] == "magnitude"
    assert record["config"]["table"]["unit"] == "entry"
    assert record["bytes"]["tables_serving"] <= before["bytes"]["tables_full"] / 6
    assert record["compressed"]["metrics"]["test"]["auc"] == pytest.approx(before["metrics"]["test"]["auc"], abs=1e-7)
    change = record["compressed"]["change"]["auc"]
    assert change["mean"] == pytest.approx(record["metrics"]["test"]["auc"] - before["metrics"]["test"]["auc"])
    assert change["low"] < change["mean"] < change["high"]
    run = open_run(made)
    assert run.built.tables.kept == pytest.approx(record["kept"])
    assert main(["export", str(made), "--out", str(tmp_path / "out"), "--to", "safetensors"]) == 0
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert manifest["bytes"]["tables_serving"] == record["bytes"]["tables_serving"]
    assert main(["report", str(made.parent), "--out", str(tmp_path / "report")]) == 0


def test_another_precision_keeps_the_structure(packed_run: Path, tmp_path: Path):
    assert main(["compress", str(packed_run), "--out", str(tmp_path / "a"), "--precision", "int4"]) == 0
    before, after = open_run(packed_run), open_run(tmp_path / "a")
    layouts = [run.built.tables.method.layout for run in (before, after)]
    assert [table[:3] for table in layouts[0].tables] == [table[:3] for table in layouts[1].tables]
    assert after.record["bytes"]["tables_serving"] < before.record["bytes"]["tables_serving"]
    assert abs(after.record["compressed"]["change"]["auc"]["mean"]) < 0.05


def test_finetuning_trains_for_so_many_steps(full_run: Path, tmp_path: Path):
    command = ["compress", str(full_run), "--table", "frequency", "--budget", "1/8"]
    assert main([*command, "--out", str(tmp_path / "plain")]) == 0
    assert main([*command, "--out", str(tmp_path / "tuned"), "--finetune", "13", "--lr-factor", "0.5"]) == 0
    plain, tuned = read_record(tmp_path / "plain"), read_record(tmp_path / "tuned")
    assert tuned["training"]["steps"] == 13
    assert "steps" not in plain["training"]
    valid = [one["metrics"]["valid"]["logloss"] for one in (plain, tuned)]
    assert valid[1] <= valid[0]  # what it starts from counts as well
    assert tuned["compressed"]["finetuning"] == {"steps": 13, "lr_factor": 0.5}
    assert tuned["config"]["trainer"] == plain["config"]["trainer"]
    assert (tuned["config"]["compressed"], plain["config"]["compressed"]) == ("full, 13 steps", "full")


def test_compressing_twice_names_the_first_run_and_repeats(full_run: Path, tmp_path: Path):
    run = open_run(full_run)
    first = compress_run(run, tmp_path / "a", table=LowRankConfig(), budget="1/4")
    again = compress_run(run, tmp_path / "b", table=LowRankConfig(), budget="1/4")
    assert first["metrics"] == again["metrics"]
    second = compress_run(open_run(tmp_path / "a"), tmp_path / "c", precision="int8")
    assert second["config"]["compressed"] == "full"
    assert second["bytes"]["tables_serving"] < first["bytes"]["tables_serving"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing is asked for"),
        (["--table", "hashing", "--budget", "1/4"], "table=hashing cannot be made from trained tables"),
        (["--table", "nothing"], "there is no table method 'nothing'"),
        (["--table", "low_rank", "--budget", "1/4000"], "the least possible is"),
        (["--table", "low_rank", "--budget", "much"], "budget=much is not a budget"),
        (["--precision", "int3"], "precision=int3 is not known"),
        (["--precision", "int8", "--budget", "1/8"], "a budget needs a --table"),
        (["--precision", "int8", "table.unit=row"], "name the table with --table"),
        (["--table", "pq"], "nothing says how small"),
        (["--table", "magnitude", "table.unit=row"], "needs a budget"),
        (["--table", "magnitude", "--budget", "1/8", "unit=row"], "are given as table.name=value"),
        (["--table", "magnitude", "--budget", "1/8", "table.colour=red"], "colour"),
        (["--precision", "int8", "--finetune", "-3"], "must be 0 or more"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(
    full_run: Path, tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["compress", str(full_run), "--out", str(tmp_path / "a"), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_the_run_itself_is_never_overwritten(full_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compress", str(full_run), "--out", str(full_run), "--precision", "int8", "--overwrite"]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert read_record(full_run)["config"]["precision"] == "fp32"


def test_an_earlier_result_is_not_replaced_unasked(made: Path, full_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compress", str(full_run), "--out", str(made), "--precision", "int8"]) == 2
    assert "already holds a completed run" in capsys.readouterr().err
