"""What TensorBoard is given of tables, read back with its own reader: norms, what pruning leaves, the projector."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from movielens_samples import MovieLens1MConfig, make, write
from tables_samples import VARIANTS, Variant, make_specs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from together import training
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, get_table
from recemb.cli import main
from recemb.datasets import PreparedDataset, SyntheticConfig, prepare
from recemb.datasets.raw_values import RawValues
from recemb.tables.base import total_full_bytes
from recemb.tables.pruned import PrunedConfig
from recemb.training import tensorboard
from recemb.training.reopen import open_run
from recemb.training.tensorboard import kept_shares, pruned_share, vectors_of

SMALL = ["trainer.batch_size=512", "trainer.epochs=2", "trainer.evaluations_per_epoch=2", "model.embedding_dim=8"]
CPU = torch.device("cpu")
EVERYTHING = {"histograms": 0, "scalars": 0, "tensors": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("some data") / "rows"
    prepare(SyntheticConfig(rows=6000, path=str(path)), progress=False)
    return path


@pytest.fixture(scope="module")
def pruned_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run") / "magnitude"
    options = ["table=magnitude", "budget=1/8", "trainer.projector=C3", *SMALL]
    assert main(["train", f"dataset.path={data}", f"hydra.run.dir={folder}", *options]) == 0
    return folder


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()


def projected(folder: Path, feature: str) -> tuple[np.ndarray, list[list[str]]]:
    """The vectors and the lines of metadata that the projector's config leads to."""
    config = (folder / "projector" / "projector_config.pbtxt").read_text()
    paths = [line.split('"')[1] for line in config.splitlines() if "_path" in line]
    assert len(paths) == 2
    assert all(feature in path for path in paths)
    metadata, tensors = (folder / "projector" / path for path in paths)
    lines = [line.split("\t") for line in metadata.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == ["value", "count", "id"]
    return np.loadtxt(tensors, delimiter="\t", ndmin=2), lines[1:]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("max_length", [1, None])
def test_single_ids_are_looked_up_below_every_method(variant: Variant, max_length: int | None):
    specs = make_specs(dim=8, max_length=max_length)
    table = variant.config().fit(specs, total_full_bytes(specs) // 4)
    tables = [table, table.pruning_table(specs)] if isinstance(table, PrunedConfig) else [table]
    for one in tables:
        collection = CompressedEmbeddingBagCollection(specs, one, optimizer=FusedOptimizer()).eval()
        ids = {"city": torch.tensor([0, 306, 17, 17]), "gender": torch.tensor([2])}
        found = vectors_of(collection, ids, CPU)
        assert {name: len(vectors) for name, vectors in found.items()} == {"city": 4, "gender": 1}
        for name, vectors in found.items():
            for number, vector in zip(ids[name].tolist(), vectors, strict=True):
                lengths = torch.tensor([int(feature == name) for feature in collection.features])
                bag = KeyedJaggedTensor(keys=collection.features, values=torch.tensor([number]), lengths=lengths)
                torch.testing.assert_close(collection(bag)[name][0], vector)


def test_pruned_floats_are_those_that_are_zero_or_the_unknowns():
    vectors = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0], [1.0, 2.0]])
    assert pruned_share(vectors) == 5 / 8
    assert pruned_share(vectors[:1]) == 0
    assert pruned_share(torch.ones(4, 2)) == 6 / 8


def test_kept_shares_are_those_of_tables_that_share_nothing():
    specs = make_specs(dim=8)
    own = CompressedEmbeddingBagCollection(specs, get_table("hashing").config(rows=100, threshold=0))
    held = zip(specs, own.method.layout.tables, strict=True)
    assert kept_shares(own) == {spec.name: table.rows / spec.num_embeddings for spec, table in held}
    shared = get_table("multiplexed").config(rows=100, threshold=400)
    assert kept_shares(CompressedEmbeddingBagCollection(specs, shared)) == {"gender": 1, "city": 1}


