import pytest

from recemb.datasets import DATASETS, CriteoConfig, CriteoKaggleShapeConfig, Feature, SyntheticConfig, prepare
from recemb.datasets.criteo_kaggle_shape import ROWS
from recemb.options import RecembError


def test_the_shape_of_criteo_kaggle_is_known_without_a_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features = DATASETS["criteo_kaggle_shape"]().describe_features()
    assert [feature.name for feature in features] == [f"C{i}" for i in range(1, 27)]
    # The total that papers on this data name: 33.76 million.
    assert sum(feature.num_embeddings for feature in features) == 33_762_577
    assert (features[2].num_embeddings, features[19].num_embeddings) == (10_131_227, 4)
    assert {(f.vocabulary, f.max_length, f.raw, f.frequencies) for f in features} == {
        (None, 1, False, "assumed, a Zipf law of exponent 1.15")
    }
    assert all(feature.raw for feature in CriteoKaggleShapeConfig(vocabulary="none").describe_features())
    assert list(tmp_path.iterdir()) == []


def test_a_shape_cannot_be_prepared(tmp_path):
    config = CriteoKaggleShapeConfig(path=str(tmp_path / "out"))
    with pytest.raises(RecembError, match=r"is a shape without rows, for recemb plan only"):
        prepare(config, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_other_data_sets_describe_what_is_prepared(tmp_path):
    config = SyntheticConfig(path=str(tmp_path / "my out"), rows=1000)
    with pytest.raises(RecembError, match="There is no prepared data set at"):
        config.describe_features()
    dataset = prepare(config, progress=False)
    features = config.describe_features()
    assert features == dataset.features
    assert features[0].counts.sum() == dataset.num_rows("train")
    with pytest.raises(RecembError, match=r"holds synthetic, not criteo; pass dataset=synthetic"):
        CriteoConfig(path=config.path).describe_features()


def test_a_feature_needs_no_vocabulary():
    feature = Feature("C1", 5)
    assert (feature.counts, feature.max_length, feature.raw) == (None, 1, False)


def test_assumed_frequencies_are_those_of_what_is_published():
    """Ten times or more: 998,960 values (AutoInt, table 1); to half a percent."""
    features = CriteoKaggleShapeConfig().describe_features()
    often = 0
    for feature in features:
        counts = feature.counts
        assert counts.shape == (feature.num_embeddings,)
        assert counts[0] == counts.min() >= 1
        assert not bool((counts[1:].diff() > 0).any())
        assert int(counts.sum()) >= 0.99 * ROWS
        often += int((counts >= 10).sum())
    assert often == pytest.approx(998_960, rel=0.005)
    assert CriteoKaggleShapeConfig(vocabulary="none").describe_features()[0].counts is None
