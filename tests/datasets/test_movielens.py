import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import movielens_samples as samples
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather

from recemb.datasets import MovieLens1MConfig, prepare
from recemb.datasets.movielens import MovieLensRows
from recemb.datasets.movielens_text import BadField, BadRows, _read_plain, read_ratings, zip_token
from recemb.datasets.splits import PROTOCOLS
from recemb.datasets.text import Block
from recemb.options import RecembError

SINGLES = ["user", "movie", "gender", "age", "occupation", "zip"]


def raw_rows(source, **options):
    """Return what the source yields as (label, six tokens, genre tokens)."""
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for chunk in MovieLensRows(source, genres=True, **options).chunks(pool):
            assert chunk.dense == []
            assert {column.dtype for column in chunk.tokens} == {np.dtype(np.uint32)}
            columns = [column.tolist() for column in chunk.tokens]
            bags = np.split(chunk.bags[0].flat, np.cumsum(chunk.bags[0].lengths)[:-1]) if len(chunk.labels) else []
            genres = [bag.tolist() for bag in bags]
            rows += list(zip(chunk.labels.tolist(), map(list, zip(*columns, strict=True)), genres, strict=True))
    return rows


@pytest.mark.parametrize("block_bytes", [0, 50, 333])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("zipped", [(), ("ratings.dat",), samples.FILES])
def test_the_rows_are_those_of_the_files(tmp_path, block_bytes, end, zipped):
    tables = samples.make()
    source = samples.write(tmp_path / "ml 1m", tables, zipped, end)
    assert raw_rows(source, block_bytes=block_bytes) == samples.expected(tables)


def test_titles_may_be_in_another_encoding_and_files_begin_with_a_mark(tmp_path):
    tables = samples.make()
    folder = Path(samples.write(tmp_path / "latin", tables, encoding="latin-1"))
    wanted = samples.expected(tables)
    assert b"Caf\xe9" in (folder / "movies.dat").read_bytes()
    assert raw_rows(str(folder)) == wanted
    for name in samples.FILES:
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes().replace(b"\n", b"\n\n"))
    assert raw_rows(str(folder)) == wanted


@pytest.mark.parametrize("genres", [False, True])
def test_prepared_and_read_back_they_equal_the_reference(tmp_path, genres):
    tables = samples.make(601, seed=2)
    source = samples.write(tmp_path / "ml-1m", tables, ("users.dat",))
    dataset = prepare(
        samples.TinyBlocks(source=source, path=str(tmp_path / "my out"), genres=genres, seed=4), progress=False
    )
    rows = samples.expected(tables)
    codes = PROTOCOLS["random"](0, len(rows), len(rows), 4).tolist()
    names = [*SINGLES, "genres"] if genres else SINGLES
    assert [feature.name for feature in dataset.features] == names
    assert [feature.max_length for feature in dataset.features] == [1] * 6 + [None] * genres
    assert dataset.dense_names == []
    cells = [[[token] for token in row[1]] + [row[2]] for row in rows]
    ids = []
    for j, name in enumerate(names):
        training = [value for row, code in zip(cells, codes, strict=True) if code == 0 for value in row[j]]
        kept = [value for value, _ in sorted(Counter(training).items(), key=lambda item: (-item[1], item[0]))]
        table = pd.read_feather(tmp_path / "my out" / "vocabulary" / f"{name}.arrow")
        assert table["value"].tolist() == kept  # min_count is 1
        number = {value: i for i, value in enumerate(kept, 1)}
        ids.append([[number.get(value, 0) for value in row[j]] for row in cells])
    for code, split in enumerate(("train", "valid", "test")):
        at = [i for i, c in enumerate(codes) if c == code]
        position = 0
        for batch in dataset.batches(split, 17):
            here = at[position : position + 17]
            position += len(here)
            assert batch.dense.shape == (len(here), 0)
            assert batch.labels.tolist() == [rows[i][0] for i in here]
            for j, name in enumerate(names):
                column = batch.sparse[name]
                parts = [part.tolist() for part in column.values().split(column.lengths().tolist())]
                assert parts == [ids[j][i] for i in here]
        assert position == len(at)


