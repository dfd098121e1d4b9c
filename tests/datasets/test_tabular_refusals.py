"""Tables that cannot be read, descriptions that cannot be, and what is on the edge of it."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tabular_samples as samples
import yaml
from pyarrow import parquet as pq
from tabular_samples import assert_prepared, prepared, tables

from recemb.datasets import TabularConfig
from recemb.datasets.raw_values import RawValues
from recemb.options import RecembError


@pytest.mark.parametrize(
    ("label", "texts", "wanted"),
    [
        ("clicked", ["true", "False", "TRUE", "0", "1.0", "0.0"], [1, 0, 1, 0, 1, 0]),
        ({"clicked": ">=4"}, ["4", "3.99", "5", "-1", "1e3", "0"], [1, 0, 1, 0, 1, 0]),
        ({"clicked": "==buy"}, ["buy", "view", "buy", "Buy", "buy", "sell"], [1, 0, 1, 0, 1, 0]),
        ({"clicked": "< 2"}, ["1", "2", "0", "3", "-7", "2.5"], [1, 0, 1, 0, 1, 0]),
    ],
)
def test_labels(tmp_path, label, texts, wanted):
    rows = samples.make_rows(60)
    for number, row in enumerate(rows):
        row |= {"clicked": texts[number % 6], "part": samples.SPLITS[number // 6 % 3]}
    dataset = prepared(tmp_path, samples.write_csv(tmp_path / "c.csv", rows), samples.COLUMNS | {"label": label})
    assert tables(dataset)["test"]["label"].tolist() == wanted * 3


BAD = [
    ("clicked", "2", "'2' is not 0, 1, true or false; a rule makes labels of other values"),
    ("clicked", "", "a missing value is not 0, 1, true or false"),
    ("price", "cheap", "'cheap' is not a number"),
    ("part", "holdout", "'holdout' is not train, valid or test"),
]


@pytest.mark.parametrize(("column", "value", "words"), BAD)
def test_a_bad_value_is_named_with_file_line_and_column(tmp_path, column, value, words):
    rows = samples.make_rows(60)
    for row in rows:
        row["user"] = "x"
    rows[40][column] = value
    source = samples.write_csv(tmp_path / "my clicks.csv", rows)
    with pytest.raises(RecembError) as caught:
        prepared(tmp_path, source)
    assert f"{source} line 42, column {column}: {words}" in str(caught.value)
    assert "on_bad_rows=skip" in str(caught.value)
    dataset = prepared(tmp_path, source, on_bad_rows="skip")
    assert dataset.meta["skipped"] == {column: 1}
    assert_prepared(dataset, rows[:40] + rows[41:])
    pq.write_table(pa.Table.from_pylist([{name: str(v) for name, v in row.items()} for row in rows]), tmp_path / "p")
    with pytest.raises(RecembError, match=f"p row 41, column {column}: "):
        prepared(tmp_path / "parquet", str(tmp_path / "p"))


def test_numbers_that_are_missing_or_too_large(tmp_path):
    rows = samples.make_rows(60)
    spellings = ["NA", "NaN", "null", "None", "n/a", "\\N", "inf", "-Infinity", "1e400", " "]
    for row, text in zip(rows, spellings, strict=False):
        row |= {"price": text, "age": text, "part": "train"}
    rows[10] |= {"price": "1e300", "age": "1e300", "part": "train"}
    rows[11] |= {"price": " +2.5 ", "age": "-1_0", "part": "train"}
    dataset = prepared(tmp_path, samples.write_csv(tmp_path / "c.csv", rows))
    found = tables(dataset)["train"]
    assert found["price"][:10].isna().all()
    assert found["age"][:11].isna().all()
    assert found["price"][10] == pytest.approx(300 * math.log(10))
    assert (found["price"][11], found["age"][11]) == (pytest.approx(math.log(3.5)), -10)
    values = RawValues.of(dataset)
    for name in ("price", "age"):
        np.testing.assert_array_equal(values.dense(name, [row[name] for row in rows[:12]]), found[name][:12])


def test_rows_of_too_few_values_and_other_broken_files(tmp_path):
    rows = [row | {"user": "x"} for row in samples.make_rows(60)]
    lines = samples.to_csv(rows).splitlines(keepends=True)
    source = tmp_path / "c.csv"
    source.write_bytes(b"".join([*lines[:30], b"\n", b"1,2\n", *lines[30:]]))
    with pytest.raises(RecembError, match=r"c.csv line 32: 2 values instead of 8 .*on_bad_rows=skip"):
        prepared(tmp_path, str(source))
    dataset = prepared(tmp_path, str(source), on_bad_rows="skip")
    assert dataset.meta["skipped"] == {"fields": 1}
    assert_prepared(dataset, rows)
    for content, words in (
        (
            b"".join(lines).replace(b",x,", b",\xff,", 1),
            "c.csv line 2 is not UTF-8 text, which it must be; .*iconv -f WINDOWS-1252",
        ),
        (b"PAR1" + b"x" * 50, "is damaged"),
        (b"a,b\n1,2\n", "has no column 'clicked'; it has 'a', 'b'"),
        (b"clicked," + lines[0] + lines[1], "has 2 columns named 'clicked'"),
        (b"", "is empty"),
        (b" \n\n  ", "c.csv begins with nothing but blanks; its first line must name the columns"),
        (b"".join(lines).replace(b"\n", b"\r"), "has lines that end in CR alone; write it with LF or CRLF"),
    ):
        source.write_bytes(content)
        with pytest.raises(RecembError, match=words):
            prepared(tmp_path / "broken", str(source))


def test_a_missing_column_is_told_before_anything_is_read(tmp_path):
    source = samples.write_csv(tmp_path / "c.csv", samples.make_rows(60))
    columns = samples.COLUMNS | {"categorical": ["user", "shop"]}
    with pytest.raises(
        RecembError, match=r"has no column 'shop'; it has 'clicked', .*mend the file or dataset.columns"
    ):
        TabularConfig(source=source, columns=columns).open(on_bad_rows="error")


@pytest.mark.parametrize(
    "name", ["user.id", "a/b", "it's", 'a"b', "a\\b", "keys", "type", "label", "pop", " ", "a\tb", "x" * 201]
)
def test_a_name_that_cannot_be_is_refused_and_can_be_another(tmp_path, name):
    rows = [{name if key == "user" else key: value for key, value in row.items()} for row in samples.make_rows(200)]
    source = samples.write_csv(tmp_path / "c.csv", rows)
    with pytest.raises(RecembError, match=r"a feature cannot be named .*; add rename: \{"):
        prepared(tmp_path, source, samples.COLUMNS | {"categorical": [name, "item"]})
    dataset = prepared(tmp_path, source, samples.COLUMNS | {"rename": {name: "user"}})
    assert_prepared(dataset, samples.make_rows(200))
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "c.parquet")
    columns = samples.COLUMNS | {"rename": {name: "user"}, "multi_valued": ["tags"]}
    assert prepared(tmp_path / "p", str(tmp_path / "c.parquet"), columns).fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": "x"}, "has 'labels', which means nothing here; did you mean label?"),
        ({"label": None}, "has no label"),
        ({"split": None}, "has no split"),
        ({"split": {"date": "when"}}, "split is {'date': 'when'}; it must be"),
        ({"split": {"random": "x"}}, "the seed of split is 'x'"),
        ({"label": {"clicked": "4 or more"}}, "the rule of the label is '4 or more'"),
        ({"label": {"clicked": ">=many"}}, "the rule of the label is '>=many'"),
        ({"categorical": [], "multi_valued": {}}, "names no categorical column"),
        ({"categorical": ["user", "user"]}, "categorical names 'user' twice"),
        ({"categorical": ["user", "price"]}, "names 'price' in several places"),
        ({"categorical": [True]}, "is True; it must be a text"),
        ({"dense": {"price": "sqrt"}}, "the transform of price is 'sqrt'; it must be one of log, none"),
        ({"separator": "|\n"}, "separator is '|\\n'; it must be one or more characters"),
        ({"rename": {"a": "b"}}, "renames 'a' to 'b', which is named nowhere else"),
        ({"rename": {"a": "user", "b": "user"}}, "renames 'a' and 'b' to 'user'; a feature is one column"),
        ({"quoting": "no"}, "quoting is 'no'; it must be true or false"),
        ({"split": {"column": "clicked"}}, "split and label are both the column 'clicked'"),
    ],
)
def test_what_is_wrong_in_the_yaml_is_told_in_a_sentence(tmp_path, change, words):
    path = tmp_path / "clicks.yaml"
    path.write_text(yaml.safe_dump(samples.COLUMNS | change))
    source = samples.write_csv(tmp_path / "c.csv", samples.make_rows(60))
    with pytest.raises(RecembError) as caught:
        prepared(tmp_path, source, str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "is no YAML"), ("- a", "holds no names with values"), (None, "cannot be read")]
)
def test_a_yaml_file_that_cannot_be_read(tmp_path, text, words):
    path = tmp_path / "clicks.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecembError, match=words):
        prepared(tmp_path, samples.write_csv(tmp_path / "c.csv", samples.make_rows(60)), str(path))
    with pytest.raises(RecembError, match=r"dataset.columns is not given; name a YAML file"):
        prepared(tmp_path, str(tmp_path / "c.csv"), "")


@pytest.mark.parametrize(
    ("labels", "told"),
    [({"train": 0, "valid": 0, "test": 1}, "all training rows have label 0, and all test rows have label 1; "),
     ({"train": None, "valid": None, "test": 0}, "all test rows have label 0; nothing is learnt from one label"),
     ({"train": None, "valid": 1, "test": None}, "")],
)  # fmt: skip
def test_rows_of_one_label_are_told(tmp_path, caplog, labels, told):
    rows = samples.make_rows(90)
    for number, row in enumerate(rows):
        row["part"] = samples.SPLITS[number % 3]
        row["clicked"] = number // 3 % 2 if labels[row["part"]] is None else labels[row["part"]]
    prepared(tmp_path, samples.write_csv(tmp_path / "c.csv", rows))
    warned = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(warned) == bool(told)
    assert told in "".join(warned)


def test_splits_that_lack_rows_are_told(tmp_path, monkeypatch):
    rows = samples.make_rows(90)
    for number, row in enumerate(rows):
        row |= {"part": ["train", "test"][number % 2], "when": number // 30}
    source = samples.write_csv(tmp_path / "c.csv", rows)
    with pytest.raises(RecembError, match="Column part leaves no row for validation; mark some as valid"):
        prepared(tmp_path, source)
    with pytest.raises(
        RecembError, match="Column when leaves no row for validation, since too many rows have the same"
    ):
        prepared(tmp_path, source, samples.COLUMNS | {"split": {"time": "when"}})
    rows[70]["when"] = "2026-01-01"
    samples.write_csv(tmp_path / "c.csv", rows)
    with pytest.raises(RecembError, match=r"column when: '2026-01-01' is not a number or a date"):
        prepared(tmp_path, source, samples.COLUMNS | {"split": {"time": "when"}}, config=TabularConfig)
    for row in rows[60:]:
        row["when"] = "2026-01-01"
    samples.write_csv(tmp_path / "c.csv", rows)
    monkeypatch.setattr(samples.TinyBlocks, "block_bytes", 100)
    with pytest.raises(RecembError, match="column when: times are written as dates here and as numbers before"):
        prepared(tmp_path, source, samples.COLUMNS | {"split": {"time": "when"}})
