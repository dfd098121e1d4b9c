"""Any table: what comes out is what a slow and plain reading of the same rows gives, from CSV and from Parquet."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tabular_samples as samples
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather
from pyarrow import parquet as pq
from tabular_samples import assert_prepared, prepared, tables

import recemb
from recemb.cli import main
from recemb.datasets import TabularConfig, prepare
from recemb.datasets.raw_values import RawValues
from recemb.datasets.split_columns import split_codes
from recemb.datasets.text_index import TextIndex, hash_texts
from recemb.options import RecembError


def assert_served_as_prepared(dataset, rows, tmp_path):
    """Raw values of every row, all at once and one by one, from the data set and from the files of an export."""
    RawValues.of(dataset).save(tmp_path / "export")
    for values in (RawValues.of(dataset), RawValues.load(tmp_path / "export")):
        for split, frame in tables(dataset).items():
            of_split = [row for row in rows if row["part"] == split]
            for name in ("price", "age"):
                np.testing.assert_array_equal(values.dense(name, [row[name] for row in of_split]), frame[name])
            for name in ("user", "item"):
                column = [row[name] for row in of_split]
                assert values.ids(name, column).tolist() == frame[name].tolist()
                assert [values.ids(name, [value])[0] for value in column[:9]] == frame[name].tolist()[:9]
                assert values.ids(name, [samples.text_of(one) for one in column]).tolist() == frame[name].tolist()
            ids, lengths = values.bags("tags", [row["tags"] for row in of_split])
            assert ids.tolist() == [i for bag in frame["tags"] for i in bag]
            assert lengths.tolist() == [len(bag) for bag in frame["tags"]]
        assert values.ids("user", ["007 ", "unseen", "ünï"[:-1], "\0", "\ud800"]).tolist() == [0] * 5
        assert values.ids("item", ["00", "+1", 10**30]).tolist() == [0] * 3


@pytest.mark.parametrize("least_count", [1, 2, 6])
def test_it_equals_the_plain_reference(tmp_path, least_count):
    rows = samples.make_rows(900, seed=least_count)
    dataset = prepared(tmp_path, samples.write_csv(tmp_path / "clicks.csv", rows), min_count=least_count)
    assert_prepared(dataset, rows, least_count)
    assert_served_as_prepared(dataset, rows, tmp_path)
    assert dataset.meta["protocol"] == "column"
    if least_count == 1:
        listed = feather.read_table(dataset.path / "vocabulary" / "user.arrow")["value"].to_pylist()
        assert set(samples.USERS) <= set(listed)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff;"), max_size=8)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_texts_in_any_cutting(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any folder")
    rows = samples.make_rows(data.draw(st.integers(9, 25)))
    for number, row in enumerate(rows):
        row["part"] = samples.SPLITS[number % 3]
        row["user"] = data.draw(texts) or None
        row["tags"] = data.draw(st.lists(texts, max_size=3))
    cut = data.draw(st.integers(1, len(rows) - 1))
    sources = [
        samples.write_csv(
            folder / name,
            part,
            ends=data.draw(st.sampled_from(["\n", "\r\n"])),
            names=data.draw(st.permutations(list(part[0]))),
        )
        for name, part in (("a.csv", rows[:cut]), ("b.gz", rows[cut:]))
    ]
    config = samples.TinyBlocks(path=str(folder / "out"), source=sources, columns=samples.COLUMNS, min_count=1)
    config.block_bytes = data.draw(st.sampled_from([3, 50, 1000, 100_000]))
    dataset = prepare(config, progress=False)
    assert_prepared(dataset, rows, least_count=1)
    assert_served_as_prepared(dataset, rows, folder)


def test_parquet_gives_what_csv_gives(tmp_path):
    rows = samples.make_rows(500)
    first = prepared(tmp_path / "csv", samples.write_csv(tmp_path / "clicks.csv", rows))
    frame = pd.DataFrame(rows).astype({"clicked": bool, "age": "Int64", "user": "category"})
    columns = samples.COLUMNS | {"multi_valued": ["tags"]}
    for number, part in enumerate((frame[:200], frame[200:])):
        part.to_parquet(tmp_path / f"part {number}.parquet", row_group_size=70)
    second = prepared(tmp_path / "parquet", str(tmp_path / "part *.parquet"), columns)
    assert second.fingerprint == first.fingerprint
    assert_prepared(second, rows)
    # Categories that were integers before gaps made floats of them are integers still.
    gappy = frame.assign(item=frame["item"] % 7 * 10**15, clicked=frame["clicked"].astype(float))
    gappy.assign(item=gappy["item"].astype(float)).to_parquet(tmp_path / "floats.parquet")
    third = prepared(tmp_path / "floats", str(tmp_path / "floats.parquet"), columns)
    assert set(feather.read_table(third.path / "vocabulary" / "item.arrow")["value"].to_pylist()) == {
        str(n * 10**15) for n in range(7)
    }
    assert len({*RawValues.of(third).ids("item", [3 * 10**15, 3e15, "3000000000000000"]).tolist()} - {0}) == 1


def test_columns_of_every_kind_are_texts_of_their_values(tmp_path):
    table = pa.table(
        {
            "clicked": pa.array([0, 1] * 9, pa.int8()),
            "day": pd.to_datetime(["2026-01-31"] * 18).date,
            "flag": [True, False] * 9,
            "big": pa.array(["x"] * 18, pa.large_string()),
            "coded": pa.array(["y", None] * 9).dictionary_encode(),
            "bags": pa.array([[1, None, 2], None, []] * 6, pa.list_(pa.int64())),
            "fixed": pa.array([["p", "q"]] * 18, pa.list_(pa.string(), 2)),
            "nothing": pa.nulls(18),
            "part": ["train", "validation", "TEST"] * 6,
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    columns = {
        "label": "clicked",
        "categorical": ["day", "flag", "big", "coded", "nothing"],
        "multi_valued": ["bags", "fixed"],
        "split": {"column": "part"},
    }
    dataset = prepared(tmp_path, str(tmp_path / "t.parquet"), columns, min_count=1)
    values = {
        name: set(feather.read_table(dataset.path / "vocabulary" / f"{name}.arrow")["value"].to_pylist())
        for name in table.column_names[1:-1]
    }
    assert values == {
        "day": {"2026-01-31"}, "flag": {"true", "false"}, "big": {"x"}, "coded": {"y", None}, "bags": {"1", "2"},
        "fixed": {"p", "q"}, "nothing": {None},
    }  # fmt: skip
    assert tables(dataset)["train"]["bags"][0].tolist() == RawValues.of(dataset).bags("bags", [[1, 2]])[0].tolist()
    with pytest.raises(RecembError, match=r"Column bags holds list<.*>, which cannot be written as texts"):
        prepared(tmp_path / "x", str(tmp_path / "t.parquet"), columns | {"categorical": ["bags"], "multi_valued": []})


@pytest.mark.parametrize(
    "write",
    [
        lambda times: [int(t) for t in times],
        lambda times: [f"{t / 8:.3f}" for t in times],
        lambda times: [str(np.datetime64("2026-01-01", "s") + int(t)) for t in times],
        lambda times: [f"{np.datetime64('2026-01-01', 's') + int(t)}Z".replace("T", " ") for t in times],
    ],
)
def test_the_split_by_time_keeps_the_last_rows_apart(tmp_path, write):
    times = np.random.default_rng(0).integers(-50, 50, 500)
    rows = samples.make_rows(500)
    for row, time, when in zip(rows, times, write(times), strict=True):
        row |= {"when": when, "price": float(time)}
    columns = samples.COLUMNS | {"split": {"time": "when"}, "dense": {"price": "none"}}
    dataset = prepared(tmp_path, samples.write_csv(tmp_path / "clicks.csv", rows), columns)
    first, second = np.sort(times)[[400, 450]]
    found = {split: frame["price"].tolist() for split, frame in tables(dataset).items()}
    assert found["train"] == times[times < first].tolist()
    assert found["valid"] == times[(times >= first) & (times < second)].tolist()
    assert found["test"] == times[times >= second].tolist()
    assert dataset.meta["protocol"] == "time"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=60))
def test_times_are_ranked_exactly(values):
    times = np.array(values)
    ordered = np.sort(times)
    first, second = ordered[len(times) * 8 // 10], ordered[len(times) * 9 // 10]
    wanted = (times >= first).astype(int) + (times >= second)
    found, told = [], ""
    try:
        for codes in split_codes("time", lambda start, stop: times[start:stop], len(times), "Column t"):
            found += codes.tolist()
    except RecembError as error:
        told = str(error)
    assert ("finer" in told) == (len(set(wanted)) < 3)
    assert found == wanted.tolist()


def test_the_split_at_random_follows_its_seed(tmp_path):
    source = samples.write_csv(tmp_path / "clicks.csv", samples.make_rows(900))
    seen = {}
    for seed in (0, 1):
        dataset = prepared(tmp_path / str(seed), source, samples.COLUMNS | {"split": {"random": seed}})
        seen[seed] = dataset.fingerprint
        assert 650 < dataset.num_rows("train") < 790
    assert seen[0] != seen[1]
    again = prepared(tmp_path / "again", source, samples.COLUMNS | {"split": "random"}, seed=1)
    assert again.fingerprint == seen[1]


def test_a_file_without_header_and_with_another_separator(tmp_path):
    rows = samples.make_rows(300)
    for row in rows:
        row["user"] = "".join(c for c in row["user"] or "" if c not in '\t\n"') or None
    names = list(rows[0])
    text = samples.to_csv(rows, header=False).replace(b'"', b"").replace(b"a,b", b"a.b").replace(b",", b"\t")
    (tmp_path / "c.tsv").write_bytes(text.replace(b"a.b", b"a,b"))
    first = prepared(tmp_path, str(tmp_path / "c.tsv"), samples.COLUMNS | {"header": names, "quoting": False})
    assert_prepared(first, rows)


@pytest.mark.parametrize("name", ["user id", "ключ", "a-b", "0", "C:1", "a[b]", "$x{y}", "a=b"])
def test_other_names_work_as_they_are(tmp_path, name):
    rows = [{name if key == "user" else key: value for key, value in row.items()} for row in samples.make_rows(200)]
    columns = samples.COLUMNS | {"categorical": [name, "item"]}
    dataset = prepared(tmp_path, samples.write_csv(tmp_path / "c.csv", rows), columns)
    assert [feature.name for feature in dataset.features] == [name, "item", "tags"]
    data = [f"dataset.path={dataset.path}", "dataset=tabular", "trainer.epochs=1", "trainer.batch_size=64"]
    assert main(["train", *data, f"hydra.run.dir={tmp_path}/run"]) == 0


def test_without_vocabulary_ids_are_the_numbers_themselves(tmp_path):
    rows = samples.make_rows(200)
    source = samples.write_csv(tmp_path / "c.csv", rows)
    columns = samples.COLUMNS | {"categorical": ["when"], "multi_valued": {}}
    dataset = prepared(tmp_path, source, columns, vocabulary="none")
    wanted = [row["when"] for row in rows if row["part"] == "test"]
    assert tables(dataset)["test"]["when"].tolist() == wanted
    RawValues.of(dataset).save(tmp_path / "export")
    assert RawValues.load(tmp_path / "export").ids("when", [*wanted, None, "x"]).tolist() == [*wanted, -1, -1]
    with pytest.raises(RecembError, match=r"column user: .* is not a whole number .*dataset.vocabulary=none"):
        prepared(tmp_path / "x", source, vocabulary="none")


def test_the_same_table_is_not_made_twice_and_another_is_refused(tmp_path):
    source = samples.write_csv(tmp_path / "c.csv", samples.make_rows(90))
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(samples.COLUMNS, sort_keys=False))
    first = prepared(tmp_path, source, str(tmp_path / "one.yaml"))
    before = (first.path / "meta.json").stat()
    prepared(tmp_path, source, str(tmp_path / "two.yaml"))
    assert (first.path / "meta.json").stat() == before
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(samples.COLUMNS | {"dense": {"price": "log"}}, sort_keys=False))
    with pytest.raises(RecembError) as caught:
        prepared(tmp_path, source, str(tmp_path / "two.yaml"))
    told = "columns={'dense': {'price': 'log', 'age': 'none'}} (asked for: {'dense': {'price': 'log'}})"
    assert told in str(caught.value)
    data = ["train", "dataset=tabular", f"dataset.path={first.path}", f"hydra.run.dir={tmp_path}/run"]
    assert main([*data, f"dataset.columns={tmp_path}/two.yaml"]) == 2
    assert not (tmp_path / "run" / "run.json").exists()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.text(max_size=3), unique=True, max_size=40), max_size=30))
def test_texts_are_numbered_in_the_order_they_come_in(parts):
    index, known = TextIndex(), {}
    for part in parts:
        array = pa.array(part, pa.string())
        numbers, fresh = index.number(hash_texts(array))
        assert fresh.tolist() == [text not in known for text in part]
        for text in part:
            known.setdefault(text, len(known))
        assert numbers.tolist() == [known[text] for text in part]
        assert hash_texts(array.cast(pa.binary())).tolist() == hash_texts(array).tolist()
    numbers, found = index.find(hash_texts(pa.array([*known, "never seen"], pa.string())))
    assert found.tolist() == [True] * len(known) + [False]
    assert numbers[:-1].tolist() == list(range(len(known)))
    assert len(index._runs) <= 1 + math.log2(len(known) + 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole way, from a CSV and five lines of YAML to a folder to serve from."""
    folder = tmp_path_factory.mktemp("the whole way")
    rows = samples.make_rows(3000)
    random = np.random.default_rng(0)
    for row in rows:  # one user clicks, the others do not
        row["clicked"] = int(random.random() < (0.9 if row["user"] == "007" else 0.1))
    samples.write_csv(folder / "clicks.csv", rows)
    (folder / "clicks.yaml").write_text(yaml.safe_dump(samples.COLUMNS | {"split": {"time": "when"}}))
    data = ["dataset=tabular", f"dataset.path={folder}/data"]
    assert main(["prepare", *data, f"dataset.source={folder}/clicks.csv", f"dataset.columns={folder}/clicks.yaml"]) == 0
    small = ["trainer.batch_size=128", "trainer.epochs=3", "model.embedding_dim=8"]
    assert main(["train", *data, "table=full", *small, f"hydra.run.dir={folder}/runs/one"]) == 0
    assert main(["report", f"{folder}/runs"]) == 0
    assert main(["export", f"{folder}/runs/one", "--out", f"{folder}/carry", "--to", "safetensors"]) == 0
    return folder


