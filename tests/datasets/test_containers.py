"""Files in every wrapping people hand out: read as what they hold, or refused as what they are."""

import bz2
import gzip
import io
import lzma
import pickle
import re
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import criteo_samples
import movielens_samples
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tabular_samples as samples
from pyarrow import feather, ipc, orc
from tabular_samples import assert_prepared, prepared

from recemb.datasets import CriteoTerabyteConfig, prepare
from recemb.datasets.movielens import MovieLensRows
from recemb.datasets.text import read_blocks
from recemb.options import RecembError

ROWS = samples.make_rows(80)
CSV = samples.to_csv(ROWS)


def in_zip(*files, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return file.getvalue()


def in_tar(*files, mode="w:gz"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def by_arrow(codec):
    def compress(content):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()

    return compress


def encoded(name):
    return lambda content: content.decode().encode(name)


COMPRESS = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": by_arrow("zstd"),
    "lz4": by_arrow("lz4"),
}
WRAP = {
    **COMPRESS,
    "zip": lambda content: in_zip(("rows.csv", content)),
    "zip beside a macOS file": lambda content: in_zip(("__MACOSX/._rows.csv", b"\0\1"), ("a/rows.csv", content)),
    "gzip in a zip": lambda content: in_zip(("rows.csv.gz", gzip.compress(content))),
    "UTF-16": encoded("utf-16"),
    "UTF-16 LE": encoded("utf-16-le"),
    "UTF-16 BE": encoded("utf-16-be"),
    "UTF-16 BE with a mark": lambda content: b"\xfe\xff" + encoded("utf-16-be")(content),
    "UTF-32": encoded("utf-32"),
    "UTF-8 with a mark": lambda content: b"\xef\xbb\xbf" + content,
    "gzipped UTF-16": lambda content: gzip.compress(encoded("utf-16")(content)),
}


@pytest.mark.parametrize("wrapping", WRAP)
def test_a_table_is_read_as_what_it_holds(tmp_path, wrapping):
    (tmp_path / "rows").write_bytes(WRAP[wrapping](CSV))
    assert_prepared(prepared(tmp_path, str(tmp_path / "rows")), ROWS)


def test_files_in_different_wrappings_are_one_table(tmp_path, caplog):
    caplog.set_level("INFO", "recemb")
    parts = np.array_split(np.arange(len(ROWS)), len(COMPRESS))
    for part, (name, compress) in zip(parts, COMPRESS.items(), strict=True):
        content = samples.to_csv([ROWS[i] for i in part])
        (tmp_path / f"{part[0]:03d}.csv.{name}").write_bytes(compress(content))
    assert_prepared(prepared(tmp_path, f"{tmp_path}/*.csv.*"), ROWS)
    told = [record.message for record in caplog.records if "is read as it is" in record.message]
    assert len(told) == len(COMPRESS)
    assert any(line.endswith("bzip2") for line in told)


@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
def test_an_arrow_file_is_read(tmp_path, compression):
    frame = pd.DataFrame(ROWS)[[*reversed(ROWS[0])]]
    feather.write_feather(frame, tmp_path / "rows", compression=compression, chunksize=17)
    columns = samples.COLUMNS | {"multi_valued": ["tags"]}
    assert_prepared(prepared(tmp_path, str(tmp_path / "rows"), columns), ROWS)
    whole = (tmp_path / "rows").read_bytes()
    (tmp_path / "rows").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecembError, match=r"rows is damaged \(.*\); fetch or write it again"):
        prepared(tmp_path / "cut", str(tmp_path / "rows"), columns)


CRITEO = criteo_samples.make_rows(60)
CRITEO_TEXT = criteo_samples.to_text(CRITEO)


@pytest.mark.parametrize(
    "content",
    [
        in_tar(("readme.txt", b"read me"), ("test.txt", b"1\t2\n"), ("train.txt", CRITEO_TEXT)),
        in_tar(("../train.txt", CRITEO_TEXT), mode="w:xz"),
        in_tar(("./dac/train.txt", CRITEO_TEXT), mode="w"),
        in_zip(("readme.txt", b"read me"), ("dac/train.txt", CRITEO_TEXT)),
        in_zip(("../other", CRITEO_TEXT)),
        lzma.compress(CRITEO_TEXT[:700]) + bytes(8) + lzma.compress(CRITEO_TEXT[700:]),
        bz2.compress(CRITEO_TEXT[:700]) + bz2.compress(CRITEO_TEXT[700:]),
        COMPRESS["zstd"](CRITEO_TEXT[:700]) + COMPRESS["zstd"](CRITEO_TEXT[700:]),
    ],
    ids=["dac.tar.gz", "tar.xz", "tar", "zip", "outside", "xz twice", "bz2 twice", "zstd twice"],
)
def test_criteo_is_read_from_its_archive(tmp_path, content):
    source = tmp_path / "in" / "dac"
    source.parent.mkdir()
    source.write_bytes(content)
    dataset = prepare(
        criteo_samples.TinyBlocks(source=str(source), path=str(tmp_path / "out"), min_count=1), progress=False
    )
    frames, _ = criteo_samples.expected(CRITEO, criteo_samples.last_day_codes(60), lambda name: 1)
    for split, frame in zip(("train", "valid", "test"), frames, strict=True):
        pd.testing.assert_frame_equal(pd.read_feather(dataset.path / f"{split}.arrow"), frame, rtol=1e-6)
    assert sorted(path.name for path in tmp_path.rglob("*") if "rain.txt" in path.name or path.name == "other") == []