def test_a_run_shows_norms_at_every_evaluation_of_every_stage(pruned_run: Path):
    events = events_of(pruned_run)
    run = open_run(pruned_run)
    histograms = events.Tags()["histograms"]
    for spec in run.specs:
        for stage in ("prune/", ""):
            tag = f"{stage}norms/{spec.name}"
            assert tag in histograms
            of_stage = events.Scalars(f"{stage}valid/logloss")
            shown = events.Histograms(tag)
            assert [one.step for one in shown] == [one.step for one in of_stage]
            assert {one.histogram_value.num for one in shown} == {min(spec.num_embeddings, 2048)}
    best = next(one for one in events.Histograms("norms/C1") if one.step == run.record["training"]["best_step"])
    ids = {"C1": torch.arange(run.specs[0].num_embeddings)}
    norms = vectors_of(run.built.tables, ids, CPU)["C1"].norm(dim=1)
    assert best.histogram_value.sum == pytest.approx(float(norms.sum()), rel=1e-5)
    assert best.histogram_value.max == pytest.approx(float(norms.max()), rel=1e-5)


def test_what_pruning_leaves_is_what_the_record_says(pruned_run: Path):
    events, record = events_of(pruned_run), json.loads((pruned_run / "run.json").read_text())
    shares = []
    for name, table in record["structure"]["per_table"].items():
        assert table["ids"] <= 2048  # so that none is left out
        kept = table["kept"] * table["width"] / (table["ids"] * table["dim"])
        last = events.Scalars(f"pruned/{name}")[-1].value
        # A row that is kept may have been zero all along, where no training row reads it.
        assert last == pytest.approx(1 - kept, abs=1e-6)
        shares.append(last)
        (shown,) = events.Scalars(f"kept/{name}")
        full = table["ids"] * table["dim"] * 4
        assert shown.value == pytest.approx(record["bytes"]["per_table"][name] / full)
    assert max(shares) > 0.5
    histogram = events.Histograms("tables/pruned_by_feature")[-1].histogram_value
    assert (histogram.num, histogram.max) == (len(shares), pytest.approx(max(shares)))
    first, *_, last = events.Scalars("prune/pruned/C3")
    assert first.value < last.value  # more and more, while training


def test_a_method_that_does_not_prune_shows_no_pruning(data: Path, tmp_path: Path):
    options = ["table=multiplexed", "budget=1/4", "model=dcn_v2", *SMALL]
    assert main(["train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}/run", *options]) == 0
    events = events_of(tmp_path / "run")
    tags = events.Tags()
    assert sum(tag.startswith("norms/") for tag in tags["histograms"]) == 26
    assert not [tag for tag in tags["histograms"] + tags["scalars"] if "pruned" in tag]
    assert not (tmp_path / "run" / "projector").exists()


