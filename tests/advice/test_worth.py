"""What vectors are worth: curvature against numeric differences, noise that was drawn, planted rows."""

import numpy as np
import pytest
import torch
from planted_samples import NARROW, WIDE, Planted, prepare_planted

from recemb.advice.worth import curvatures, worth_by_labels, worth_of_trained
from recemb.config import RunConfig
from recemb.inspection.facts import inspect_dataset
from recemb.models import DLRMConfig
from recemb.plan import table_specs
from recemb.tables.auto import NOISE, learned
from recemb.tables.full import FullConfig
from recemb.training import TrainerConfig, train
from recemb.training.reopen import TrainedRun, open_run

TRAINER = TrainerConfig(
    epochs=6, batch_size=256, table_lr=0.1, patience=50, evaluations_per_epoch=1, device="cpu", eval_batch_size=2048
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return prepare_planted(tmp_path_factory.mktemp("worth") / "rows")


@pytest.fixture(scope="module")
def run(planted: Planted, tmp_path_factory: pytest.TempPathFactory, planted_is_known: None) -> TrainedRun:
    folder = tmp_path_factory.mktemp("worth") / "run"
    model = DLRMConfig(embedding_dim=8)
    train(RunConfig(dataset=planted.config, table=FullConfig(), model=model, trainer=TRAINER), folder)
    return open_run(folder)


@pytest.fixture(scope="module")
def planted_is_known():
    """Let a run of the planted rows, which are no data set of the project, be opened again."""
    from planted_samples import PlantedConfig

    from recemb.datasets import DATASETS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "planted", PlantedConfig)
        yield


def test_curvature_by_numeric_differences(run: TrainedRun):
    specs = table_specs(run.dataset.features, run.config.model)
    rows = 48
    found = curvatures(run.built, specs, run.dataset, rows, seed=3, batches=1)
    (batch,) = [next(iter(run.dataset.batches("train", rows, shuffle=True, seed=3)))]
    with torch.no_grad():
        vectors = run.built.tables(batch.sparse).values()
        probability = torch.sigmoid(run.built.model.head(batch.dense, vectors)).double().numpy()
        for index in (0, 5, len(specs) - 1):
            slopes = np.zeros((rows, 8))
            for column in range(8):
                there, back = vectors.clone(), vectors.clone()
                there[:, index * 8 + column] += 1e-2
                back[:, index * 8 + column] -= 1e-2
                change = run.built.model.head(batch.dense, there) - run.built.model.head(batch.dense, back)
                slopes[:, column] = change.double().numpy() / 2e-2
            wanted = (
                sum(p * (1 - p) * np.outer(slope, slope) for p, slope in zip(probability, slopes, strict=True)) / rows
            )
            np.testing.assert_allclose(found[index].numpy(), wanted, atol=0.05 * np.abs(wanted).max())


def test_planted_features_are_told_apart(run: TrainedRun):
    specs = table_specs(run.dataset.features, run.config.model)
    worths = dict(
        zip((spec.name for spec in specs), worth_of_trained(run.built, specs, run.dataset, 1024, 0), strict=True)
    )
    first = {name: worth.losses[:, 0].sum() / worth.total() for name, worth in worths.items()}
    # A narrow feature needs one number a value, a wide one five.
    assert min(first[name] for name in NARROW) > max(first[name] for name in WIDE)
    assert max(first[name] for name in WIDE) < 0.8
    for spec in specs:
        worth = worths[spec.name]
        assert worth.stops[-1] == spec.num_embeddings
        assert worth.losses.shape == (len(worth.stops), 8)
        assert (worth.losses >= 0).all()
        columns = worth.losses.sum(axis=0)
        assert (np.diff(columns) <= 1e-9 * columns[0]).all()


def test_worth_is_near_what_leaving_out_costs(run: TrainedRun):
    """Half of the way to the mean costs about a quarter of what the worth of a feature says, to second order."""
    specs = table_specs(run.dataset.features, run.config.model)
    worths = worth_of_trained(run.built, specs, run.dataset, 1024, 0)
    weights = run.built.tables.weights

    def loss() -> float:
        total = 0.0
        with torch.no_grad():
            for batch in run.dataset.batches("train", 8192):
                logits = run.built.model(batch.dense, batch.sparse)
                total += float(
                    torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.float(), reduction="sum")
                )
        return total

    before = loss()
    for name in (NARROW[0], WIDE[0]):
        index = [spec.name for spec in specs].index(name)
        weight, kept = weights[index], weights[index].clone()
        counts = specs[index].counts.float()
        mean = counts @ kept / counts.sum()
        with torch.no_grad():
            weight.copy_(kept + 0.2 * (mean - kept))
            away = loss()
            weight.copy_(kept - 0.2 * (mean - kept))
            further = loss()
            weight.copy_(kept)
        rise = (away + further - 2 * before) / 2 / 0.2**2  # the linear part cancels
        assert worths[index].total() == pytest.approx(rise, rel=0.4)


def test_what_is_learned_of_rare_ids_is_noise():
    """Signal and noise drawn: what leaving vectors out costs, over what it seems to, is the share that was learned."""
    random = np.random.default_rng(0)
    for count in (16.0, 30.0, 60.0, 240.0):
        signal = random.normal(size=200_000)
        seen = signal + random.normal(size=len(signal)) * np.sqrt(NOISE / count)  # what training makes of it
        costs = signal**2 - (seen - signal) ** 2  # without the vector what is missed is the signal, with it the error
        assert learned(np.array([count]))[0] == pytest.approx(costs.sum() / (seen**2).sum(), abs=0.01)
    assert learned(np.array([0.0, 2.0, NOISE])).tolist() == [1e-3, 1e-3, 1e-3]


def test_worth_by_labels_follows_what_features_tell(planted: Planted):
    specs = table_specs(planted.dataset.features, DLRMConfig(embedding_dim=4))
    facts = inspect_dataset(planted.dataset, embedding_dim=4, progress=False)
    worths = dict(zip((spec.name for spec in specs), worth_by_labels(specs, facts), strict=True))
    # Alone a wide feature tells nothing; it keeps a share, since with others it may.
    assert min(worths[name].total() for name in NARROW) > 10 * max(worths[name].total() for name in WIDE)
    assert min(worths[name].total() for name in WIDE) > 0