def test_days_in_different_wrappings(tmp_path):
    for day, (ending, compress) in enumerate((("", bytes), (".zip", WRAP["zip"]), (".zst", COMPRESS["zstd"]))):
        (tmp_path / f"day_{day}{ending}").write_bytes(compress(CRITEO_TEXT))
    config = CriteoTerabyteConfig(source=str(tmp_path), path=str(tmp_path / "out"))
    assert prepare(config, progress=False).meta["rows"] == {"train": 120, "valid": 30, "test": 30}


@pytest.mark.parametrize("pack", [in_zip, in_tar])
def test_movielens_is_read_from_its_archive(tmp_path, pack):
    tables = movielens_samples.make()
    folder = tmp_path / "ml-1m"
    movielens_samples.write(folder, tables)
    whole = pack(*((f"ml-1m/{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())))
    (tmp_path / "packed").write_bytes(whole)

    def labels(source):
        with ThreadPoolExecutor(1) as pool:
            rows = MovieLensRows(source)
            return [(chunk.labels.tolist(), [t.tolist() for t in chunk.tokens]) for chunk in rows.chunks(pool)], rows

    (packed, rows), (plain, _) = labels(str(tmp_path / "packed")), labels(str(folder))
    assert packed == plain
    assert [file["size"] for file in rows.files] == [len(whole)]
    (tmp_path / "packed").write_bytes(pack(("ml-1m/README", b"x"), ("ml-1m/users.dat", b"1::F::1::10::48067\n")))
    with pytest.raises(RecembError, match=r"packed is a (zip|tar) archive .*un(pack|zip)"):
        MovieLensRows(str(tmp_path / "packed"))
    for content in (in_zip(("ratings.dat", b"1::2::3::4\n")), gzip.compress(b"1::2::3::4\n")):
        (tmp_path / "packed").write_bytes(content)
        with pytest.raises(RecembError, match=r"packed is not a folder; .* or ml-1m.zip"):
            MovieLensRows(str(tmp_path / "packed"))


def written(write):
    sink = io.BytesIO()
    write(sink)
    return sink.getvalue()


TABLE = pa.table({"clicked": [0, 1], "user": ["a", "b"]})


def stream_of(table):
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


NOISE = np.random.default_rng(0).bytes(5000)
FOREIGN = {
    "is an ORC file; convert it for dataset=tabular: python -c": written(lambda sink: orc.write_table(TABLE, sink)),
    "is an Arrow stream; write it": stream_of(TABLE),
    "is an HDF5 file": b"\x89HDF\r\n\x1a\n" + NOISE,
    "is a numpy array": written(lambda sink: np.save(sink, np.arange(9))),
    "is an archive of numpy arrays": written(lambda sink: np.savez(sink, a=np.arange(9))),
    "is an Excel workbook; save it as CSV UTF-8 in Excel": in_zip(
        ("[Content_Types].xml", b""), ("xl/workbook.xml", b"")
    ),
    "is a file of Excel": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + NOISE,
    "is a file saved by PyTorch": in_zip(("archive/data.pkl", b"x"), ("archive/version", b"3")),
    "is a Python pickle; it is never loaded": pickle.dumps(ROWS),
    "is a 7z archive; unpack it: 7z x": b"7z\xbc\xaf\x27\x1c" + NOISE,
    "is a RAR archive; unpack it: unrar x": b"Rar!\x1a\x07\x01\x00" + NOISE,
    "is an SQLite database": b"SQLite format 3\0" + NOISE,
    "is a PDF": b"%PDF-1.7\n" + NOISE,
    "is a web page and not data; ": b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "is XML; if it is a server's error message": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "is JSON; convert it: python -c": b'{"clicked": 1, "user": "a"}\n',
    "is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "is binary data of an unknown kind": b"\x9a" + NOISE,
    "is a file of nothing but zero bytes": bytes(5000),
    r"is a tar archive that (begins with|has no .* in it, but) 'a/x.csv'.*; unpack it with tar -xf": in_tar(
        ("a/x.csv", CSV)
    ),
    r"is a zip archive of 2 files \('a.csv', 'b.csv'\), not of one; unpack it with unzip": in_zip(
        ("a.csv", CSV), ("b.csv", CSV)
    ),
    "is a zip archive of 0 files": in_zip(),
    "holds a zip archive inside of another file": gzip.compress(in_zip(("a.csv", CSV))),
    "holds, packed, a web page": gzip.compress(b"<html>"),
    "holds, packed, a Parquet file; unpack it": gzip.compress(written(pd.DataFrame(ROWS).to_parquet)),
    "is packed more than 4 times over": gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(CSV))))),
}


