"""Working one batch ahead: the same training, ids turned into rows by another thread, and nothing left behind."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from parameters import mostly_wide
from tables_samples import VARIANTS, Variant, make_batch, make_specs

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError
from recemb.cli import main
from recemb.datasets import Batch, SyntheticConfig, prepare
from recemb.tables.base import total_full_bytes
from recemb.tables.looking_up import Ask
from recemb.training.ahead import Ahead

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("some data") / "rows"
    prepare(SyntheticConfig(rows=6000, path=str(path)), progress=False)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each thread has turned ids into rows for training."""
    counts: Counter[str] = Counter()
    forward = Ask.forward

    def counting(self, features):
        if features.stride() == 256:
            counts[threading.current_thread().name.rstrip("_0123456789")] += 1
        return forward(self, features)

    monkeypatch.setattr(Ask, "forward", counting)
    return counts


def train(data: Path, folder: Path, *options: str) -> dict:
    small = ["trainer.batch_size=256", "trainer.epochs=1", "trainer.evaluations_per_epoch=2", "model.embedding_dim=8"]
    assert main(["train", f"dataset.path={data}", "budget=1/4", f"hydra.run.dir={folder}", *small, *options]) == 0
    return json.loads((folder / "run.json").read_text())


def ahead_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("ahead")]


@pytest.mark.parametrize("name", mostly_wide(["hashing", "mixed_dimension", "pep", "optembed"], "mixed_dimension"))
def test_a_run_is_the_same_to_the_last_bit(name: str, data: Path, tmp_path: Path, asked: Counter[str]):
    search = (
        ["table.rounds=1", "table.mutants=2", "table.crossovers=1", "table.parents=2"] if name == "optembed" else []
    )
    train(data, tmp_path / "waiting", f"table={name}", *search)
    steps = asked.pop("MainThread")
    assert not asked
    train(data, tmp_path / "ahead", f"table={name}", "trainer.pipeline=true", *search)
    assert asked == {"ahead": steps}  # by nobody else, or what was read ahead is not used
    one, other = (pd.read_parquet(tmp_path / run / "predictions.parquet") for run in ("waiting", "ahead"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert not ahead_threads()


def test_nothing_is_left_after_an_early_stop(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left: list[str] = []
    monkeypatch.setattr("recemb.training.trainer.load_weights", lambda *_: left.extend(ahead_threads()))
    options = [
        "trainer.pipeline=true",
        "trainer.patience=1",
        "trainer.table_lr=3",
        "trainer.lr=0.3",
        "trainer.epochs=9",
    ]
    record = train(data, tmp_path / "run", "table=full", *options, "trainer.epochs=12")
    assert record["training"]["stopped"] == "early"
    assert not left


def batches(bad: int | None = None) -> Iterator[Batch]:
    for number in range(4):
        sparse = make_batch(make_specs(max_length=1), bags=9 - number, seed=number, empty=False)
        if number == bad:
            sparse.values()[0] = 10**6
        yield Batch(torch.zeros(9 - number, 1), sparse, torch.zeros(9 - number))


@pytest.mark.parametrize("method", VARIANTS, ids=lambda variant: variant.name)
def test_every_method_gives_the_same(method: Variant):
    specs = make_specs(max_length=1)
    config = method.config().fit(specs, total_full_bytes(specs) // 4)
    one, other = (CompressedEmbeddingBagCollection(specs, config, optimizer=FusedOptimizer()) for _ in range(2))
    ahead, waiting = Ahead([one], CPU), batches()
    for batch in batches():
        ready = ahead.take(waiting)
        assert ready is not None
        vectors = [one(ready.sparse).values(), other(batch.sparse).values()]
        assert torch.equal(*vectors)
        for found in vectors:
            found.square().sum().backward()
    assert ahead.take(waiting) is None
    ahead.close()


def test_a_mistake_arrives_with_its_batch():
    specs = make_specs(max_length=1)
    tables = CompressedEmbeddingBagCollection(specs, VARIANTS[0].config(), optimizer=FusedOptimizer())
    ahead, waiting = Ahead([tables], CPU), batches(bad=2)
    assert ahead.take(waiting) is not None
    assert ahead.take(waiting) is not None
    with pytest.raises(RecembError, match="id 1000000 is out of range"):
        ahead.take(waiting)
    ahead.close()
    assert not ahead_threads()


def test_other_features_than_those_expected_are_asked_anew():
    specs = make_specs(max_length=1)
    tables = CompressedEmbeddingBagCollection(specs, VARIANTS[0].config(), optimizer=FusedOptimizer())
    first, second = (make_batch(specs, bags=5, seed=seed) for seed in (0, 1))
    expected = tables(second).values()
    tables.expect(first, tables.ask(first))
    assert torch.equal(tables(second).values(), expected)
