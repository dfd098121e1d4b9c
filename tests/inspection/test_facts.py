import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from inspection_samples import draw_rows, prepared

from recemb.datasets import PreparedDataset
from recemb.inspection import inspect_dataset
from recemb.inspection.findings import findings
from recemb.inspection.statistics import SMOOTHING
from recemb.options import RecembError


@pytest.fixture(scope="module", params=[1, 3])
def sample(request, tmp_path_factory):
    labels, single, multi = draw_rows()
    dataset = prepared(tmp_path_factory.mktemp("data") / "out", labels, single, multi, min_count=request.param)
    sizes = [dataset.num_rows(split) for split in ("train", "valid", "test")]
    assert min(sizes) > 0
    return dataset, inspect_dataset(dataset), labels, single | multi, np.split(np.arange(3000), np.cumsum(sizes)[:-1])


def cells_of(column, rows, labels):
    """One line a cell: row, value, label."""
    bags = [column[row] if isinstance(column[row], list) else [column[row]] for row in rows]
    frame = pd.DataFrame({"row": rows, "value": bags, "label": labels[rows]})
    return frame.explode("value").dropna().astype({"value": int}).reset_index(drop=True)


def test_figures_are_those_of_pandas(sample):
    dataset, facts, labels, columns, splits = sample
    least = dataset.meta["min_count"]
    for feature in facts.features:
        train, valid, test = (cells_of(columns[feature.name], rows, labels) for rows in splits)
        times = train["value"].value_counts()
        kept = times[times >= least]
        assert feature.ids == len(kept) + 1
        assert feature.distinct == len(times)
        assert feature.cells == len(train)
        assert feature.multi_valued == (feature.name == "tags")
        assert feature.mean_bag_length == pytest.approx(len(train) / len(splits[0]))
        assert feature.full_bytes == feature.ids * 16 * 4
        for tail in feature.tails:
            if tail.cells is not None:
                assert tail.cells == pytest.approx(times[times < tail.fewer_than].sum() / len(train))
        for split, cells in {"train": train, "valid": valid, "test": test}.items():
            assert feature.unseen[split] == pytest.approx(1 - cells["value"].isin(kept.index).mean())
        for point in feature.coverage[:-1]:
            assert point.cells == pytest.approx(kept.iloc[: point.ids].sum() / len(train))
        if feature.name == "small":
            assert feature.missing == pytest.approx((train["value"] == -1).mean())
    assert facts.full_bytes == sum(feature.full_bytes for feature in facts.features)
    assert facts.positive_rate["train"] == pytest.approx(labels[splits[0]].mean())


def test_gain_is_that_of_a_smoothed_rate_fitted_on_training_rows(sample):
    dataset, facts, labels, columns, splits = sample
    rate = labels[splits[0]].mean()
    labels_of_valid = labels[splits[1]]

    def loss(probability):
        return -np.where(labels_of_valid == 1, np.log(probability), np.log(1 - probability))

    for feature in facts.features:
        train, valid = (cells_of(columns[feature.name], rows, labels) for rows in splits[:2])
        times = train["value"].value_counts()
        values = train["value"].where(train["value"].map(times) >= dataset.meta["min_count"], -99)
        sums = train["label"].groupby(values).agg(["sum", "count"])
        rates = (sums["sum"] + SMOOTHING * rate) / (sums["count"] + SMOOTHING)
        known = valid["value"].where(valid["value"].isin(rates.index), -99)
        encoded = known.map(rates).fillna(rate).groupby(valid["row"]).mean().reindex(splits[1], fill_value=rate)
        gain = loss(np.full(len(splits[1]), rate)) - loss(encoded.to_numpy())
        label = feature.label
        assert label.base_logloss == pytest.approx(loss(np.full(len(splits[1]), rate)).mean())
        assert label.logloss_gain == pytest.approx(gain.mean(), abs=1e-6)
        assert label.standard_error == pytest.approx(gain.std() / len(gain) ** 0.5, abs=1e-6)
    gains = {feature.name: feature.label.logloss_gain for feature in facts.features}
    assert gains["wide"] > 0.05
    assert gains["small"] < 0.01


def test_json_types(sample):
    _, facts, *_ = sample
    assert json.loads(json.dumps(facts.to_dict(), allow_nan=False)) == facts.to_dict()


def test_little_memory_changes_nothing(sample):
    dataset, facts, *_ = sample
    slow = inspect_dataset(dataset, memory_bytes=1)
    assert slow.features == facts.features
    assert "3 groups" in slow.notes[0]
    assert any("ids, whose counters took about" in note for note in slow.notes)


