import gzip
import re
from contextlib import contextmanager
from pathlib import Path

import criteo_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.datasets import CriteoConfig, prepare
from recemb.datasets.criteo_text import FIELDS, NotPlain, _diagnose, _parse_plain
from recemb.options import RecembError


@contextmanager
def refused(tmp_path, *words):
    """Expect one sentence with all the words, and no trace of an output."""
    with pytest.raises(RecembError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message
    assert not [name for name in samples.names(tmp_path) if "out" in name]


def config_of(tmp_path, source, **options):
    return samples.TinyBlocks(path=str(tmp_path / "out"), source=str(source), **options)


def with_field(column, value, line=17):
    lines = [[field.encode() for field in row] for row in samples.make_rows(40)]
    lines[line - 1][column] = value
    return b"".join(b"\t".join(fields) + b"\n" for fields in lines)


BAD_FIELDS = [
    ("label", b"2", "label", "'2' is not 0 or 1"),
    ("label", b"", "label", "'' is not 0 or 1"),
    ("label", b"01", "label", "'01' is not 0 or 1"),
    ("label", b"-0", "label", "'-0' is not 0 or 1"),
    *(
        ("I3", text, "integer", f"{text.decode()!r} is not an integer of 64 bits")
        for text in (
            b"+5",
            b" 5",
            b"5 ",
            b"5.0",
            b"0x1f",
            b"0X1F",
            b"1e3",
            b"-",
            b"--5",
            b"NA",
            b"null",
            b'"5"',
            b"\x00",
        )
    ),
    ("I13", b"9223372036854775808", "integer", "is not an integer of 64 bits"),
    ("I1", b"-9223372036854775809", "integer", "is not an integer of 64 bits"),
    *(
        ("C7", text, "category", f"{text.decode()!r} is not 1 to 8 hexadecimal digits")
        for text in (
            b"7e5c2ffg",
            b"123456789",
            b"0x12",
            b"-1",
            b" ",
            b"a b",
            b"7e5c2ff/",
            b"7e5c2ff:",
            b"@",
            b"`",
            b"G",
        )
    ),
    ("C26", b"7e5c\r2ff", "category", "is not 1 to 8 hexadecimal digits"),
    ("C1", b"\xff\xfe12", "encoding", "is not UTF-8 text"),
    ("I2", b"\x80", "encoding", "is not UTF-8 text"),
    ("C2", b"z" * 1000, "category", "'" + "z" * 40 + "…'"),
]


@pytest.mark.parametrize(("field", "value", "reason", "words"), BAD_FIELDS)
def test_a_bad_field_is_named_with_file_line_and_field(tmp_path, field, value, reason, words):
    source = tmp_path / "my train.txt"
    source.write_bytes(with_field(FIELDS.index(field), value))
    config = config_of(tmp_path, source)
    with refused(tmp_path, f"{source} line 17, field {field}: ", words, "on_bad_rows=skip"):
        prepare(config, progress=False)
    dataset = prepare(config, on_bad_rows="skip", progress=False)
    assert dataset.meta["skipped"] == {reason: 1}
    assert sum(dataset.meta["rows"].values()) == 39


@pytest.mark.parametrize("fields", [1, 38, 39, 41, 80])
def test_a_wrong_number_of_fields(tmp_path, fields):
    lines = samples.to_text(samples.make_rows(40)).splitlines(keepends=True)
    lines[16] = b"\t".join([b"1"] * fields) + b"\n"
    (tmp_path / "train.txt").write_bytes(b"".join(lines))
    config = config_of(tmp_path, tmp_path / "train.txt")
    with refused(tmp_path, "train.txt line 17: ", f"{fields} field", "instead of 40"):
        prepare(config, progress=False)
    assert prepare(config, on_bad_rows="skip", progress=False).meta["skipped"] == {"fields": 1}


def test_the_line_is_counted_in_the_second_file_and_in_unzipped_text(tmp_path):
    first = samples.write(tmp_path / "a.txt", samples.make_rows(30), last_end=False)
    (tmp_path / "b.gz").write_bytes(gzip.compress(with_field(5, b"x", line=33)))
    config = samples.TinyBlocks(path=str(tmp_path / "out"), source=[first, str(tmp_path / "b.gz")])
    with refused(tmp_path, f"{tmp_path}/b.gz line 33, field I5"):
        prepare(config, progress=False)


def test_skipping_leaves_exactly_the_good_rows(tmp_path):
    rows = samples.make_rows(60)
    lines = samples.to_text(rows).splitlines(keepends=True)
    for at in (50, 31, 30, 0):
        lines.insert(at, b"no row at all\n")
    lines.insert(12, b"\t".join([b"5"] * 40) + b"\n")
    (tmp_path / "train.txt").write_bytes(b"".join(lines))
    dataset = prepare(config_of(tmp_path, tmp_path / "train.txt"), on_bad_rows="skip", progress=False)
    assert dataset.meta["skipped"] == {"fields": 4, "label": 1}
    good = samples.write(tmp_path / "good.txt", rows)
    assert (
        dataset.fingerprint == prepare(CriteoConfig(path=str(tmp_path / "o2"), source=good), progress=False).fingerprint
    )


good_field = st.sampled_from([b"", b"0", b"1", b"-3", b"007", b"-0", b"12345678", b"ab", b"9223372036854775807"])
odd_field = (
    good_field | st.text("01 +-xXeEaAgG.,_\t\r\v\x00\ufeffé\"'", max_size=4).map(str.encode) | st.binary(max_size=3)
)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), column=st.integers(0, 39), field=odd_field)
def test_the_fast_path_never_takes_what_the_slow_one_refuses(data, column, field):
    lines = [line.encode().split(b"\t") for line in ("1" + "\t" * 39, "0" + "\t7" * 13 + "\tab" * 26)]
    at = data.draw(st.integers(0, 1))
    lines[at][column] = field
    text = b"\n".join(b"\t".join(fields) for fields in lines)
    slow = [_diagnose(line.removesuffix(b"\r")) for line in text.split(b"\n") if line.removesuffix(b"\r")]
    try:
        chunk = _parse_plain(text, 0)
    except NotPlain:
        return
    assert slow == [None, None]
    assert len(chunk.labels) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: b"\xef\xbb\xbf" + b"\n".join(lines),
        lambda lines: b"\r".join(lines),
        lambda lines: b"\n".join([lines[0] + b"\r\r", lines[1]]),
        lambda lines: b"\n".join([b"01" + lines[0][1:], lines[1][1:]]),
        lambda lines: b"\n".join([lines[0], lines[1] + b"123456", lines[0] + b"1234567890"]),
    ],
)
def test_the_fast_path_leaves_these_to_the_slow_one(spoil):
    lines = samples.to_text(samples.make_rows(2, missing=0)).splitlines()
    with pytest.raises(NotPlain):
        _parse_plain(spoil(lines), 0)


