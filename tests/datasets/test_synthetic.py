from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from recemb.datasets import DATASETS, SyntheticCatalogConfig, SyntheticConfig, prepare
from recemb.datasets.synthetic import SyntheticRows
from recemb.options import RecembError


def rows_of(chunk_rows=1 << 15, **options):
    """Return all raw rows as a list of columns, missing tokens as -1, with the probability last."""
    source = SyntheticRows(SyntheticConfig(**options), chunk_rows)
    with ThreadPoolExecutor(2) as pool:
        chunks = list(source.chunks(pool))
    columns = [np.concatenate([chunk.labels for chunk in chunks])]
    columns += [np.concatenate([chunk.dense[j] for chunk in chunks]) for j in range(13)]
    for f in range(26):
        columns.append(
            np.concatenate(
                [
                    np.where(
                        False if chunk.missing[f] is None else chunk.missing[f], -1, chunk.tokens[f].astype(np.int64)
                    )
                    for chunk in chunks
                ]
            )
        )
    return [*columns, np.concatenate([chunk.probability for chunk in chunks])]


@pytest.fixture(scope="module")
def raw():
    return rows_of(rows=60_000, seed=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    config = SyntheticConfig(path=str(tmp_path_factory.mktemp("synthetic") / "out"), rows=60_000, seed=5, min_count=1)
    return prepare(config, progress=False)


def test_rows_do_not_depend_on_how_they_are_cut(raw):
    for one, other in zip(raw, rows_of(chunk_rows=777, rows=60_000, seed=5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_seed_gives_other_rows(raw):
    other = rows_of(rows=60_000, seed=6)
    assert not np.array_equal(raw[0], other[0])
    assert not np.array_equal(np.isnan(raw[1]), np.isnan(other[1]))
    assert not np.array_equal(raw[32] == -1, other[32] == -1)
    assert not np.intersect1d(raw[16], other[16]).size > 2


def test_prepared_rows_are_the_raw_ones(dataset, raw):
    frame = pd.concat([pd.read_feather(dataset.path / f"{split}.arrow") for split in ("train", "valid", "test")])
    for column, wanted in zip(frame.columns[:14], raw, strict=False):
        np.testing.assert_array_equal(frame[column], wanted)
    for f, feature in enumerate(dataset.features):
        vocabulary = pd.read_feather(dataset.path / "vocabulary" / f"{feature.name}.arrow")["value"].fillna(-1)
        values = np.concatenate([[-2], vocabulary.to_numpy(dtype=np.int64)])[frame[feature.name]]
        known = frame[feature.name].to_numpy() > 0
        np.testing.assert_array_equal(values[known], raw[14 + f][known])
        assert known[: dataset.num_rows("train")].all()


def test_the_ceiling_is_that_of_the_teacher(dataset, raw):
    start = 0
    for split in ("train", "valid", "test"):
        rows = slice(start, start + dataset.num_rows(split))
        ceiling = dataset.meta["ceiling"][split]
        assert ceiling["logloss"] == pytest.approx(log_loss(raw[0][rows], raw[-1][rows]), abs=1e-9)
        assert ceiling["auc"] == pytest.approx(roc_auc_score(raw[0][rows], raw[-1][rows]), abs=1e-5)
        start = rows.stop


@pytest.mark.parametrize(("auc", "positive_rate"), [(0.80, 0.256), (0.70, 0.5), (0.9, 0.03)])
def test_the_teacher_is_as_strong_as_asked_for(auc, positive_rate):
    columns = rows_of(rows=100_000, auc=auc, positive_rate=positive_rate)
    assert columns[0].mean() == pytest.approx(positive_rate, rel=0.03)
    assert roc_auc_score(columns[0], columns[-1]) == pytest.approx(auc, abs=0.01)
    # The labels are drawn from the probabilities: they agree in every tenth of them.
    order = np.argsort(columns[-1])
    for part in np.array_split(order, 10):
        deviation = np.sqrt(np.sum(columns[-1][part] * (1 - columns[-1][part]))) / len(part)
        assert abs(columns[0][part].mean() - columns[-1][part].mean()) < 4.5 * deviation


def test_every_feature_and_rare_values_carry_signal(raw):
    logit = np.log(raw[-1] / (1 - raw[-1]))
    logit -= logit.mean()
    halves = np.arange(len(logit)) % 2 == 0

    def shared_variance(column, seen_at_least, seen_at_most):
        """Return how far the mean logits of values agree between two halves of the rows, 0 for pure chance."""
        _, values, counts = np.unique(column, return_inverse=True, return_counts=True)
        sums = [np.bincount(values[half], logit[half], len(counts)) for half in (halves, ~halves)]
        sizes = [np.bincount(values[half], minlength=len(counts)) for half in (halves, ~halves)]
        chosen = (counts >= seen_at_least) & (counts <= seen_at_most) & (sizes[0] > 0) & (sizes[1] > 0)
        one, other = (total[chosen] / size[chosen] for total, size in zip(sums, sizes, strict=True))
        return np.average(one * other, weights=counts[chosen])

    everywhere = [shared_variance(column, 2, 10**9) for column in raw[14:-1]]
    assert sum(variance > 0.004 for variance in everywhere) >= 24
    rare = [shared_variance(raw[13 + f], 2, 5) for f in (3, 4, 12, 16, 21)]
    assert min(rare) > 0.01


def test_it_has_the_shape_of_criteo(raw):
    distinct = [len(np.unique(column)) for column in raw[14:-1]]
    top = [np.unique(column, return_counts=True)[1].max() / len(column) for column in raw[14:-1]]
    assert distinct[2] > 20_000 > distinct[9] > 5000 > distinct[0] > 300 > distinct[13] > distinct[8] == 3
    assert top[8] > 0.8
    assert 0.01 < top[2] < 0.05
    assert np.mean(np.unique(raw[16], return_counts=True)[1] == 1) > 0.8
    for column, missing in ((1, 0.45), (2, 0), (5, 0.026), (12, 0.77)):
        assert np.isnan(raw[column]).mean() == pytest.approx(missing, abs=0.01)
    for column, missing in ((16, 0.034), (32, 0.44), (35, 0.76), (14, 0)):
        assert (raw[column] == -1).mean() == pytest.approx(missing, abs=0.01)
    assert ((raw[16] == -1) == (raw[17] == -1)).all()
    assert np.nanmax(raw[5]) > 12 > np.nanmedian(raw[5]) > 7


def test_a_full_table_beats_a_truncated_and_a_hashed_one(tmp_path):
    dataset = prepare(SyntheticConfig(path=str(tmp_path / "out"), rows=60_000), progress=False)
    data = {}
    for split in ("train", "test"):
        batch = next(iter(dataset.batches(split, 10**6)))
        bins = np.nan_to_num(np.floor(batch.dense.numpy() * 2), nan=-9).astype(np.int64)
        data[split] = batch.sparse.values().view(26, -1).T.numpy(), bins, batch.labels.numpy()
    rows = np.array([max(1, feature.num_embeddings // 16) for feature in dataset.features])

    def auc(shrink):
        encoder = OneHotEncoder(handle_unknown="ignore")
        train, test = (np.concatenate([shrink(ids), bins], axis=1) for ids, bins, _ in data.values())
        model = LogisticRegression(C=0.1, max_iter=60, tol=1e-2).fit(encoder.fit_transform(train), data["train"][2])
        return roc_auc_score(data["test"][2], model.predict_proba(encoder.transform(test))[:, 1])

    full = auc(lambda ids: ids)
    truncated = auc(lambda ids: np.where(ids < rows, ids, 0))
    hashed = auc(lambda ids: ids * 2654435761 % 2**32 // 512 % rows)
    assert 0.68 < full < dataset.meta["ceiling"]["test"]["auc"] + 0.01
    assert full > truncated + 0.01
    assert full > hashed + 0.01


@pytest.mark.parametrize("rows", [60_000, 200_000])
def test_the_values_of_the_catalog_can_be_learnt_at_any_size(tmp_path, rows):
    dataset = prepare(SyntheticCatalogConfig(path=str(tmp_path / "out"), rows=rows), progress=False)
    assert [feature.name for feature in dataset.features] == [f"C{i}" for i in range(1, 7)]
    assert dataset.dense_names == ["I1", "I2", "I3", "I4"]
    for feature in dataset.features:
        counts = feature.counts.numpy()[1:]
        assert np.median(counts) >= 10
        # Cutting the tail off would lose most of the signal, or much of it in the most skewed ones.
        assert counts[: len(counts) // 16].sum() / counts.sum() < 0.5
    assert sum(feature.num_embeddings for feature in dataset.features) == pytest.approx(rows / 10, rel=0.1)
    assert dataset.meta["ceiling"]["test"]["auc"] == pytest.approx(0.8, abs=0.02)


def test_options_out_of_range_are_refused():
    for options in ({"rows": 0}, {"auc": 0.5}, {"auc": 0.99}, {"positive_rate": 0.0}):
        with pytest.raises(RecembError, match=rf"dataset\.{next(iter(options))}="):
            SyntheticConfig(**options)


def test_every_data_set_is_registered_under_its_name():
    assert {name: config.name for name, config in DATASETS.items()} == {name: name for name in DATASETS}
    assert {"criteo", "synthetic"} <= set(DATASETS)
