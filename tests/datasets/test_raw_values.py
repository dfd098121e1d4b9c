"""Raw values through `RawValues` must be what preparation made of the same text, and the files must keep all of it."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor

import bag_samples
import criteo_samples
import movielens_samples
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather
from pyarrow import parquet as pq

from recemb.datasets import DATASETS, CriteoConfig, MovieLens1MConfig, SyntheticConfig, prepare
from recemb.datasets.criteo_text import LogOfIntegers
from recemb.datasets.hexadecimal import Hexadecimal
from recemb.datasets.movielens_text import zip_text, zip_token
from recemb.datasets.raw_values import RawValues
from recemb.datasets.spelling import AsTheyAre
from recemb.datasets.splits import PROTOCOLS
from recemb.options import RecembError

both_vocabularies = pytest.mark.parametrize("vocabulary", ["frequency", "none"])
CRITEO = [*criteo_samples.DENSE, *criteo_samples.CATEGORICAL]


def prepared_rows(dataset, codes):
    """Return the rows of all splits as one table, in the order of the source."""
    tables = [feather.read_table(dataset.path / f"{split}.arrow") for split in ("train", "valid", "test")]
    place = np.argsort(np.argsort(codes, kind="stable"), kind="stable")
    return pa.concat_tables(tables).take(pa.array(place))


def saved(values, folder):
    assert values.save(folder) == ["vocabulary.parquet", "values.json"]
    return RawValues.load(folder)


def assert_served_as_prepared(values, table, columns):
    """Compare every column of the raw rows with the prepared one, all at once and one value at a time."""
    assert [*values.dense_names, *values.features] == list(columns)
    for name, column in columns.items():
        prepared = table[name].to_pylist()
        if name in values.dense_names:
            assert values.dense(name, column).dtype == np.float32
            np.testing.assert_array_equal(values.dense(name, column), table[name].to_numpy())
        elif values.is_multi_valued(name):
            ids, lengths = values.bags(name, column)
            assert (ids.dtype, lengths.dtype) == (np.int64, np.int64)
            assert [bag.tolist() for bag in np.split(ids, np.cumsum(lengths)[:-1])] == prepared
            assert [values.bags(name, [bag])[0].tolist() for bag in column[:20]] == prepared[:20]
        else:
            ids = values.ids(name, column)
            assert ids.dtype == np.int64
            assert ids.tolist() == prepared
            assert [values.ids(name, [value])[0] for value in column[:20]] == prepared[:20]


def criteo_rows(count=300):
    """Return rows some of whose texts are not how a token is usually written."""
    rows = criteo_samples.make_rows(count, seed=3, missing=0.2)
    for i, row in enumerate(rows):
        row[1] = row[1] and ("00" if i % 2 else "") + row[1].lstrip("-")
        row[14 + i % 26] = row[14 + i % 26].upper()
        row[15] = row[15].lstrip("0") or row[15]
    rows[0][3], rows[1][3], rows[2][3] = str(2**63 - 1), str(-(2**63)), str(2**53 + 1)
    return rows


@both_vocabularies
def test_criteo(tmp_path, vocabulary):
    rows = criteo_rows()
    source = criteo_samples.write(tmp_path / "train.txt", rows)
    options = {"min_count": 3} if vocabulary == "frequency" else {}
    dataset = prepare(
        CriteoConfig(path=str(tmp_path / "out"), source=source, vocabulary=vocabulary, **options), progress=False
    )
    table = prepared_rows(dataset, criteo_samples.last_day_codes(len(rows)))
    columns = {name: [row[j] for row in rows] for j, name in enumerate(CRITEO, 1)}
    if vocabulary == "frequency":
        assert {0, 1} <= set(table["C3"].to_pylist())  # some are not in the vocabulary
    for values in (RawValues.of(dataset), saved(RawValues.of(dataset), tmp_path / "new" / "export")):
        assert_served_as_prepared(values, table, columns)
        numbers = [int(text) if text else None for text in columns["I2"]]
        for same in (numbers, np.array([math.nan if x is None else x for x in numbers]), pd.array(numbers, "Int64")):
            np.testing.assert_array_equal(values.dense("I2", same), table["I2"].to_numpy())


@both_vocabularies
def test_movielens(tmp_path, vocabulary):
    tables = movielens_samples.make(500, seed=5)
    source = movielens_samples.write(tmp_path / "ml-1m", tables)
    options = {"min_count": 8} if vocabulary == "frequency" else {}
    dataset = prepare(
        MovieLens1MConfig(path=str(tmp_path / "out"), source=source, genres=True, vocabulary=vocabulary, **options),
        progress=False,
    )
    users, movies = ({row[0]: row for row in rows} for rows in tables[:2])
    rated = [rating for rating in tables[2] if rating[2] != "3"]
    texts = [[user, movie, *users[user][1:]] for user, movie, _, _ in rated]
    names = ["user", "movie", "gender", "age", "occupation", "zip"]
    columns = {name: [row[j] for row in texts] for j, name in enumerate(names)}
    columns["genres"] = [[name for name in movies[movie][2].split("|") if name] for _, movie, _, _ in rated]
    table = prepared_rows(dataset, PROTOCOLS["random"](0, len(rated), len(rated), 0))
    if vocabulary == "frequency":
        assert {0, 1} <= set(table["movie"].to_pylist())
    for values in (RawValues.of(dataset), saved(RawValues.of(dataset), tmp_path / "export")):
        assert_served_as_prepared(values, table, columns)
        numbers = [int(text) for text in columns["movie"]]
        ids = table["movie"].to_pylist()
        gap = values.ids("movie", [None])[0]
        for same in (numbers, np.array(numbers, dtype=np.uint32), [np.int64(x) for x in numbers], pd.Series(numbers)):
            assert values.ids("movie", same).tolist() == ids
        assert values.ids("movie", pd.Series([*map(float, numbers), math.nan])).tolist() == [*ids, gap]
        assert values.ids("movie", [numbers[0], columns["movie"][1], None]).tolist() == [*ids[:2], gap]
        gappy = [[None, *names, "", math.nan] for names in columns["genres"]] + [None, [], [None], ""]
        ids, lengths = values.bags("genres", columns["genres"])
        np.testing.assert_array_equal(values.bags("genres", gappy)[0], ids)
        np.testing.assert_array_equal(values.bags("genres", gappy)[1], [*lengths, 0, 0, 0, 0])


@both_vocabularies
def test_synthetic(tmp_path, vocabulary):
    config = SyntheticConfig(path=str(tmp_path / "out"), rows=1500, vocabulary=vocabulary)
    dataset = prepare(config, progress=False)
    table = prepared_rows(dataset, criteo_samples.last_day_codes(1500))
    with ThreadPoolExecutor(1) as pool:
        (chunk,) = config.open(on_bad_rows="error").chunks(pool)
    columns = {}
    for name, column in zip(criteo_samples.DENSE, chunk.dense, strict=True):
        shift = 4 if name == "I2" else 1
        # The rows are generated with their logarithms, so the integers are found from those.
        columns[name] = [None if math.isnan(x) else round(math.exp(x)) - shift for x in column.tolist()]
    for name, tokens, missing in zip(criteo_samples.CATEGORICAL, chunk.tokens, chunk.missing, strict=True):
        gaps = [False] * 1500 if missing is None else missing.tolist()
        columns[name] = [None if gap else f"{token:08x}" for token, gap in zip(tokens.tolist(), gaps, strict=True)]
    for values in (RawValues.of(dataset), saved(RawValues.of(dataset), tmp_path / "export")):
        assert_served_as_prepared(values, table, columns)


@both_vocabularies
def test_a_data_set_that_says_nothing_has_decimal_numbers(tmp_path, monkeypatch, vocabulary):
    config = bag_samples.SampleConfig(path=str(tmp_path / "out"), vocabulary=vocabulary)
    config.rows = bag_samples.make_rows(200)
    dataset = prepare(config, progress=False)
    with pytest.raises(RecembError, match="holds the data set sample, and how its values are spelled is not known"):
        RawValues.of(dataset)
    monkeypatch.setitem(DATASETS, "sample", bag_samples.SampleConfig)
    table = prepared_rows(dataset, criteo_samples.last_day_codes(200))
    columns = {"I1": [row[1][0] for row in config.rows]}
    columns |= {name: [row[2][j] for row in config.rows] for j, name in enumerate(bag_samples.SINGLE)}
    columns |= {name: [row[3][j] for row in config.rows] for j, name in enumerate(bag_samples.MULTI)}
    texts = {name: [None if value is None else str(value) for value in columns[name]] for name in bag_samples.SINGLE}
    for values in (RawValues.of(dataset), saved(RawValues.of(dataset), tmp_path / "export")):
        assert_served_as_prepared(values, table, columns)
        assert_served_as_prepared(values, table, {**columns, **texts})
        floats = np.array([math.nan if shop is None else shop for shop in columns["shop"]])
        assert values.ids("shop", floats).tolist() == table["shop"].to_pylist()
        assert values.ids("shop", floats.tolist()).tolist() == table["shop"].to_pylist()


@pytest.fixture
def criteo(tmp_path):
    """Values: C1 has 12 (id 1), a missing one (2), 7 (3) and abcdefab (4); C2 has a; C3 to C26 have none."""
    rows = []
    for value, second in zip(["12"] * 6 + [""] * 5 + ["abcdefab"] * 4 + ["7"] * 15, ["a"] * 30, strict=True):
        rows.append(["0", *["1"] * 13, value, second, *[f"{len(rows):x}"] * 24])
    rows = [*rows[:15], *rows]  # twice, but for what comes later than the training rows
    source = criteo_samples.write(tmp_path / "train.txt", rows)
    config = CriteoConfig(path=str(tmp_path / "out"), source=source, min_count=3, min_counts={"C1": 8})
    return RawValues.of(prepare(config, progress=False))


def test_unseen_missing_and_unreadable_values(criteo, tmp_path):
    for values in (criteo, saved(criteo, tmp_path / "export")):
        seen = ["00000012", "12", "ABCDEFab", "abcdefab"]
        assert values.ids("C1", seen).tolist() == [1, 1, 4, 4]
        assert values.ids("C1", [None, "", math.nan, pd.NA, np.float64("nan"), b""]).tolist() == [2] * 6
        strange = ["13", "xyz", "12g", "000000012", " 12", "0x12", "12\n", "é", "\ud800", "\0", "1" * 10_000]
        assert values.ids("C1", strange).tolist() == [0] * len(strange)
        mixed = [x for pair in zip(strange, seen * 3, strict=False) for x in pair]
        assert values.ids("C1", mixed).tolist() == [x for i in range(len(strange)) for x in (0, [1, 1, 4, 4][i % 4])]
        assert values.ids("C2", ["a", None, "xyz"]).tolist() == [1, 0, 0]
        assert values.ids("C3", ["a", None, "xyz"]).tolist() == [0, 0, 0]
        assert values.ids("C1", []).tolist() == []
        assert values.dense("I1", []).tolist() == []


def test_columns_of_every_kind(criteo):
    texts = ["12", None, "abcdefab", "f"]
    for column in (
        tuple(texts),
        np.array(texts, dtype=object),
        pd.Series(texts),
        pd.Series(texts, index=[9, 8, 7, 6], dtype="category"),
        pd.Series(texts, dtype="string"),
        pa.array(texts),
        pa.array(["x", *texts]).slice(1),
        pa.chunked_array([texts[:1], texts[1:]]),
        pa.array(texts, pa.large_string()),
        pa.array(texts).dictionary_encode(),
        [b"12", None, b"abcdefab", b"f"],
        ["12", None, b"abcdefab", np.str_("f")],
    ):
        assert criteo.ids("C1", column).tolist() == [1, 2, 4, 0]
    assert criteo.ids("C1", np.array(["12", "f"])).tolist() == [1, 0]
    assert criteo.ids("C1", np.array([np.nan, np.nan])).tolist() == [2, 2]


def test_numbers_that_are_none(criteo):
    one = np.float32(math.log(2))
    good = [1, "1", "01", 1.0, np.int32(1), np.float32(1), b"1"]
    np.testing.assert_array_equal(criteo.dense("I1", good), [one] * len(good))
    none = [None, "", "abc", "1.5", 1.5, " 1", "0x1", "1e3", "+1", str(2**63), 2**63, 10**5000, math.inf, "inf", 1e300]
    for strange in none:
        assert np.isnan(criteo.dense("I1", [strange])).all(), strange
    np.testing.assert_array_equal(criteo.dense("I1", [1, *none, 1]), [one, *[np.nan] * len(none), one])
    np.testing.assert_array_equal(criteo.dense("I1", np.array([1.0, 1.5, np.inf, np.nan])), [one, *[np.nan] * 3])
    large = [10**17, float(10**17), str(10**17)]  # whose float is written 1e+17
    assert len({*criteo.dense("I1", large).tolist(), *criteo.dense("I1", np.array([1e17])).tolist()}) == 1
    np.testing.assert_array_equal(criteo.dense("I2", [-3, "-3", -9, -3.0]), [0.0] * 4)


def test_raw_ids_spare_none_for_what_is_no_value(tmp_path):
    source = criteo_samples.write(tmp_path / "train.txt", criteo_samples.make_rows(60))
    config = CriteoConfig(path=str(tmp_path / "out"), source=source, vocabulary="none")
    for values in (of := RawValues.of(prepare(config, progress=False)), saved(of, tmp_path / "export")):
        texts = ["0", "ffffffff", None, "", "xyz", "123456789"]
        assert values.ids("C1", texts).tolist() == [0, 2**32 - 1, -1, -1, -1, -1]
    assert pd.read_parquet(tmp_path / "export" / "vocabulary.parquet").shape == (0, 3)


def test_a_strange_element_of_a_bag(tmp_path):
    source = movielens_samples.write(tmp_path / "ml", movielens_samples.make())
    for vocabulary, ids, lengths in (("frequency", [0, 0], [1, 1]), ("none", [], [0, 0])):
        config = MovieLens1MConfig(path=str(tmp_path / vocabulary), source=source, genres=True, vocabulary=vocabulary)
        values = RawValues.of(prepare(config, progress=False))
        found = values.bags("genres", [["Nonsense"], [None, "action"]])
        assert (found[0].tolist(), found[1].tolist()) == (ids, lengths)
        assert [x.tolist() for x in values.bags("genres", [])] == [[], []]
        missing = {"frequency": 0, "none": -1}[vocabulary]
        for name, strange in (("zip", "2139"), ("gender", "f"), ("movie", "1.5"), ("movie", -1), ("movie", 2**32)):
            assert values.ids(name, [strange, None]).tolist() == [missing, missing]


def test_wrong_input_is_one_sentence(criteo, tmp_path):
    source = movielens_samples.write(tmp_path / "ml", movielens_samples.make())
    config = MovieLens1MConfig(path=str(tmp_path / "films"), source=source, genres=True)
    films = RawValues.of(prepare(config, progress=False))
    for call, words in (
        (lambda: criteo.ids("C27", ["a"]), r"no categorical feature C27; there are C1, C2, .*C26\."),
        (lambda: criteo.bags("I1", [["a"]]), "no categorical feature I1"),
        (lambda: criteo.dense("C1", ["a"]), r"no dense feature C1; there are I1, I2, .*I13\."),
        (lambda: films.dense("I1", ["a"]), "no dense feature I1; there are none"),
        (lambda: criteo.ids("C1", [12]), r"C1 needs a text \(1 to 8 hexadecimal digits\) or None, not 12 of type int"),
        (lambda: criteo.ids("C1", np.array([12])), "C1 needs a text"),
        (lambda: criteo.ids("C1", [True]), "not True of type bool"),
        (lambda: films.ids("movie", [True]), r"movie needs a text or a number .* not True of type bool"),
        (lambda: films.ids("movie", ["1", ["2"]]), "not .* of type list"),
        (lambda: films.ids("zip", [12345]), "zip needs a text"),
        (lambda: criteo.dense("I1", [{}]), "not {} of type dict"),
        (lambda: criteo.ids("C1", "12"), "C1 needs a list of values, one a row, not '12' of type str"),
        (lambda: criteo.ids("C1", None), "C1 needs a list"),
        (lambda: criteo.ids("C1", {"a": 1}), "C1 needs a list"),
        (lambda: criteo.ids("C1", np.array([["12"]])), "C1 needs a list"),
        (lambda: films.ids("genres", ["Action"]), "genres has a bag of values a row"),
        (lambda: films.bags("movie", [["1"]]), "movie has one value a row"),
        (lambda: films.bags("genres", ["Action"]), "genres needs a list of values in every row, not 'Action'"),
        (lambda: films.bags("genres", [["Action"], 0]), "genres needs a list of values in every row, not 0"),
        (lambda: films.bags("genres", "Action"), "genres needs a list of lists"),
        (lambda: films.bags("genres", [[1]]), "genres needs a text"),
    ):
        with pytest.raises(RecembError, match=words):
            call()


def test_the_files_can_be_read_without_recemb(criteo, tmp_path):
    criteo.save(tmp_path)
    table = pq.read_table(tmp_path / "vocabulary.parquet")
    assert table.schema.names == ["feature", "value", "id"]
    assert pa.types.is_dictionary(table.schema.field("feature").type)
    frame = pd.read_parquet(tmp_path / "vocabulary.parquet")
    first = frame[frame["feature"] == "C1"]
    assert first["value"].fillna("missing").tolist() == ["00000012", "missing", "00000007", "abcdefab"]
    assert first["id"].tolist() == [1, 2, 3, 4]
    assert frame[frame["feature"] == "C2"]["value"].tolist() == ["0000000a"]
    assert len(frame) == 5
    meta = json.loads((tmp_path / "values.json").read_text())
    assert [entry["missing_id"] for entry in meta["categorical"]] == [2, 0, *[0] * 24]
    assert meta["categorical"][0] | {"text": 0} == {
        "name": "C1", "kind": "hexadecimal", "text": 0, "multi_valued": False, "raw": False, "values": 4,
        "missing_id": 2, "unreadable_id": 0,
    }  # fmt: skip
    assert "max(x, -3) + 4" in meta["dense"][1]["formula"]
    assert (meta["dense"][0]["transform"], meta["dense"][1]["transform"]) == ("log_1_plus", "log_4_plus")


def test_a_vocabulary_of_nothing(tmp_path):
    rows = criteo_samples.make_rows(80)
    source = criteo_samples.write(tmp_path / "train.txt", rows)
    config = CriteoConfig(path=str(tmp_path / "out"), source=source, min_count=1000)
    for values in (of := RawValues.of(prepare(config, progress=False)), saved(of, tmp_path / "export")):
        for j, name in enumerate(values.features, 14):
            assert values.ids(name, [row[j] for row in rows]).tolist() == [0] * 80
    assert len(pd.read_parquet(tmp_path / "export" / "vocabulary.parquet")) == 0


def test_files_that_are_not_as_they_were_written(criteo, tmp_path):
    criteo.save(tmp_path)
    with pytest.raises(RecembError, match=r"nowhere/values\.json cannot be read \(No such file"):
        RawValues.load(tmp_path / "nowhere")
    for name in ("values.json", "vocabulary.parquet"):
        whole = (tmp_path / name).read_bytes()
        for spoiled in (b"", whole[:-1] if name.endswith("parquet") else whole[:-3], whole[: len(whole) // 2], b"{}"):
            (tmp_path / name).write_bytes(spoiled)
            with pytest.raises(RecembError, match="damaged"):
                RawValues.load(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(RecembError, match=f"{name} cannot be read"):
            RawValues.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
        assert RawValues.load(tmp_path).features == criteo.features


def rewrite(folder, change_rows=None, change_meta=None):
    """Write changed files whose checksum is right."""
    frame = pd.read_parquet(folder / "vocabulary.parquet")
    frame["value"] = frame["value"].astype(object).where(frame["value"].notna(), None)
    rows = frame.to_dict("list")
    for change in filter(None, [change_rows]):
        change(rows)
    columns = {
        "feature": pa.array(rows["feature"]).dictionary_encode(),
        "value": pa.array(rows["value"], pa.string()),
        "id": pa.array(rows["id"], pa.int32() if all(isinstance(x, int) for x in rows["id"]) else None),
    }
    pq.write_table(pa.table(columns), folder / "vocabulary.parquet")
    meta = json.loads((folder / "values.json").read_text())
    meta["vocabulary_sha256"] = hashlib.sha256((folder / "vocabulary.parquet").read_bytes()).hexdigest()
    for change in filter(None, [change_meta]):
        change(meta)
    (folder / "values.json").write_text(json.dumps(meta))


def put(*path_and_value):
    """Return a function that sets something deep in a dict of lists and dicts."""
    *path, last, value = path_and_value

    def change(data):
        for key in path:
            data = data[key]
        data[last] = value

    return change


def test_a_rewriting_that_changes_nothing_is_read(criteo, tmp_path):
    criteo.save(tmp_path)
    rewrite(tmp_path)
    assert RawValues.load(tmp_path).ids("C1", ["12", None, "ABCDEFAB"]).tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("rows", "meta", "words"),
    [
        (put("value", 0, "xyz"), None, "a value of C1 cannot be read"),
        (put("value", 2, "12"), None, "is there twice"),
        (put("value", 0, None), None, "the missing value is there twice"),
        (put("value", 4, None), None, "it describes other values"),
        (put("id", 0, 7), None, "the ids of C1 do not count from 1"),
        (put("id", 0, 1.5), None, "the columns of"),
        (put("feature", 0, "C2"), None, "there are not 4 values of C1"),
        (None, put("categorical", 0, "values", 3), "there are not 1 values of C2"),
        (None, put("categorical", 1, "values", 0), "there are 5 values instead of 4"),
        (None, put("categorical", 1, "values", 2), "there are not 2 values of C2"),
        (None, put("categorical", 0, "raw", True), "there are not 1 values of C2"),
        (None, put("categorical", 1, "missing_id", 1), "it describes other values"),
        (None, put("categorical", 0, "kind", "decimal"), "it describes other values"),
        (None, put("dense", 0, "transform", "log_4_plus"), "it describes other values"),
        (None, put("dense", 0, "name", "I2"), "it describes other values"),
        (None, put("categorical", [{}]), "no 'name'"),
        (None, put("categorical", None), "damaged"),
        (None, put("dataset", "nonsense"), "no 'nonsense'"),
        (None, put("form", 2), "has form 2, and this recemb reads form 1"),
        (None, put("vocabulary_sha256", "0"), "is damaged, or not the one that"),
    ],
)
def test_tampered_files_are_refused(criteo, tmp_path, rows, meta, words):
    criteo.save(tmp_path)
    rewrite(tmp_path, rows, meta)
    with pytest.raises(RecembError, match=words):
        RawValues.load(tmp_path)


def test_where_it_cannot_be_written_is_one_sentence(criteo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecembError, match="file cannot be written"):
        criteo.save(tmp_path / "file")


def test_a_damaged_prepared_vocabulary_is_one_sentence(tmp_path):
    source = criteo_samples.write(tmp_path / "train.txt", criteo_samples.make_rows(60))
    dataset = prepare(CriteoConfig(path=str(tmp_path / "out"), source=source), progress=False)
    path = tmp_path / "out" / "vocabulary" / "C5.arrow"
    for spoiled in (b"spoiled", (path.parent / "C6.arrow").read_bytes()):
        assert spoiled != path.read_bytes()
        path.write_bytes(spoiled)
        with pytest.raises(RecembError, match=r"C5\.arrow is missing or damaged .* run recemb prepare again"):
            RawValues.of(dataset)


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_hexadecimal_there_and_back(tokens):
    tokens = np.array(tokens, dtype=np.uint32)
    texts = Hexadecimal().texts(tokens)
    assert texts.to_pylist() == [f"{token:08x}" for token in tokens.tolist()]
    back, readable = Hexadecimal().tokens(texts.cast(pa.binary()))
    assert readable.all()
    np.testing.assert_array_equal(back, tokens)


def test_numbers_as_they_are():
    texts = pa.array([b"1.5", b"-2e3", b"inf", b"nan", b"1e999", b"x", b""])
    np.testing.assert_array_equal(AsTheyAre().values(texts), np.float32([1.5, -2000, *[np.nan] * 5]))


@given(st.from_regex(r"[0-9]{5,9}|[0-9]{5}-[0-9]{4}", fullmatch=True).filter(str.isascii))
def test_zip_codes_there_and_back(code):
    assert zip_text(zip_token(code.encode())) == code


@pytest.mark.parametrize("code", ["00000", "99999", "000000", "999999", "000000000", "999999999", "00000-0000"])
def test_zip_codes_at_the_edges(code):
    assert zip_text(zip_token(code.encode())) == code


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_of_criteo_are_read_exactly(number):
    assert LogOfIntegers("I1").read(str(number).encode()) == float(number)