def test_the_fast_path_takes_ordinary_text():
    for end in ("\n", "\r\n"):
        text = samples.to_text(samples.make_rows(50), end)
        assert len(_parse_plain(text, 0).labels) == 50


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_an_unlabelled_file(tmp_path, policy):
    rows = [row[1:] for row in samples.make_rows(30)]
    source = samples.write(tmp_path / "test.txt", rows)
    with refused(tmp_path, source, "has no labels", "the labelled training file"):
        prepare(config_of(tmp_path, source), on_bad_rows=policy, progress=False)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", gzip.compress(b"", mtime=0)], ids=["nothing", "blank lines", "nothing in gzip"]
)
def test_an_empty_file(tmp_path, content):
    (tmp_path / "train.txt").write_bytes(content)
    with refused(tmp_path, "train.txt is empty"):
        prepare(config_of(tmp_path, tmp_path / "train.txt"), progress=False)


def test_sources_that_are_not_there(tmp_path):
    for source, words in (
        (tmp_path / "none.txt", "There is no file"),
        (tmp_path / "*.txt", "No file matches"),
        (tmp_path, "is a folder; name the files in it"),
        ("/dev/null", "is not a regular file"),
        ("", "dataset.source is not given"),
        (",", "names no file"),
    ):
        with refused(tmp_path, words):
            prepare(config_of(tmp_path, source), progress=False)
    with refused(tmp_path, "dataset.source is not given"):
        prepare(CriteoConfig(path=str(tmp_path / "out")), progress=False)


def test_a_file_that_may_not_be_read(unprivileged):
    source = Path(samples.write(unprivileged / "train.txt", samples.make_rows(30)))
    source.chmod(0)
    with refused(unprivileged, f"{source} cannot be read (Permission denied)"):
        prepare(config_of(unprivileged, source), progress=False)


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(samples.to_text(samples.make_rows(300)))
    for name, content, words in (
        ("cut.gz", whole[: len(whole) // 2], "ends in the middle of its gzip stream"),
        ("tail.gz", whole[:-3], "ends in the middle of its gzip stream"),
        ("sum.gz", whole[:-8] + bytes([whole[-8] ^ 255]) + whole[-7:], "is damaged (CRC check failed"),
        ("junk.gz", whole + b"junk", "is damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        with refused(tmp_path, name, words):
            prepare(CriteoConfig(path=str(tmp_path / "out"), source=str(tmp_path / name)), progress=False)


def test_a_text_without_line_ends_is_refused_in_little_memory(tmp_path):
    with (tmp_path / "train.txt").open("wb") as file:
        file.write(b"1" * 4096)
        file.truncate(1 << 30)
    with refused(tmp_path, "line 1 is longer than 16 MiB"):
        prepare(CriteoConfig(path=str(tmp_path / "out"), source=str(tmp_path / "train.txt")), progress=False)


def test_messages_do_not_repeat_endless_lines(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"x" * 100_000 + b"\n")
    with pytest.raises(RecembError) as caught:
        prepare(config_of(tmp_path, tmp_path / "train.txt"), progress=False)
    assert len(re.sub(r"/\S*", "", str(caught.value))) < 200