@pytest.mark.parametrize("dataset", ["tabular", "criteo"])
@pytest.mark.parametrize("words", FOREIGN)
def test_what_is_no_text_is_named_and_told_how_to_convert(tmp_path, words, dataset):
    source = tmp_path / "rows of mine.csv"
    source.write_bytes(FOREIGN[words])
    tabular = samples.TinyBlocks(source=str(source), columns=samples.COLUMNS)
    config = tabular if dataset == "tabular" else criteo_samples.TinyBlocks(source=str(source))
    with pytest.raises(RecembError) as caught:
        config.open(on_bad_rows="skip")
    message = str(caught.value)
    assert re.search(words, message)
    assert message.startswith(str(source))
    assert message.endswith(".")
    assert message.isprintable()


@pytest.mark.parametrize("dataset", ["tabular", "criteo"])
def test_only_a_table_is_read_from_parquet(tmp_path, dataset):
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a")
    if dataset == "criteo":
        with pytest.raises(RecembError, match=r"a is a Parquet file; .*only dataset=tabular"):
            criteo_samples.TinyBlocks(source=str(tmp_path / "a")).open(on_bad_rows="error")
    else:
        columns = samples.COLUMNS | {"multi_valued": ["tags"]}
        assert_prepared(prepared(tmp_path, str(tmp_path / "a"), columns), ROWS)


@pytest.mark.parametrize("name", ["ORCID", "PARENT", "FEA1", "BZh9", "7z", "Rar", "<user>", "PK", "Obj"])
def test_a_column_may_be_named_as_a_format_begins(tmp_path, name):
    rows = [{name: "x"} | row for row in ROWS]
    assert_prepared(prepared(tmp_path, samples.write_csv(tmp_path / "rows.csv", rows)), ROWS)


LONG = b"".join(b"%d,%d\n" % (number, number * 7919 % 1000) for number in range(20000))
HALF = len(LONG) // 2


def damaged(whole, first):
    """Cut off; changed in the middle; followed by junk; with what comes second of two damaged where it begins."""
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    return {"cut": whole[:-9], "half": whole[:middle], "changed": changed, "junk": whole + b"junk" * 9,
            "second": whole + b"\1\2\3\4\5\6\7\10" + first[8:]}  # fmt: skip


# Arrow writes no checksums of zstd and lz4, so that nobody can tell a changed byte in what it wrote.
@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (name, harm)
        for name in COMPRESS
        for harm in ("cut", "half", "changed", "junk", "second")
        if harm != "changed" or name not in ("zstd", "lz4")
    ],
)
def test_what_is_damaged_is_never_read_in_part(tmp_path, name, harm):
    compress = COMPRESS[name]
    (tmp_path / "rows").write_bytes(damaged(compress(LONG), compress(LONG[:HALF]))[harm])
    with pytest.raises(RecembError, match=r"rows (is damaged|ends in the middle of its \w+ stream).*fetch it again"):
        list(read_blocks([tmp_path / "rows"]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (in_zip(("a.csv", LONG))[:-30], "rows is damaged"),
        (in_zip(("a.csv", LONG), compression=zipfile.ZIP_STORED).replace(b"\n77,", b"\n78,"), "rows is damaged .*CRC"),
        (in_tar(("a.csv", LONG), mode="w")[: HALF + 700], "rows is damaged"),
        (encoded("utf-16")(LONG)[:-1], "rows is damaged"),
        (in_zip(("a.csv", b"")), "rows is empty"),
        (in_zip(("a.csv", bytes(1 << 25))), "holds, packed, a file of nothing but zero bytes"),
        (in_zip(("a.csv", b"1" * (1 << 25))), "rows/a.csv line 1 is longer than 16 MiB"),
    ],
    ids=["zip cut", "zip changed", "tar cut", "half a character", "empty", "zeros", "bomb"],
)
def test_an_archive_that_is_damaged_or_a_bomb_is_refused(tmp_path, content, words):
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(RecembError, match=words):
        list(read_blocks([tmp_path / "rows"], members=("a.csv",)))


def test_a_zip_with_a_password_is_refused(tmp_path):
    content = bytearray(in_zip(("a.csv", CSV)))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(RecembError, match="is a zip archive with a password; unpack it with unzip"):
        prepared(tmp_path, str(tmp_path / "rows"))


def test_a_header_in_another_encoding_is_told_with_the_command(tmp_path):
    (tmp_path / "rows.csv").write_bytes("clicked,größe\n".encode("latin-1") + b"1,2\n")
    with pytest.raises(RecembError, match=r"rows.csv line 1 is not UTF-8 text.* iconv -f WINDOWS-1252 -t UTF-8 "):
        prepared(tmp_path, str(tmp_path / "rows.csv"))