def test_vectors_are_those_of_evaluation(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some methods look up at random widths while they train."""
    modes = []

    def noting(collection: CompressedEmbeddingBagCollection, *rest: Any) -> dict[str, torch.Tensor]:
        modes.append(collection.training)
        return vectors_of(collection, *rest)

    monkeypatch.setattr(tensorboard, "vectors_of", noting)
    options = ["trainer.steps=2", "trainer.projector=C1", *SMALL]
    assert main(["train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}/run", *options]) == 0
    assert modes == [False, False]  # at the end of the steps, and of the run


def test_the_projector_has_the_served_vectors_and_raw_values(pruned_run: Path, data: Path):
    vectors, lines = projected(pruned_run, "C3")
    run, dataset = open_run(pruned_run), PreparedDataset.open(data)
    feature = next(one for one in dataset.features if one.name == "C3")
    ids = torch.arange(feature.num_embeddings)
    np.testing.assert_allclose(vectors, vectors_of(run.built.tables, {"C3": ids}, CPU)["C3"], rtol=1e-4, atol=1e-6)
    assert [int(line[2]) for line in lines] == ids.tolist()
    assert [int(line[1]) for line in lines] == feature.counts.tolist()
    assert lines[0][0] == "(unknown)"
    values = [None if line[0] == "(missing)" else line[0] for line in lines[1:]]
    assert RawValues.of(dataset).ids("C3", values).tolist() == ids[1:].tolist()


def test_the_projector_takes_the_most_frequent_ids_of_bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensorboard, "PROJECTED_IDS", 5)
    source = write(tmp_path / "ml", make(1500))
    path = tmp_path / "rows"
    dataset = prepare(MovieLens1MConfig(source=source, path=str(path), genres=True, min_count=1), progress=False)
    options = ["dataset=movielens_1m", "dataset.genres=true", "dataset.min_count=1", f"dataset.path={path}"]
    run = [f"hydra.run.dir={tmp_path}/run", "trainer.projector=genres", "trainer.steps=2", *SMALL]
    assert main(["train", *options, "table=mixed_dimension", "table.threshold=5", "budget=1/2", *run]) == 0
    vectors, lines = projected(tmp_path / "run", "genres")
    assert vectors.shape == (5, 8)
    assert [line[0] for line in lines[1:]] == RawValues.of(dataset).texts("genres", 4)
    # It goes with the run it belongs to.
    assert main(["train", *options, *run, "overwrite=true", "trainer.projector=null"]) == 0
    assert not (tmp_path / "run" / "projector").exists()


def test_what_an_earlier_try_left_is_replaced(tmp_path: Path):
    for feature, step in (("C1", 7), ("C2", 9)):
        tensorboard._write_projector(tmp_path / "projector", feature, torch.eye(2), [("a", 3, 0), ("b", 1, 1)], step)
    vectors, lines = projected(tmp_path, "C2")
    np.testing.assert_array_equal(vectors, np.eye(2))
    assert lines == [["a", "3", "0"], ["b", "1", "1"]]
    assert not list((tmp_path / "projector").glob("*/C1"))


@pytest.mark.parametrize(("text", "cell"), [("a\tb\nc", "a b c"), ("", "''"), (" ", "' '"), ("ü", "ü")])
def test_a_value_stays_in_its_cell(text: str, cell: str):
    assert tensorboard._in_a_cell(text) == cell


def test_an_unknown_feature_is_told_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}/run"]
    assert main([*arguments, "trainer.projector=C99"]) == 2
    said = capsys.readouterr().err
    assert "trainer.projector=C99 is no categorical feature of the data set; choose one of C1, C2, C3" in said
    assert main([*arguments, "trainer.projector=I1"]) == 2
    assert not (tmp_path / "run" / "run.json").exists()


def test_raw_ids_have_no_most_frequent_ones(data: Path):
    dataset = PreparedDataset.open(data)
    dataset.__dict__["features"] = [dataclasses.replace(one, raw=True) for one in dataset.features]
    with pytest.raises(tensorboard.RecembError, match="which are not known without a vocabulary; prepare"):
        tensorboard.check_projector("C1", dataset)


def test_sharded_tables_show_the_same(data: Path, tmp_path: Path):
    """All processes look up, and one writes, while the next batches wait in torchrec's pipeline."""
    options = ["table=compositional", "budget=1/4", "trainer.projector=C3", f"dataset.path={data}", *SMALL]
    sharding = ["trainer.sharding=row_wise", "trainer.pipeline=true"]
    training(2, *options, *sharding, f"hydra.run.dir={tmp_path}/two").run(tmp_path)
    run = open_run(tmp_path / "two")
    vectors, lines = projected(tmp_path / "two", "C3")
    wanted = vectors_of(run.built.tables, {"C3": torch.arange(len(lines))}, CPU)["C3"]
    np.testing.assert_allclose(vectors, wanted, rtol=1e-4, atol=1e-6)
    events = events_of(tmp_path / "two")
    assert len(events.Histograms("norms/C3")) == 4