@pytest.mark.parametrize("vocabulary", ["frequency", "none"])
def test_shuffled_batches_have_no_dense_columns(tmp_path, vocabulary):
    source = samples.write(tmp_path / "ml-1m", samples.make())
    config = MovieLens1MConfig(source=source, path=str(tmp_path / "out"), vocabulary=vocabulary)
    dataset = prepare(config, progress=False)
    table = feather.read_table(tmp_path / "out" / "train.arrow").to_pandas()
    found = []
    for batch in dataset.batches("train", 33, shuffle=True, window=100):
        assert batch.dense.shape == (len(batch.labels), 0)
        found += batch.sparse.values().view(6, -1).T.tolist()
    assert sorted(found) == sorted(table[SINGLES].to_numpy().tolist())


@given(st.lists(st.from_regex(r"[0-9]{5,9}|[0-9]{5}-[0-9]{4}", fullmatch=True), min_size=2, max_size=2, unique=True))
def test_zip_codes_have_numbers_of_their_own(codes):
    tokens = [zip_token(code.encode()) for code in codes]
    assert tokens == [samples.zip_number(code) for code in codes]
    assert tokens[0] != tokens[1]
    assert max(tokens) < 2**32


def test_zip_codes_as_they_are_documented():
    pairs = (
        ("00000", 0),
        ("99999", 99_999),
        ("000000", 100_000),
        ("0000000", 1_100_000),
        ("12345-6789", 1_234_556_789),
    )
    assert [(code, zip_token(code.encode())) for code, _ in pairs] == list(pairs)
    assert zip_token(b"999999999") + 1 == zip_token(b"00000-0000") == 1_111_100_000
    for code in (
        b"",
        b"1234",
        b"1234567890",
        b"12345-678",
        b"1234-56789",
        b"12345-67890",
        b"1234x",
        b" 12345",
        b"-2345",
    ):
        with pytest.raises(BadField, match="is not a zip code"):
            zip_token(code)


BAD = [
    ("users.dat", 3, ["5", "X", "1", "1", "12345"], "gender", "'X' is not F or M"),
    ("users.dat", 3, ["x5", "F", "1", "1", "12345"], "user", "'x5' is not a whole number"),
    ("users.dat", 3, ["4294967296", "F", "1", "1", "12345"], "user", "is not a whole number from 0 to 4294967295"),
    ("users.dat", 3, ["500", "F", "", "1", "12345"], "age", "'' is not a whole number"),
    ("users.dat", 3, ["500", "F", "1", "-1", "12345"], "occupation", "'-1' is not a whole number"),
    ("users.dat", 3, ["500", "F", "1", "1", "123"], "zip", "'123' is not a zip code"),
    ("users.dat", 3, ["500", "F", "1", "1"], "", "4 fields instead of 5"),
    ("movies.dat", 30, ["500", "A film", "Comedy|Tragedy"], "genres", "'Tragedy' is not one of the 18 genres"),
    ("movies.dat", 30, ["500", "A film", "comedy"], "genres", "'comedy' is not one of the 18 genres"),
    ("movies.dat", 30, ["1.5", "A film", "Comedy"], "movie", "'1.5' is not a whole number"),
    ("movies.dat", 30, ["500", "Comedy"], "", "2 fields instead of 3"),
    ("ratings.dat", 200, ["USER", "MOVIE", "6", "1"], "rating", "'6' is not a whole number from 1 to 5"),
    ("ratings.dat", 200, ["USER", "MOVIE", "0", "1"], "rating", "'0' is not a whole number from 1 to 5"),
    ("ratings.dat", 200, ["USER", "MOVIE", "10", "1"], "rating", "'10' is not a whole number from 1 to 5"),
    ("ratings.dat", 200, ["USER", "MOVIE", "4.5", "1"], "rating", "'4.5' is not a whole number from 1 to 5"),
    ("ratings.dat", 200, ["USER", "MOVIE", "4", "now"], "timestamp", "'now' is not a whole number"),
    ("ratings.dat", 200, ["USER", "MOVIE", "4", "9" * 5000], "timestamp", "99…' is not a whole number"),
    ("ratings.dat", 200, ["123", "MOVIE", "4", "1"], "user", "123 is not in users.dat"),
    ("ratings.dat", 200, ["USER", "4100000000", "3", "1"], "movie", "4100000000 is not in movies.dat"),
    ("ratings.dat", 200, ["USER", "MOVIE", "4"], "", "3 fields instead of 4"),
    ("ratings.dat", 200, ["no rating"], "", "1 field instead of 4"),
]


