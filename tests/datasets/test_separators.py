"""Separators of several characters, and of blanks in any number."""

import pytest
import tabular_samples as samples
from tabular_samples import assert_prepared, prepared

from recemb.datasets.tabular import TabularConfig
from recemb.options import RecembError

ROWS = samples.make_rows(120)


def written(path, separator, quoting, header=True):
    """Write the rows by hand, values that hold a separator, a quote or a line end in quotes."""

    def cell(value):
        text = ";".join(value) if isinstance(value, list) else "" if value is None else str(value)
        needed = separator in text or '"' in text or "\n" in text
        return '"' + text.replace('"', '""') + '"' if needed and quoting else text

    lines = [separator.join(map(cell, row.values())) for row in ROWS]
    path.write_bytes("".join(f"{line}\n" for line in [separator.join(ROWS[0])] * header + lines).encode())
    return str(path)


@pytest.mark.parametrize("separator", ["::", "||", ", ", "|", "§", "\\t", "\x01\x02"])
def test_any_separator_with_quotes(tmp_path, monkeypatch, separator):
    rows = [
        row | {"user": value}
        for row, value in zip(ROWS, [f"a{separator}b", 'say "x"', '"', '""', 'a"::"b', "l\n2"] * 20, strict=True)
    ]
    monkeypatch.setattr(f"{__name__}.ROWS", rows)
    source = written(tmp_path / "rows.csv", "\t" if separator == "\\t" else separator, quoting=True)
    assert_prepared(prepared(tmp_path, source, samples.COLUMNS | {"separator": separator}), rows)


def test_without_quoting_quotes_are_values(tmp_path, monkeypatch):
    rows = [row | {"user": value} for row, value in zip(ROWS, ['5" disc', '"', 'a"b"', "x"] * 30, strict=True)]
    monkeypatch.setattr(f"{__name__}.ROWS", rows)
    source = written(tmp_path / "rows.csv", "::", quoting=False, header=False)
    columns = samples.COLUMNS | {"separator": "::", "quoting": False, "header": list(rows[0])}
    assert_prepared(prepared(tmp_path, source, columns), rows)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blanks_in_any_number(tmp_path, end):
    rows = [row | {"user": f"u{i % 7}", "tags": ["t"], "price": 1.5, "age": 3} for i, row in enumerate(ROWS)]
    lines = [list(rows[0]), *([";".join(v) if isinstance(v, list) else str(v) for v in row.values()] for row in rows)]
    text = "".join(
        " " * (i % 3) + ["  ", " \t", "\t"][i % 3].join(line) + " " * (i % 2) + end for i, line in enumerate(lines)
    )
    (tmp_path / "rows.txt").write_bytes(text.encode())
    assert_prepared(prepared(tmp_path, str(tmp_path / "rows.txt"), samples.COLUMNS | {"separator": r"\s+"}), rows)


@pytest.mark.parametrize(
    ("separator", "text", "words"),
    [
        ("::", 'clicked::user\n1::5" disc\n0::6" x\n', 'has a " in the midst of a value, .*quoting: false'),
        ("::", 'clicked::user\n1::"a"b\n', 'has a " in the midst of a value'),
        (r"\s+", 'clicked user\n1 "a b"\n', r'holds a ", which the separator \\s\+ is not read with'),
        ("::", "clicked::user\n1::a::b\n", r"line 2: 3 values instead of 2 \('1::a::b'\)"),
        ("::", "clicked:user\n1:a\n", "has no column 'clicked'; it has 'clicked:user'"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(tmp_path, separator, text, words):
    (tmp_path / "rows.csv").write_text(text)
    columns = {"label": "clicked", "categorical": ["user"], "split": {"random": 0}, "separator": separator}
    with pytest.raises(RecembError, match=words):
        prepared(tmp_path, str(tmp_path / "rows.csv"), columns, config=TabularConfig)
