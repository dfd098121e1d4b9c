import gzip
import os
import re
from pathlib import Path

import criteo_samples as samples
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather

from recemb.datasets import CriteoConfig, prepare
from recemb.datasets.splits import PROTOCOLS
from recemb.datasets.vocabulary import ValueCounts
from recemb.options import RecembError


def assert_prepared(dataset, rows, codes, least_count=lambda name: 2):
    frames, vocabularies = samples.expected(rows, codes, least_count)
    for split, frame in zip(("train", "valid", "test"), frames, strict=True):
        pd.testing.assert_frame_equal(pd.read_feather(dataset.path / f"{split}.arrow"), frame, rtol=1e-6)
        assert dataset.meta["rows"][split] == dataset.num_rows(split) == len(frame)
        assert dataset.meta["positive_rate"][split] == pytest.approx(frame["label"].mean())
    for feature in dataset.features:
        wanted, out = vocabularies[feature.name]
        table = feather.read_table(dataset.path / "vocabulary" / f"{feature.name}.arrow")
        assert table["value"].type == pa.uint32()
        assert list(zip(table["value"].to_pylist(), table["count"].to_pylist(), strict=True)) == wanted
        assert feature.num_embeddings == len(wanted) + 1
        assert feature.counts.tolist() == [out, *(count for _, count in wanted)]
        assert sum(feature.counts) == dataset.num_rows("train")


@pytest.mark.parametrize("protocol", ["last_day", "random"])
@pytest.mark.parametrize("min_count", [1, 2, 5])
def test_it_equals_the_plain_reference(tmp_path, protocol, min_count):
    rows = samples.make_rows(900, seed=min_count)
    source = samples.write(tmp_path / "train.txt", rows)
    config = samples.TinyBlocks(
        path=str(tmp_path / "out"), source=source, protocol=protocol, min_count=min_count, min_counts={"C4": 3}, seed=7
    )
    config.block_bytes = 5000
    dataset = prepare(config, progress=False)
    codes = samples.last_day_codes(900) if protocol == "last_day" else PROTOCOLS[protocol](0, 900, 900, 7).tolist()
    assert_prepared(dataset, rows, codes, lambda name: 3 if name == "C4" else min_count)
    assert dataset.meta["config"]["min_counts"] == {"C4": 3}
    assert samples.names(tmp_path) == ["out", "train.txt"]
    assert samples.names(tmp_path / "out") == [
        "meta.json",
        "test.arrow",
        "train.arrow",
        "valid.arrow",
        "vocabulary",
    ]


integers = st.one_of(st.just(""), st.integers(-5, 5).map(str), st.integers(-(2**63), 2**63 - 1).map(str))
tokens = st.one_of(
    st.just(""), st.sampled_from(["0", "a", "00000000", "ffffffff", "FFFFFFFF", "7e5c2ff4", "1e5", "0000a"]),
    st.text("0123456789abcdefABCDEF", min_size=1, max_size=8),
)  # fmt: skip
row = st.tuples(st.sampled_from(["0", "1"]), *[integers] * 13, *[tokens] * 26).map(list)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_table_in_any_cutting(data, tmp_path_factory):
    rows = data.draw(st.lists(row, min_size=8, max_size=24))
    folder = tmp_path_factory.mktemp("any folder")
    cut = data.draw(st.integers(1, len(rows) - 1))
    sources = []
    for number, part in enumerate((rows[:cut], rows[cut:])):
        text = samples.to_text(part, data.draw(st.sampled_from(["\n", "\r\n"])), data.draw(st.booleans()))
        text += data.draw(st.sampled_from([b"", b"\n", b"\n\r\n\n"]))
        text = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text
        path = folder / f"part {number}.txt"
        path.write_bytes(gzip.compress(text) if data.draw(st.booleans()) else text)
        sources.append(str(path))
    config = samples.TinyBlocks(path=str(folder / "out"), source=sources)
    config.block_bytes = data.draw(st.sampled_from([3, 100, 1000, 100_000]))
    assert_prepared(prepare(config, progress=False), rows, samples.last_day_codes(len(rows)))


