"""What pruning keeps: which ids have a row and which floats the row has, and the tables that hold no more than that.

Two units. Whole rows and columns: table f keeps the rows of some ids and the first d_f floats of each; a physical table
has exactly these. Single entries: every kept row keeps floats of its own; rows with equally many share a physical table
whatever their feature, and beside it lie a bit for each float (where it belongs) and each row's place.

Ids find their rows by `recemb.tables.id_map`, over the ids of all tables numbered one table after the other. Id 0, the
unknown's, always keeps a row.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from recemb.options import RecembError
from recemb.tables.base import Layout, TableSpec
from recemb.tables.id_map import make_map, map_bytes, map_form
from recemb.tables.precision import row_bytes

Kept = Tensor | range
PLACE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What is kept of each logical table.

    Attributes:
        kept: (n,) int64 ids with a row, ascending, 0 among them; or range(n), the first n ids.
        widths: d, floats of a row, the first of D; D where entries are given.
        entries: (n, D) bool, which floats a row keeps, of a number of `entry_widths`; None for the first d of all rows.
    """

    kept: Sequence[Kept]
    widths: Sequence[int]
    entries: Sequence[Tensor] | None = None

    @property
    def num_kept(self) -> int:
        """Rows that are kept, of all tables."""
        return sum(len(ids) for ids in self.kept)

    def form(self, specs: Sequence[TableSpec]) -> str:
        """Name the form of the map from ids to rows."""
        if all(isinstance(ids, range) for ids in self.kept):
            return "whole" if self._keeps_all_ids(specs) else "prefix"
        return map_form(sum(spec.num_embeddings for spec in specs), self.num_kept)

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Lay out the tables that hold what is kept."""
        return self._rows_layout(specs) if self.entries is None else self._entries_layout(specs)

    def pack_into(self, weights: Sequence[Tensor], full: Callable[[int], Tensor]) -> None:
        """Copy what is kept of full tables into packed ones.

        Args:
            weights: the packed weights to fill, in the order of the layout's tables.
            full: gives the (V, D) weight of a logical table; called once for each.
        """
        index = None if self.entries is None else EntryIndex(self.entries)
        for number, ids in enumerate(self.kept):
            rows = full(number)
            rows = rows[: len(ids)] if isinstance(ids, range) else rows[ids.to(rows.device)]
            if index is None:
                weights[number].copy_(rows[:, : self.widths[number]])
                continue
            for weight, numbers, values in index.split(number, rows):
                weights[weight][numbers] = values

    def summary(self, specs: Sequence[TableSpec]) -> dict[str, Any]:
        """Say what is kept, as a run's record does: see `recemb.report.records`."""
        per_table = {}
        for number, (spec, ids) in enumerate(zip(specs, self.kept, strict=True)):
            width = float(self.widths[number])
            if self.entries is not None:
                width = float(self.entries[number].sum()) / len(ids)
            cells = None
            if spec.counts is not None and (seen := int(spec.counts.sum())):
                counts = spec.counts[: len(ids)] if isinstance(ids, range) else spec.counts[ids]
                cells = int(counts.sum()) / seen
            per_table[spec.name] = {
                "ids": spec.num_embeddings, "kept": len(ids), "width": width, "dim": spec.embedding_dim, "cells": cells,
            }  # fmt: skip
        unit = "row" if self.entries is None else "entry"
        return {"unit": unit, "map": self.form(specs), "per_table": per_table}

    def save(self, path: Path, specs: Sequence[TableSpec]) -> None:
        """Write a Parquet file of one line a kept row: table, id, width, and the bits of its entries where given."""
        columns: dict[str, Any] = {
            "table": pa.DictionaryArray.from_arrays(
                np.repeat(np.arange(len(specs), dtype=np.int32), [len(ids) for ids in self.kept]),
                [spec.name for spec in specs],
            ),
            "id": np.concatenate([np.asarray(ids, dtype=np.int64) for ids in self.kept]),
            "width": np.repeat(np.asarray(self.widths, dtype=np.int32), [len(ids) for ids in self.kept]),
        }
        if self.entries is not None:
            columns["width"] = torch.cat([one.sum(dim=1) for one in self.entries]).to(torch.int32).numpy()
            bits = torch.cat([pack_bits(one) for one in self.entries]).numpy()
            columns["entries"] = pa.Array.from_buffers(pa.binary(bits.shape[1]), len(bits), [None, pa.py_buffer(bits)])
        pq.write_table(pa.table(columns), path, compression="zstd")

    @staticmethod
    def load(path: Path, specs: Sequence[TableSpec]) -> "Structure":
        """Read what `save` wrote for the same tables.

        Raises:
            RecembError: the file is none of these, or of other tables.
        """
        try:
            frame = pd.read_parquet(path)
            codes = pd.Index([spec.name for spec in specs]).get_indexer(frame["table"])
            ids, widths = torch.from_numpy(frame["id"].to_numpy(np.int64, copy=True)), frame["width"].to_numpy()
            ends = np.searchsorted(codes, range(len(specs) + 1))
            sizes = np.diff(ends).tolist()
            if (codes < 0).any() or not all(sizes):
                raise ValueError("other tables, or some without a row")
            for spec, of_table in zip(specs, ids.split(sizes), strict=True):
                if int(of_table[0]) or bool((of_table.diff() <= 0).any()) or int(of_table[-1]) >= spec.num_embeddings:
                    raise ValueError(f"other ids of table {spec.name}")
            if widths.min() < 1 or widths.max() > min(spec.embedding_dim for spec in specs):
                raise ValueError("other widths")
            entries = None
            if "entries" in frame:
                bits = torch.frombuffer(bytearray(b"".join(frame["entries"])), dtype=torch.uint8).view(len(ids), -1)
                entries = unpack_bits(bits, specs[0].embedding_dim).split(sizes)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise RecembError(f"{path} does not say what these tables keep ({error}); train them anew.") from error
        return Structure(
            kept=[as_range(of_table) for of_table in ids.split(sizes)],
            widths=[
                spec.embedding_dim if entries is not None else int(widths[end - 1])
                for spec, end in zip(specs, ends[1:], strict=True)
            ],
            entries=entries,
        )

    def _keeps_all_ids(self, specs: Sequence[TableSpec]) -> bool:
        return all(len(ids) == spec.num_embeddings for spec, ids in zip(specs, self.kept, strict=True))

    def _map_constants(self, specs: Sequence[TableSpec]) -> dict[str, Tensor]:
        """The constants that say which row an id reads."""
        form = self.form(specs)
        if form == "whole":
            return {}
        if form == "prefix":
            return {"rows": torch.tensor([len(ids) for ids in self.kept])}
        before = [0, *itertools.accumulate(spec.num_embeddings for spec in specs)]
        numbers = torch.cat(
            [torch.as_tensor(ids, dtype=torch.int64) + start for ids, start in zip(self.kept, before, strict=False)]
        )
        first = [0, *itertools.accumulate(len(ids) for ids in self.kept)]
        return {
            "before": torch.tensor(before[:-1]),
            "first": torch.tensor(first[:-1]),
            **make_map(numbers, before[-1]),
        }

    def _rows_layout(self, specs: Sequence[TableSpec]) -> Layout:
        return Layout(
            tables=[
                spec.physical(len(ids), width) for spec, ids, width in zip(specs, self.kept, self.widths, strict=True)
            ],
            lookups=[[index] for index in range(len(specs))],
            dims=[spec.embedding_dim for spec in specs],
            constants=self._map_constants(specs),
        )

    def _entries_layout(self, specs: Sequence[TableSpec]) -> Layout:
        assert self.entries is not None
        index = EntryIndex(self.entries)
        first = torch.tensor([0, *itertools.accumulate(len(ids) for ids in self.kept)][:-1])
        constants = {"first": first, **self._map_constants(specs)}
        constants |= {"places": index.places.to(torch.int32), "starts": torch.tensor(index.starts[:-1])}
        if len(index.bits):
            constants["entries"] = index.bits
        return Layout(
            tables=[
                specs[0].physical(end - start, width, name=f"entries{width}")
                for width, start, end in zip(index.widths, index.starts, index.starts[1:], strict=False)
            ],
            lookups=[list(range(len(index.widths))) for _ in specs],
            dims=[spec.embedding_dim for spec in specs],
            constants=constants,
            alternatives=True,
        )