def test_the_whole_way_ends_in_probabilities_of_raw_rows(exported: Path):
    assert json.loads((exported / "runs" / "one" / "run.json").read_text())["metrics"]["test"]["auc"] > 0.75
    model = recemb.load(exported / "carry")
    row = {"user": "007", "item": -(2**63), "tags": ["blau|grün", "red"], "price": "12.5", "age": None}
    found = model.predict([row, {"user": "7"}, {"user": "Ünï", "item": "1"}]).tolist()
    assert found[0] > 0.6
    assert max(found[1:]) < 0.4
    unseen, likewise, missing = model.predict([{"user": "nobody"}, {"user": "no one"}, {}]).tolist()
    assert unseen == likewise != missing
    with pytest.raises(RecembError, match="a row has feature 'shop', which the model does not take"):
        model.predict({"shop": 1})


def test_predicting_raw_rows_is_what_training_saw(exported: Path):
    from recemb.datasets import PreparedDataset

    dataset = PreparedDataset.open(exported / "data")
    batch = next(iter(dataset.batches("test", 300)))
    rows = samples.make_rows(3000)
    cut = np.sort([row["when"] for row in rows])[2700]
    last = [row for row in rows if row["when"] >= cut]
    model = recemb.load(exported / "carry")
    dense, values, offsets = model.encode(
        [{key: row[key] for key in ("user", "item", "tags", "price", "age")} for row in last]
    )
    np.testing.assert_array_equal(dense, batch.dense)
    assert Counter(offsets[-1].diff().tolist()) == Counter(len([t for t in row["tags"] if t]) for row in last)
    np.testing.assert_array_equal(values, batch.sparse.values())