def test_sources_may_be_a_list_a_comma_list_or_a_pattern(tmp_path):
    rows = samples.make_rows(60)
    names = [samples.write(tmp_path / f"day {i}.txt", rows[20 * i : 20 * i + 20]) for i in range(3)]
    fingerprints = set()
    for number, source in enumerate([names, ",".join(names), str(tmp_path / "day *.txt"), tuple(names)]):
        config = CriteoConfig(path=str(tmp_path / f"out{number}"), source=source)
        fingerprints.add(prepare(config, progress=False).fingerprint)
    comma = tmp_path / "a,b.txt"
    config = CriteoConfig(path=str(tmp_path / "comma"), source=samples.write(comma, rows))
    fingerprints.add(prepare(config, progress=False).fingerprint)
    assert len(fingerprints) == 1


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    rows = samples.make_rows(60)
    base = prepare(
        CriteoConfig(path=str(tmp_path / "a"), source=samples.write(tmp_path / "a.txt", rows)), progress=False
    )
    zipped = samples.write(tmp_path / "b.gz", rows, zipped=True, end="\r\n")
    assert (
        prepare(CriteoConfig(path=str(tmp_path / "b"), source=zipped), progress=False).fingerprint == base.fingerprint
    )
    others = []
    for column, value in ((0, "1" if rows[5][0] == "0" else "0"), (3, "12345"), (20, "deadbeef")):
        changed = [list(row) for row in rows]
        changed[5][column] = value
        source = samples.write(tmp_path / f"{column}.txt", changed)
        others.append(
            prepare(CriteoConfig(path=str(tmp_path / f"c{column}"), source=source), progress=False).fingerprint
        )
    renamed = [[*row[:39], "deadbeef"] for row in rows], [[*row[:39], "deadbeee"] for row in rows]
    for number, changed in enumerate(renamed):
        # Ids and counts are the same in both, and only what they stand for differs.
        source = samples.write(tmp_path / f"renamed{number}.txt", changed)
        config = CriteoConfig(path=str(tmp_path / f"e{number}"), source=source)
        others.append(prepare(config, progress=False).fingerprint)
    for number, options in enumerate(({"min_count": 1}, {"protocol": "random"}, {"min_counts": {"C1": 1}})):
        config = CriteoConfig(path=str(tmp_path / f"d{number}"), source=str(tmp_path / "a.txt"), **options)
        others.append(prepare(config, progress=False).fingerprint)
    assert len({base.fingerprint, *others}) == 9


def test_progress_shows_every_pass_and_the_speed_on_stderr(tmp_path, capfd):
    source = samples.write(tmp_path / "train.txt", samples.make_rows(60))
    prepare(CriteoConfig(path=str(tmp_path / "out"), source=source))
    captured = capfd.readouterr()
    assert captured.out == ""
    for word in ("reading", "counting", "writing", "rows/s", "60 rows in"):
        assert word in captured.err


@pytest.mark.parametrize("protocol", ["last_day", "random"])
def test_too_few_rows_for_three_splits(tmp_path, protocol):
    source = samples.write(tmp_path / "train.txt", samples.make_rows(3))
    config = CriteoConfig(path=str(tmp_path / "out"), source=source, protocol=protocol)
    with pytest.raises(RecembError, match=rf"3 rows are too few for the three splits of protocol {protocol}"):
        prepare(config, progress=False)
    assert samples.names(tmp_path) == ["train.txt"]


def test_unknown_options_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(RecembError, match=r"protocol=first_day is not known; choose one of last_day, random"):
        CriteoConfig(protocol="first_day")
    with pytest.raises(RecembError, match=r"min_counts.C3=0 is too small"):
        CriteoConfig(min_counts={"C3": 0})
    source = samples.write(tmp_path / "train.txt", samples.make_rows(20))
    with pytest.raises(RecembError, match=r"names the feature C27.*it has C1 to C26"):
        prepare(CriteoConfig(path=str(tmp_path / "out"), source=source, min_counts={"C27": 3}), progress=False)
    with pytest.raises(RecembError, match=r"on_bad_rows=drop is not known; choose one of error, skip"):
        prepare(CriteoConfig(path=str(tmp_path / "out"), source=source), on_bad_rows="drop")