@pytest.mark.parametrize("block_bytes", [0, 50])
@pytest.mark.parametrize(("name", "line", "fields", "field", "words"), BAD)
def test_a_bad_row_is_named_with_file_line_and_field(tmp_path, name, line, fields, field, words, block_bytes):
    tables = samples.make()
    good = samples.expected(tables)
    known = {"USER": tables[0][0][0], "MOVIE": tables[1][0][0]}
    tables[samples.FILES.index(name)].insert(line - 1, [known.get(text, text) for text in fields])
    source = samples.write(tmp_path / "my ml", tables)
    config = samples.TinyBlocks(source=source, path=str(tmp_path / "out"), genres=True)
    config.block_bytes = block_bytes
    with pytest.raises(RecembError) as caught:
        prepare(config, progress=False)
    message = str(caught.value)
    assert f"{source}/{name} line {line}{f', field {field}' if field else ''}: " in message
    assert words in message
    assert len(message.replace(str(tmp_path), "")) < 250
    assert not (tmp_path / "out").exists()
    dataset = prepare(config, on_bad_rows="skip", progress=False)
    assert dataset.meta["skipped"] == {f"{name.removesuffix('.dat')} {field or 'fields'}": 1}
    assert sum(dataset.meta["rows"].values()) == len(good)
    clean = samples.make()
    wanted = MovieLens1MConfig(source=samples.write(tmp_path / "clean", clean), path=str(tmp_path / "c"), genres=True)
    assert prepare(wanted, progress=False).fingerprint == dataset.fingerprint


def test_a_user_or_movie_there_twice_is_bad_and_the_first_counts(tmp_path):
    tables = samples.make()
    good = samples.expected(tables)
    tables[0].append([tables[0][4][0], "F", "1", "1", "11111"])
    tables[1].append([tables[1][4][0], "Again", "War"])
    source = samples.write(tmp_path / "ml", tables)
    with pytest.raises(RecembError, match=rf"users.dat line 21, field user: {tables[0][4][0]} is there a second time"):
        raw_rows(source)
    assert raw_rows(source, on_bad_rows="skip") == good


def test_ratings_of_a_user_that_was_left_out_are_left_out_and_counted(tmp_path):
    tables = samples.make()
    lost = tables[0][3][0]
    good = samples.expected((tables[0], tables[1], [row for row in tables[2] if row[0] != lost]))
    tables[0][3][4] = "no zip"
    source = samples.write(tmp_path / "ml", tables)
    config = MovieLens1MConfig(source=source, path=str(tmp_path / "out"))
    dataset = prepare(config, on_bad_rows="skip", progress=False)
    ratings = sum(row[0] == lost for row in tables[2])
    assert dataset.meta["skipped"] == {"ratings user": ratings, "users zip": 1}
    assert sum(dataset.meta["rows"].values()) == len(good)


field = st.sampled_from(["1", "2", "5", "05", "0", "6", "", "9223372036854775807", "4294967297", "-1", "x", " 1", "1:"])
line = st.lists(field, min_size=3, max_size=5).map("::".join)


