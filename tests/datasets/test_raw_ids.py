import json

import bag_samples as samples
import criteo_samples
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather

from recemb.datasets import CriteoConfig, MovieLens1MConfig, PreparedDataset, SyntheticConfig, prepare
from recemb.datasets.splits import PROTOCOLS
from recemb.options import RecembError


@pytest.fixture
def config(tmp_path):
    source = criteo_samples.write(tmp_path / "train.txt", criteo_samples.make_rows(200))
    return CriteoConfig(path=str(tmp_path / "out"), source=source, vocabulary="none")


def test_ids_are_the_raw_values(config, tmp_path):
    dataset = prepare(config, progress=False)
    rows = criteo_samples.make_rows(200)
    frames = [feather.read_table(tmp_path / "out" / f"{split}.arrow") for split in ("train", "valid", "test")]
    train = frames[0].num_rows
    for j, feature in enumerate(dataset.features, 14):
        values = [int(row[j], 16) if row[j] else -1 for row in rows]
        assert [value for frame in frames for value in frame[feature.name].to_pylist()] == values
        assert {frame[feature.name].type for frame in frames} == {pa.int64()}
        assert feature.num_embeddings == len(set(values[:train])) + 1
        assert (feature.raw, feature.max_length, feature.vocabulary, feature.counts) == (True, 1, None, None)
    assert max(values) > 2**31
    assert -1 in values
    assert criteo_samples.names(tmp_path / "out") == ["meta.json", "test.arrow", "train.arrow", "valid.arrow"]
    batch = next(iter(dataset.batches("valid", 1000)))
    assert batch.sparse["C26"].values().tolist() == frames[1]["C26"].to_pylist()


@pytest.mark.parametrize("protocol", ["last_day", "random"])
def test_raw_bags(tmp_path, protocol):
    config = samples.SampleConfig(path=str(tmp_path / "out"), vocabulary="none", protocol=protocol)
    config.rows = samples.make_rows(150)
    dataset = prepare(config, progress=False)
    codes = PROTOCOLS[protocol](0, 150, 150, 0).tolist()
    ids, _ = samples.expected_ids(config.rows, codes, vocabulary="none")
    for code, split in enumerate(("train", "valid", "test")):
        table = feather.read_table(tmp_path / "out" / f"{split}.arrow")
        wanted = [cells for cells, at in zip(ids, codes, strict=True) if at == code]
        assert table["tags"].to_pylist() == [cells[2] for cells in wanted]
        assert table["seen"].to_pylist() == [cells[3] for cells in wanted]
        assert table["tags"].type == pa.list_(pa.int64())
    for j, feature in enumerate(dataset.features):
        seen = {value for cells, code in zip(ids, codes, strict=True) if code == 0 for value in cells[j]}
        assert feature.num_embeddings == len(seen) + 1
        assert feature.raw
        assert feature.max_length == (None if j > 1 else 1)


def test_it_is_used_again_and_told_from_the_default(config, tmp_path):
    first = prepare(config, progress=False)
    written = (tmp_path / "out" / "train.arrow").stat().st_mtime_ns
    assert prepare(config, progress=False).meta == first.meta
    assert (tmp_path / "out" / "train.arrow").stat().st_mtime_ns == written
    config.vocabulary = "frequency"
    with pytest.raises(RecembError, match=r"vocabulary=none \(asked for: frequency\)"):
        prepare(config, progress=False)
    numbered = prepare(config, overwrite=True, progress=False)
    assert numbered.fingerprint != first.fingerprint
    assert (tmp_path / "out" / "vocabulary").is_dir()
    config.vocabulary = "none"
    assert prepare(config, overwrite=True, progress=False).fingerprint == first.fingerprint
    assert not (tmp_path / "out" / "vocabulary").exists()


def test_a_damaged_one_can_be_replaced(config, tmp_path):
    made = prepare(config, progress=False)
    for name in ("train.arrow", "meta.json"):
        (tmp_path / "out" / name).write_bytes(b"spoiled")
        with pytest.raises(RecembError, match="overwrite=true"):
            prepare(config, progress=False)
        assert prepare(config, overwrite=True, progress=False).meta == made.meta


def test_what_was_prepared_before_the_option_counts_as_the_default(config, tmp_path):
    config.vocabulary = "frequency"
    made = prepare(config, progress=False)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    del meta["config"]["vocabulary"], meta["vocabulary"]
    for feature in meta["categorical"]:
        del feature["max_length"]
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))
    opened = PreparedDataset.open(tmp_path / "out")
    assert opened.features == made.features
    assert opened.features[0].counts.equal(made.features[0].counts)
    assert prepare(config, progress=False).fingerprint == made.fingerprint
    config.vocabulary = "none"
    with pytest.raises(RecembError, match=r"vocabulary=frequency \(asked for: none\)"):
        prepare(config, progress=False)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(RecembError, match=r"vocabulary=hash is not known; choose one of frequency, none"):
        SyntheticConfig(vocabulary="hash")
    for options, words in (
        ({"min_count": 3}, r"dataset.min_count=3 has nothing to act on with dataset.vocabulary=none"),
        ({"min_counts": {"C3": 2}}, r"dataset.min_counts.C3=2 has nothing to act on"),
    ):
        with pytest.raises(RecembError, match=words):
            SyntheticConfig(vocabulary="none", **options)
        SyntheticConfig(**options)
    with pytest.raises(RecembError, match="min_count=2 has nothing to act on"):
        MovieLens1MConfig(vocabulary="none", min_count=2)
    for fine in (SyntheticConfig(vocabulary="none", min_count=2), MovieLens1MConfig(vocabulary="none", min_count=1)):
        assert fine.identity()["vocabulary"] == "none"
    assert SyntheticConfig().identity()["vocabulary"] == "frequency"


def test_generated_rows_keep_their_labels_and_dense_features(tmp_path):
    frames = []
    for choice in ("frequency", "none"):
        config = SyntheticConfig(path=str(tmp_path / choice), rows=5000, vocabulary=choice)
        dataset = prepare(config, progress=False)
        frames.append(pd.read_feather(dataset.path / "train.arrow"))
    np.testing.assert_array_equal(frames[0].iloc[:, :14], frames[1].iloc[:, :14])
    # Equal raw values have equal ids and the other way round, but for those outside of the vocabulary.
    pairs = pd.DataFrame({"id": frames[0]["C4"], "raw": frames[1]["C4"]})
    pairs = pairs[pairs["id"] > 0].drop_duplicates()
    assert pairs["id"].is_unique
    assert pairs["raw"].is_unique
