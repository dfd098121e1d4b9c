"""Which physical tables the features of a collection read, and in which order; worked out once, from the layout."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from recemb.tables.base import CompressedTable, PhysicalTable, TableSpec


class Lookup(NamedTuple):
    """One table that one feature reads; or, where tables are alternatives, that any id may read.

    Attributes:
        reader: the feature, or the table.
        position: among the reader's lookups.
        table: index into the layout's tables.
        in_layout: index into the layout's lookups, read left to right.
    """

    reader: int
    position: int
    table: int
    in_layout: int


class Lookups:
    """The lookups of a collection, in the order that its rows are read.

    Args:
        specs: the logical tables.
        method: their method, with its layout.
        packed: rows are stored in wider ones, and picked out once they are read.

    Attributes:
        features: in the order of the result.
        spec_of_feature: the logical table of each feature.
        dims: widths of the features' vectors.
        single: no bag holds more than one id.
        by_value: rows are needed id by id: to choose among them, to pick them out of stored rows, or to combine or mask
            them before their bags are pooled.
        ordered: the lookups.
        places: for each feature the places of its lookups in `ordered`, in the order that combine takes them.
        one_each: lookup i is that of feature i.
        combines: something is left to do for combine, because the lookups do not put rows side by side as it would.
        runs: neighbouring features that one call of combine serves.
        part_widths: widths of the parts that pooled rows are split into.
        parts_of_run: which parts each run combines.
    """

    def __init__(self, specs: Sequence[TableSpec], method: CompressedTable, packed: bool) -> None:
        layout = method.layout
        self.features = [name for spec in specs for name in spec.feature_names]
        self.spec_of_feature = [index for index, spec in enumerate(specs) for _ in spec.feature_names]
        self.dims = [layout.dims[index] for index in self.spec_of_feature]
        self.single = all(spec.max_length == 1 for spec in specs)
        pools = self.single or (method.pooling_commutes and not method.gates)
        self.by_value = layout.alternatives or packed or not pools
        self._elementwise = method.elementwise
        readers = self.spec_of_feature
        self.runs = self._find_runs([[layout.tables[t].dim for t in layout.lookups[spec]] for spec in readers])
        if layout.alternatives:
            # Every id reads one of the tables, whatever its feature: each table is looked up once.
            found = [Lookup(0, table, table, table) for table in range(len(layout.tables))]
        else:
            found = list(_lookups(layout.lookups, readers))
        self.ordered = sorted(found, key=self._order_of(layout.tables))
        self.places = [
            sorted(
                (place for place, one in enumerate(self.ordered) if one.reader == reader),
                key=lambda place: self.ordered[place].in_layout,
            )
            for reader in range(len(readers))
        ]
        self.one_each = [one.reader for one in self.ordered] == list(range(len(self.features)))
        in_order = [place for places in self.places for place in places]
        self.combines = not method.concatenates or in_order != sorted(in_order)
        self.part_widths, self.parts_of_run = self._find_parts([layout.tables[one.table].dim for one in self.ordered])

    @property
    def tables(self) -> list[int]:
        """The table that each lookup reads."""
        return [one.table for one in self.ordered]

    def _find_runs(self, widths: list[list[int]]) -> list[range]:
        """Group neighbouring readers that one call of combine serves, given the widths of each one's lookups."""
        runs = [range(0, 1)]
        for reader in range(1, len(widths)):
            if self._elementwise and widths[reader] == widths[reader - 1]:
                runs[-1] = range(runs[-1].start, reader + 1)
            else:
                runs.append(range(reader, reader + 1))
        return runs

    def _find_parts(self, widths: list[int]) -> tuple[list[int], list[list[int]]]:
        """Give the width of each part that pooled rows are split into, and which of them each run combines."""
        if not self._elementwise:
            return widths, [self.places[run.start] for run in self.runs]
        part_widths: list[int] = []
        parts_of_run = []
        for run in self.runs:
            places = [self.places[feature] for feature in run]
            parts_of_run.append([len(part_widths) + position for position in range(len(places[0]))])
            part_widths += [sum(widths[place] for place in position) for position in zip(*places, strict=True)]
        return part_widths, parts_of_run

    def _order_of(self, tables: Sequence[PhysicalTable]) -> Callable[[Lookup], tuple[int | str, ...]]:
        """Say how lookups are ordered: those of one table side by side, as FBGEMM wants them."""
        if self.by_value:
            return lambda one: (tables[one.table].dim, tables[one.table].held, one.table)
        if self._elementwise:
            # The first lookups of all tables of a run, then the second ones, ...: combine takes each as one block.
            run_of = [number for number, run in enumerate(self.runs) for _ in run]
            return lambda one: (run_of[one.reader], one.position, one.table)
        return lambda one: (one.table,)


def _lookups(of_specs: list[list[int]], spec_of_reader: Sequence[int]) -> Iterator[Lookup]:
    first = [0, *itertools.accumulate(map(len, of_specs))]
    for reader, spec in enumerate(spec_of_reader):
        for position, table in enumerate(of_specs[spec]):
            yield Lookup(reader, position, table, first[spec] + position)
