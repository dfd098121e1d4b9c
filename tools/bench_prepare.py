"""Measures `recemb prepare` on generated Criteo text against a bare pyarrow parse of the same file.

    python tools/bench_prepare.py --rows 1000000

Both are run in turns on the same machine; rows/s are medians. The peak memory is that of a process of its own that does
nothing but prepare.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from recemb.datasets import CriteoConfig, SyntheticConfig, prepare
from recemb.datasets.base import RawChunk
from recemb.datasets.criteo_text import CATEGORICAL, DENSE, FIELDS
from recemb.datasets.synthetic import SyntheticRows

DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--min-count", type=int, default=2)
    arguments.add_argument("--folder", help="where the temporary files go")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        text = folder / "train.txt"
        write_text(text, options.rows)
        print(f"{options.rows:,} rows, {text.stat().st_size / 1e6:,.0f} MB of text, min_count={options.min_count}")
        bare, full = [], []
        for repeat in range(options.repeats):
            bare.append(options.rows / parse_bare(text))
            full.append(options.rows / prepare_text(text, folder / f"prepared{repeat}", options.min_count))
            print(f"  bare parse {bare[-1]:>12,.0f} rows/s    prepare {full[-1]:>12,.0f} rows/s", flush=True)
        ratio = statistics.median(full) / statistics.median(bare)
        print(f"bare parse  {statistics.median(bare):>12,.0f} rows/s (pyarrow, all threads, whole table in memory)")
        print(f"prepare     {statistics.median(full):>12,.0f} rows/s ({ratio:.2f} of the bare parse)")
        # Spawned, since a forked child would begin with this process's memory.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, after = pool.apply(peak_of_prepare, (text, folder / "peak", options.min_count))
        print(f"peak memory {after / 2**10:>12,.0f} MiB ({before / 2**10:,.0f} MiB after the imports)")


def write_text(path: Path, rows: int) -> None:
    """Write generated rows as Criteo text."""
    source = SyntheticRows(SyntheticConfig(rows=rows))
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with ThreadPoolExecutor(2) as pool, path.open("wb") as file:
        for chunk in source.chunks(pool):
            csv.write_csv(table_of(chunk), file, options)


def table_of(chunk: RawChunk) -> pa.Table:
    columns: list[pa.Array] = [pa.array(chunk.labels)]
    for name, column in zip(DENSE, chunk.dense, strict=True):
        missing = np.isnan(column)
        integers = np.rint(np.exp(np.where(missing, 0, column).astype(np.float64)) - (4 if name == "I2" else 1))
        columns.append(pa.array(integers.astype(np.int64), mask=missing))
    for tokens, missing_or_none in zip(chunk.tokens, chunk.missing, strict=True):
        columns.append(hexadecimal(tokens, missing_or_none))
    return pa.table(columns, names=list(FIELDS))


def hexadecimal(tokens: np.ndarray, missing: np.ndarray | None) -> pa.Array:
    """Format (n,) uint32 tokens as eight digits, missing ones as nothing."""
    present = np.ones(len(tokens), dtype=np.bool_) if missing is None else ~missing
    shifts = np.arange(28, -4, -4, dtype=np.uint32)
    text = DIGITS[(tokens[present, None] >> shifts) & np.uint32(15)]
    offsets = np.zeros(len(tokens) + 1, dtype=np.int32)
    np.cumsum(present * 8, out=offsets[1:])
    return pa.StringArray.from_buffers(len(tokens), pa.py_buffer(offsets), pa.py_buffer(text))


def parse_bare(text: Path) -> float:
    types = {name: pa.string() for name in CATEGORICAL} | {name: pa.int64() for name in DENSE}
    started = time.perf_counter()
    table = csv.read_csv(
        text,
        read_options=csv.ReadOptions(column_names=FIELDS),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(column_types=types | {"label": pa.uint8()}),
    )
    seconds = time.perf_counter() - started
    del table
    return seconds


def prepare_text(text: Path, target: Path, min_count: int) -> float:
    started = time.perf_counter()
    prepare(CriteoConfig(source=str(text), path=str(target), min_count=min_count), progress=False)
    return time.perf_counter() - started


def peak_of_prepare(text: Path, target: Path, min_count: int) -> tuple[int, int]:
    """Return the peak resident KiB before and after preparing."""
    before = peak_kib()
    prepare_text(text, target, min_count)
    return before, peak_kib()


def peak_kib() -> int:
    # Not ru_maxrss: a child inherits its parent's.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    main()