def test_raw_ids_are_counted_exactly(tmp_path):
    rows = draw_rows()
    numbered = inspect_dataset(prepared(tmp_path / "numbered", *rows))
    raw = inspect_dataset(prepared(tmp_path / "raw", *rows, vocabulary="none"))
    assert raw.vocabulary == "none"
    assert "raw values" in raw.notes[0]
    for one, other in zip(numbered.features, raw.features, strict=True):
        # Equally frequent values may be numbered otherwise, which the random splits see.
        assert one.drift.bits == pytest.approx(other.drift.bits)
        assert one.label.mutual_information == pytest.approx(other.label.mutual_information)
        assert one.label.logloss_gain == pytest.approx(other.label.logloss_gain)
        assert dataclasses.replace(one, drift=None, label=None) == dataclasses.replace(other, drift=None, label=None)


def test_raw_ids_come_in_many_merges(tmp_path, monkeypatch):
    from recemb.inspection import cells, counting

    monkeypatch.setattr(cells, "CHUNK_ROWS", 100)
    dataset = prepared(tmp_path / "raw", *draw_rows(), vocabulary="none")
    once = inspect_dataset(dataset)
    monkeypatch.setattr(counting, "_LEAST_MERGED", 1)
    assert inspect_dataset(dataset).features == once.features


def test_labels_of_test_rows_are_not_looked_at(tmp_path):
    labels, single, multi = draw_rows()
    first = prepared(tmp_path / "first", labels, single, multi)
    labels = labels.copy()
    labels[-first.num_rows("test") :] ^= 1
    second = prepared(tmp_path / "second", labels, single, multi)
    assert inspect_dataset(first).features == inspect_dataset(second).features


def test_one_id_and_nothing_but_missing(tmp_path):
    labels = draw_rows()[0]
    same, missing = np.full(3000, 7), np.full(3000, -1)
    facts = inspect_dataset(prepared(tmp_path / "out", labels, {"same": same, "missing": missing}))
    for feature, share in zip(facts.features, (0.0, 1.0), strict=True):
        assert feature.ids == 2
        assert feature.missing == share
        assert [point.cells for point in feature.coverage] == [1.0, 1.0]
        assert feature.drift.bits == feature.drift.expected == 0
        assert feature.label.mutual_information == 0
        assert feature.label.logloss_gain == pytest.approx(0, abs=1e-6)


def test_everything_is_too_rare(tmp_path):
    labels = draw_rows(200)[0]
    facts = inspect_dataset(prepared(tmp_path / "out", labels, {"unique": np.arange(200)}, min_count=2))
    (feature,) = facts.features
    assert feature.ids == 1
    assert feature.unseen == {"train": 1.0, "valid": 1.0, "test": 1.0}
    assert [point.cells for point in feature.coverage] == [1.0]
    assert feature.tail(2).cells == 1


def test_bags_without_a_value(tmp_path):
    labels = draw_rows(100)[0]
    nothing = {"tags": [[] for _ in range(100)]}
    with pytest.raises(RecembError, match=r"no categorical feature of .* has a value in any training row"):
        inspect_dataset(prepared(tmp_path / "alone", labels, {}, nothing))
    some, more = {"same": np.full(100, 7)}, {"bags": [[1, 2]] * 100}
    facts = inspect_dataset(prepared(tmp_path / "out", labels, some, nothing | more))
    assert facts.features == inspect_dataset(prepared(tmp_path / "without", labels, some, more)).features
    assert facts.notes == [
        "tags has no value in any training row, so that nothing is said of it; models gain nothing from it"
    ]


def test_drift_within_what_splits_vary_by_is_told_apart_from_none(tmp_path):
    facts = inspect_dataset(prepared(tmp_path / "out", draw_rows(200)[0], {"same": np.full(200, 7)}))
    (feature,) = facts.features
    for excess, std, drifts in ((0.05, 0.03, False), (0.005, 0.001, False), (0.05, 0.01, True)):
        drift = dataclasses.replace(feature.drift, excess=excess, expected_std=std)
        changed = dataclasses.replace(facts, features=[dataclasses.replace(feature, drift=drift)])
        said = " ".join(findings(changed))
        assert ("the ids of 1 of 1 feature drift" in said) == drifts
        none = "by more than 0.01 bits and more than three standard deviations of random splits."
        assert (none in said) == (not drifts)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_without_rows(tmp_path, split, monkeypatch):
    dataset = prepared(tmp_path / "out", *draw_rows(300))
    folder = dataset.path
    import pyarrow as pa
    from pyarrow import ipc

    with ipc.open_file(folder / f"{split}.arrow") as reader:
        schema = reader.schema
    with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, ipc.new_file(sink, schema):
        pass
    meta = json.loads((folder / "meta.json").read_text())
    meta["rows"][split] = 0
    (folder / "meta.json").write_text(json.dumps(meta))
    dataset = PreparedDataset.open(folder)
    if split == "train":
        with pytest.raises(RecembError, match="no training rows"):
            inspect_dataset(dataset)
        return
    facts = inspect_dataset(dataset)
    assert "there are no" in facts.notes[0]
    feature = facts.features[0]
    assert feature.unseen[split] is None
    assert (feature.drift is None) == (split == "test")
    assert (feature.label.logloss_gain is None) == (split == "valid")