@settings(deadline=None)
@given(
    chunks=st.lists(st.lists(st.integers(0, 6) | st.integers(0, 2**32 - 1), max_size=30), min_size=1, max_size=5),
    least_count=st.integers(1, 4),
)
def test_counts_merge_over_windows(chunks, least_count):
    # 6 stands for the missing value.
    counts = ValueCounts()
    for chunk in chunks:
        values = np.array(chunk, dtype=np.uint32)
        counts.add(values, values == 6)
    everything = [None if value == 6 else value for chunk in chunks for value in chunk]
    seen = {value: everything.count(value) for value in everything}
    kept = sorted((v for v in seen if seen[v] >= least_count), key=lambda v: (-seen[v], -1 if v is None else v))
    vocabulary = counts.number(least_count)
    assert vocabulary.table().to_pydict() == {"value": kept, "count": [seen[value] for value in kept]}
    assert vocabulary.out_of_vocabulary_rows == sum(n for n in seen.values() if n < least_count)
    assert vocabulary.distinct == len(seen)
    asked = np.array([*range(8), 2**32 - 1], dtype=np.uint32)
    ids = vocabulary.mapper()(asked, asked == 6)
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        kept.index(v) + 1 if v in kept else 0 for v in (None if a == 6 else a for a in asked.tolist())
    ]


def test_a_random_split_is_drawn_row_by_row():
    whole = PROTOCOLS["random"](0, 100_000, 100_000, 3)
    pieces = np.concatenate([PROTOCOLS["random"](s, s + 1000, 55, 3) for s in range(0, 100_000, 1000)])
    assert np.array_equal(whole, pieces)
    assert not np.array_equal(whole, PROTOCOLS["random"](0, 100_000, 100_000, 4))
    assert np.bincount(whole) / 100_000 == pytest.approx([0.8, 0.1, 0.1], abs=0.005)


def real_sample():
    default = Path(__file__).resolve().parents[3] / "shared/data/criteo_sample/train.txt.gz"
    return Path(os.environ.get("RECEMB_CRITEO_SAMPLE", default))


@pytest.mark.skipif(not real_sample().exists(), reason="no Criteo sample; name one in RECEMB_CRITEO_SAMPLE")
def test_a_real_sample_equals_pandas(tmp_path):
    dataset = prepare(CriteoConfig(path=str(tmp_path / "out"), source=str(real_sample()), min_count=3), progress=False)
    kinds = {"label": int} | dict.fromkeys(samples.DENSE, float) | dict.fromkeys(samples.CATEGORICAL, str)
    raw = pd.read_csv(real_sample(), sep="\t", names=list(kinds), dtype=kinds, keep_default_na=False, na_values=[""])
    train = len(raw) * 6 // 7
    frame = pd.concat([pd.read_feather(tmp_path / "out" / f"{s}.arrow") for s in ("train", "valid", "test")])
    assert (frame["label"].to_numpy() == raw["label"].to_numpy()).all()
    for name in samples.DENSE:
        values = np.log(raw[name].clip(lower=-3) + 4) if name == "I2" else np.log1p(raw[name].clip(lower=0))
        np.testing.assert_allclose(frame[name].to_numpy(), values, rtol=1e-6)
    for feature in dataset.features:
        column = raw[feature.name].fillna("missing")
        counts = column[:train].value_counts()
        counts = counts[counts >= 3]
        assert feature.num_embeddings == len(counts) + 1
        assert feature.counts[1:].tolist() == sorted(counts, reverse=True)
        # Every value has one id, every id one value, and the id has the value's frequency.
        pairs = pd.DataFrame({"value": column.to_numpy(), "id": frame[feature.name].to_numpy()})
        inside = pairs["value"].isin(counts.index)
        assert ((pairs["id"] > 0) == inside).all()
        distinct = pairs[inside].drop_duplicates()
        assert distinct["value"].is_unique
        assert distinct["id"].is_unique
        assert (feature.counts.numpy()[distinct["id"]] == counts[distinct["value"]].to_numpy()).all()
    assert re.fullmatch(r"[0-9a-f]{64}", dataset.fingerprint)