class EntryIndex:
    """Where rows of single entries lie: sorted by how many they keep, narrow ones first.

    Args:
        entries: for each logical table (n, D) bool.

    Attributes:
        widths: the numbers of entries that occur, ascending.
        starts: the place of the first row of each, and the number of rows.
        places: (n of all tables,) int64, the place of each kept row.
        bits: (m, ceil(D / 8)) uint8, the entries of the rows that do not keep all, by place.
    """

    def __init__(self, entries: Sequence[Tensor]) -> None:
        self._entries = entries
        self._first = [0, *itertools.accumulate(map(len, entries))]
        per_row = torch.cat([one.sum(dim=1) for one in entries])
        order = torch.argsort(per_row, stable=True)
        self.places = torch.empty_like(order).index_put_((order,), torch.arange(len(order)))
        widths, counts = torch.unique(per_row, return_counts=True)
        self.widths: list[int] = widths.tolist()
        self.starts = [0, *itertools.accumulate(counts.tolist())]
        partial = order[: int((per_row < entries[0].shape[1]).sum())]
        self.bits = torch.cat([pack_bits(one) for one in entries])[partial]
        self._per_row = per_row

    def split(self, table: int, rows: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Say where the entries of a logical table's kept rows (n, D) go: physical table, its rows (m,), values."""
        here = slice(self._first[table], self._first[table + 1])
        per_row, places, entries = self._per_row[here], self.places[here], self._entries[table]
        parts = []
        for number, (width, start) in enumerate(zip(self.widths, self.starts, strict=False)):
            of_width = per_row == width
            if bool(of_width.any()):
                values = rows[of_width.to(rows.device)][entries[of_width].to(rows.device)].view(-1, width)
                parts.append((number, places[of_width] - start, values))
        return parts


def as_range(ids: Tensor) -> Kept:
    """Write ascending ids (n,) as range(n) where they are the first n."""
    return range(len(ids)) if len(ids) and int(ids[-1]) == len(ids) - 1 else ids


def entry_widths(dim: int) -> list[int]:
    """How many entries a row may keep, so that few physical tables do: 1, 2, 3, 4, 6, 8, 12, 16, ... and D."""
    steps = {size for power in range(dim.bit_length()) for size in (2**power, 3 * 2**power // 2) if size <= dim}
    return sorted(steps | {dim})


def entries_bytes(per_row: Tensor, dim: int, num_ids: int, precision: str) -> int:
    """Bytes of rows that keep so many entries (n,), of `entry_widths`, with everything that serving them needs."""
    of_width = torch.tensor([row_bytes(width, precision) for width in range(dim + 1)], device=per_row.device)
    partial = int((per_row < dim).sum())
    index_bytes = len(per_row) * PLACE_BYTES + partial * -(-dim // 8) + map_bytes(num_ids, len(per_row))
    return int(of_width[per_row].sum()) + index_bytes


def pack_bits(mask: Tensor) -> Tensor:
    """Write (n, D) bool as (n, ceil(D / 8)) uint8, the first float in the lowest bit."""
    padded = F.pad(mask, (0, -mask.shape[1] % 8)).view(len(mask), -1, 8)
    return (padded << torch.arange(8, device=mask.device)).sum(dim=2).to(torch.uint8)


def unpack_bits(bits: Tensor, dim: int) -> Tensor:
    """Read what `pack_bits` wrote: (n, ceil(D / 8)) uint8 to (n, D) bool."""
    places = torch.arange(8, device=bits.device)
    return (torch.bitwise_right_shift(bits.long().unsqueeze(2), places) & 1).flatten(1)[:, :dim].bool()