@given(st.lists(line, max_size=3), st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
def test_the_fast_path_never_takes_what_the_slow_one_refuses(lines, end):
    block = Block(Path("ratings.dat"), end.join(["1::2::5::7", *lines]).encode(), 1, 0)
    users, movies = pd.Index([1, 5]), pd.Index([2, 1])
    bad = BadRows("skip")
    slow = read_ratings(block._replace(text=block.text + b"\n::"), users, movies, bad)
    bad.skipped["ratings fields"] -= 1
    quick = BadRows("skip")
    found = read_ratings(block, users, movies, quick)
    for one, other in zip(found, slow, strict=True):
        assert one.tolist() == other.tolist()
    assert quick.skipped == bad.skipped


def test_the_fast_path_takes_ordinary_text():
    for end in (b"\n", b"\r\n"):
        columns = _read_plain(Block(Path("ratings.dat"), end.join([b"1::2::5::7", b"11::22::1::77", b""]), 1, 0))
        assert [column.tolist() for column in columns] == [[1, 11], [2, 22], [5, 1], [7, 77]]
    for text in (b"1::2::5::7\n1::2::5\n", b"1::2::5::7\n1::2::::7\n", b"1:2:5:7\n", b"1::2::5::7\r1::2::5::7\n"):
        assert _read_plain(Block(Path("ratings.dat"), text, 1, 0)) is None


def test_sources_that_are_not_there(tmp_path):
    source = samples.write(tmp_path / "ml", samples.make())
    (tmp_path / "ml" / "empty.txt").write_text("")
    for given_source, words in (
        (None, "dataset.source is not given; name the ml-1m folder"),
        (" ", "dataset.source is not given"),
        (str(tmp_path / "none"), f"There is no folder {tmp_path}/none; dataset.source must be the ml-1m folder"),
        (f"{source}/users.dat", "users.dat is not a folder"),
    ):
        with pytest.raises(RecembError) as caught:
            prepare(MovieLens1MConfig(source=given_source, path=str(tmp_path / "out")), progress=False)
        assert words in str(caught.value)
    for name in samples.FILES:
        kept = (tmp_path / "ml" / name).read_bytes()
        (tmp_path / "ml" / name).unlink()
        with pytest.raises(RecembError, match=rf"ml has no {name} or {name}\.gz"):
            MovieLens1MConfig(source=source).open(on_bad_rows="error")
        (tmp_path / "ml" / name).write_bytes(b"")
        with pytest.raises(RecembError, match=f"{name} is empty"):
            prepare(MovieLens1MConfig(source=source, path=str(tmp_path / "out")), progress=False)
        (tmp_path / "ml" / name).write_bytes(kept)


def test_an_order_by_user_is_not_an_order_by_time():
    with pytest.raises(RecembError, match=r"protocol=last_day splits rows by their order"):
        MovieLens1MConfig(protocol="last_day")


def test_what_is_prepared_is_used_again_and_another_choice_is_told(tmp_path):
    source = samples.write(tmp_path / "ml", samples.make())
    config = MovieLens1MConfig(source=source, path=str(tmp_path / "out"))
    first = prepare(config, progress=False)
    written = (tmp_path / "out" / "train.arrow").stat().st_mtime_ns
    assert prepare(config, progress=False).meta == first.meta
    assert (tmp_path / "out" / "train.arrow").stat().st_mtime_ns == written
    config.genres = True
    with pytest.raises(RecembError, match=r"genres=False \(asked for: True\)"):
        prepare(config, progress=False)
    (tmp_path / "ml" / "users.dat").touch()
    config.genres = False
    with pytest.raises(RecembError, match="other source files"):
        prepare(config, progress=False)


def real_copy():
    default = Path(__file__).resolve().parents[3] / "shared/data/ml-1m"
    return Path(os.environ.get("RECEMB_MOVIELENS_1M", default))


@pytest.mark.skipif(not real_copy().is_dir(), reason="no MovieLens 1M; name its folder in RECEMB_MOVIELENS_1M")
def test_a_real_copy_has_the_published_vocabularies(tmp_path):
    config = MovieLens1MConfig(source=str(real_copy()), path=str(tmp_path / "out"), genres=True)
    dataset = prepare(config, progress=False)
    rows = raw_rows(str(real_copy()))
    # 13,177 values in six features (Coleman et al., arXiv:2305.12102), training rows or not.
    assert sum(len(values) for values in map(set, zip(*(row[1] for row in rows), strict=True))) == 13_177
    assert sum(dataset.meta["rows"].values()) == len(rows) == 739_012
    assert dataset.meta["skipped"] == {}
    assert dataset.features[-1].num_embeddings == 19
    assert 0.79 < dataset.num_rows("train") / len(rows) < 0.81