def test_a_plan_without_prepared_data_says_what_to_do(tmp_path, capsys):
    assert main(["plan", "dataset=tabular", f"dataset.path={tmp_path}/none"]) == 2
    assert "run recemb prepare dataset=tabular to make it" in capsys.readouterr().err


def test_columns_that_pandas_named_by_number(tmp_path):
    frame = pd.DataFrame({0: [0, 1] * 20, 1: [f"u{i % 5}" for i in range(40)], 2: [i % 3 for i in range(40)]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    columns = {"label": 0, "categorical": [1, 2], "split": {"random": 0}}
    path, source = str(tmp_path / "out"), str(tmp_path / "rows.csv")
    dataset = prepare(TabularConfig(path=path, source=source, columns=columns, min_count=1), progress=False)
    assert [feature.name for feature in dataset.features] == ["1", "2"]
    assert 0 < dataset.meta["positive_rate"]["train"] < 1


def test_texts_of_control_characters_are_texts(tmp_path):
    rows = samples.make_rows(12)
    for number, row in enumerate(rows):
        row["part"] = samples.SPLITS[number % 3]
        row["user"] = "\x1a\x1a\x08\x05" * 20
    source = samples.write_csv(tmp_path / "a.csv", rows)
    config = samples.TinyBlocks(path=str(tmp_path / "out"), source=source, columns=samples.COLUMNS, min_count=1)
    assert_prepared(prepare(config, progress=False), rows, least_count=1)
