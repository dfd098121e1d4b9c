r"""Compositional tables: an id is the combination of its buckets in several complementary partitions.

Shi, Mudigere, Naumov & Yang, "Compositional Embeddings Using Complementary Partitions for Memory-Efficient
Recommendation Systems", KDD 2020, arXiv 1909.02107. Each partition has a small table; any two ids differ in at least
one partition, so every id has a vector of its own although its rows are shared.

Partitions (`scheme`), with V ids:
- quotient_remainder: id mod m and id \ m.
- mixed_radix: the digits of the id in radices m_1 .. m_k with product of at least V.
- chinese_remainder: id mod m_1, .., id mod m_k with pairwise coprime m_j, product at least V.

Rows are combined (`combine`) by multiply (the paper's best), add, concat, or path: the first partition's row goes
through one small net for each further partition, whose weights are that partition's row.

One partition is large, the others together as small as they can be. Which one decides who shares, since ids are
numbered by falling frequency: with large=remainder the V/c most frequent ids each have a large row of their own, which
only rarer ids use too; with large=quotient (the form of the paper's experiments) c neighbours share their large row.
A budget is met by real c with the former and by whole c with the latter, which may leave some of it unused; so does
concat, whose rows are a k-th as wide and which can hold no more than about a k-th of a full table.

Differs from public code: integer arithmetic throughout (a quotient in float32 is wrong beyond id 2^24); ids of a bag
are combined one by one and then pooled; factors start such that the vectors have the variance of a full table's rows.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from recemb.fusing import fused
from recemb.options import RecembError, option
from recemb.tables.base import CompressedTable, Layout, PhysicalTable, TableConfig, TableSpec
from recemb.tables.registry import register
from recemb.tables.sizing import fit_rows

SCHEMES = ("quotient_remainder", "mixed_radix", "chinese_remainder")
COMBINES = ("multiply", "add", "concat", "path")
LARGE = ("remainder", "quotient")


class Partition(NamedTuple):
    r"""Buckets (id \ divisor) mod `buckets`."""

    name: str
    divisor: int
    buckets: int


@dataclass(kw_only=True)
class CompositionalConfig(TableConfig):
    """Options of compositional tables."""

    collisions: int | None = option(None, "c, ids that share a row of the large partition, in every table")
    rows: int | None = option(None, "rows of the large partitions of all tables, in proportion to their ids")
    scheme: str = option("quotient_remainder", f"partitions: {', '.join(SCHEMES)}")
    combine: str = option("multiply", f"what makes a vector of the rows: {', '.join(COMBINES)}")
    partitions: int = option(2, "k, number of partitions; more than two with mixed_radix and chinese_remainder")
    large: str = option("remainder", "the large partition: remainder (the lowest digit) or quotient (the highest)")
    threshold: int = option(200, "tables of at most this many ids stay whole; a budget may lower it")
    hidden: int = option(16, "hidden units of the nets of combine=path")

    def __post_init__(self) -> None:
        for name, known in (("scheme", SCHEMES), ("combine", COMBINES), ("large", LARGE)):
            if getattr(self, name) not in known:
                raise RecembError(f"table.{name}={getattr(self, name)} is not known; choose one of {', '.join(known)}.")
        self.check_at_least(collisions=1, rows=1, partitions=2, threshold=0, hidden=1)
        if self.collisions is not None and self.rows is not None:
            raise RecembError(
                f"table.collisions={self.collisions} and table.rows={self.rows} both say how large the tables are; "
                "give one of them."
            )
        if self.scheme == "quotient_remainder" and self.partitions != 2:
            raise RecembError(
                f"table.scheme=quotient_remainder has two partitions, not {self.partitions}; take mixed_radix or "
                "chinese_remainder for more."
            )
        if self.scheme == "chinese_remainder" and self.large == "quotient":
            raise RecembError("table.scheme=chinese_remainder has remainders only; take table.large=remainder.")

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold a table for each partition of each table, or the whole table where that is no larger."""
        tables: list[PhysicalTable] = []
        lookups: list[list[int]] = []
        divisors, buckets = [], []
        for spec, partitions in zip(specs, self._partitions(specs), strict=True):
            lookups.append([])
            for number, partition in enumerate(partitions):
                for table in self._tables(spec, partition, number, len(partitions)):
                    lookups[-1].append(len(tables))
                    tables.append(table)
                    divisors.append(partition.divisor)
                    buckets.append(partition.buckets)
        composed = len(tables) > len(specs)
        return Layout(
            tables=tables,
            lookups=lookups,
            dims=[spec.embedding_dim for spec in specs],
            constants={"divisors": torch.tensor(divisors), "buckets": torch.tensor(buckets)} if composed else {},
        )

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Give the large partitions the rows that the budget allows."""
        most = sum(spec.num_embeddings for spec in specs)
        what = f"table=compositional with {self.partitions} partitions"
        return fit_rows(dataclasses.replace(self, collisions=None), specs, budget_bytes, most, what)

    def _partitions(self, specs: Sequence[TableSpec]) -> list[list[Partition]]:
        """Choose the partitions of each table; a single one means that it stays whole."""
        shared_ids = sum(spec.num_embeddings for spec in specs if spec.num_embeddings > self.threshold)
        chosen = []
        for spec in specs:
            ids = spec.num_embeddings
            whole = [Partition("", 1, ids)]
            if ids <= self.threshold or (self.collisions is None and self.rows is None):
                chosen.append(whole)
                continue
            if self.collisions is not None:
                rows, collisions = -(-ids // self.collisions), self.collisions
            else:
                # Never so few large rows that the small partitions would grow past them.
                rows = max(ids * (self.rows or 1) // shared_ids, self._balanced_rows(spec))
                collisions = -(-ids // rows)
            chosen.append(self._smaller(spec, self._cut(ids, rows, collisions), whole))
        return chosen

    def _smaller(self, spec: TableSpec, cut: list[Partition], whole: list[Partition]) -> list[Partition]:
        floats = sum(
            table.rows * table.dim
            for number, partition in enumerate(cut)
            for table in self._tables(spec, partition, number, len(cut))
        )
        return cut if floats < spec.num_embeddings * spec.embedding_dim else whole

    def _cut(self, ids: int, rows: int, collisions: int) -> list[Partition]:
        """Cut `ids` ids by a large partition of `rows` buckets, or of groups of `collisions` ids."""
        small = self.partitions - 1
        if self.scheme == "chinese_remainder":
            moduli = _coprime([rows], -(-ids // rows), small)
            return [Partition(f"mod{number}", 1, modulus) for number, modulus in enumerate(moduli)]
        if self.large == "remainder":
            radices = [rows, *_balanced(-(-ids // rows), small)]
        else:
            radices = _balanced(collisions, small)
            radices.append(-(-ids // math.prod(radices)))
        names = ["remainder", "quotient"] if len(radices) == 2 else [f"digit{n}" for n in range(len(radices))]
        digits = [
            Partition(name, math.prod(radices[:number]), radix)
            for number, (name, radix) in enumerate(zip(names, radices, strict=True))
        ]
        return digits if self.large == "remainder" else digits[::-1]

    def _balanced_rows(self, spec: TableSpec) -> int:
        """Give the rows of the large partition at which all partitions together are smallest."""
        ids = spec.num_embeddings
        small = self.partitions - 1
        # Minimum of rows + small * ratio * (ids / rows)^(1/small), a bucket of a small partition being `ratio` rows.
        large, other = (self._tables(spec, Partition("", 1, 1), number, self.partitions) for number in (0, 1))
        ratio = sum(table.dim for table in other) / large[0].dim
        power = small / (small + 1)
        return min(ids, max(1, math.ceil(ratio**power * ids ** (1 / (small + 1)))))

    def _tables(self, spec: TableSpec, partition: Partition, number: int, count: int) -> list[PhysicalTable]:
        """Describe the rows of one partition of `count`."""
        dim, std = spec.embedding_dim, spec.init_std
        if count == 1:
            return [spec.physical(partition.buckets, dim)]
        name = f"{spec.name}:{partition.name}"
        if self.combine == "multiply":
            return [spec.physical(partition.buckets, dim, name, std ** (1 / count))]
        if self.combine == "add":
            return [spec.physical(partition.buckets, dim, name, std / math.sqrt(count))]
        if self.combine == "concat":
            if dim % count:
                raise RecembError(
                    f"table {spec.name}: {count} rows side by side cannot make a vector {dim} wide "
                    "(model.embedding_dim); with combine=concat the number of partitions must divide it."
                )
            return [spec.physical(partition.buckets, dim // count, name)]
        if number == 0:
            return [spec.physical(partition.buckets, dim, name)]
        # Both layers start with one deviation, at which the net keeps the variance of its input; biases start at zero.
        weights = (2 / (dim * self.hidden)) ** 0.25
        return [
            spec.physical(partition.buckets, 2 * dim * self.hidden, f"{name}:weights", weights),
            spec.physical(partition.buckets, self.hidden + dim, f"{name}:biases", 0.0),
        ]


def _balanced(least: int, count: int) -> list[int]:
    """Give up to `count` radices, as equal as can be, whose product is at least `least`."""
    radices: list[int] = []
    for left in range(count, 0, -1):
        radix = _root_above(least, left)
        if radix > 1 or not radices:  # a digit with one value tells nothing apart
            radices.append(radix)
        least = -(-least // radix)
    return radices


def _root_above(number: int, degree: int) -> int:
    """Give the least integer whose power is at least `number`; exact, which a float's root is not."""
    root = max(1, round(number ** (1 / degree)))
    while root**degree < number:
        root += 1
    while root > 1 and (root - 1) ** degree >= number:
        root -= 1
    return root


def _coprime(moduli: list[int], least: int, count: int) -> list[int]:
    """Append `count` moduli, coprime to each other and to those there, whose product is at least `least`."""
    candidate = _root_above(least, count)
    while count:
        if all(math.gcd(candidate, modulus) == 1 for modulus in moduli):
            moduli = [*moduli, candidate]
            count -= 1
        candidate += 1
    return moduli


@register(
    "compositional",
    CompositionalConfig,
    summary="ids combine the rows of their buckets in complementary partitions",
    paper="Shi et al., Compositional Embeddings Using Complementary Partitions, KDD 2020, arXiv 1909.02107",
)
class CompositionalTable(CompressedTable):
    """Looks an id's bucket of each partition up and combines the rows."""

    divisors: Tensor
    buckets: Tensor

    @property
    def pooling_commutes(self) -> bool:
        """Sums and concatenations commute with pooling, products and nets do not."""
        return self.config.combine in ("add", "concat")

    @property
    def concatenates(self) -> bool:
        """So says the config."""
        return self.config.combine == "concat"

    @property
    def elementwise(self) -> bool:
        """Products and sums are."""
        return self.config.combine in ("multiply", "add")

    @property
    def multiplies(self) -> bool:
        """So says the config."""
        return self.config.combine == "multiply"

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """Number the bucket of each id."""
        if not self.layout.constants:
            return ids
        return _bucket(ids, self.divisors[lookup], self.buckets[lookup])

    def combine(self, rows: list[Tensor], spec_index: int) -> Tensor:
        """Multiply, add, put side by side, or run the first row through the others' nets."""
        first, *others = rows
        if self.config.combine == "concat" or not others:
            return super().combine(rows, spec_index)
        if self.config.combine == "path":
            for weights, biases in zip(others[::2], others[1::2], strict=True):
                first = _net(first, weights, biases)
            return first
        for other in others:
            first = first * other if self.config.combine == "multiply" else first + other
        return first


@fused
def _bucket(ids: Tensor, divisors: Tensor, buckets: Tensor) -> Tensor:
    return torch.remainder(torch.div(ids, divisors, rounding_mode="floor"), buckets)


def _net(inputs: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """Run a net of one hidden layer of its own on every vector.

    Args:
        inputs: (N, D).
        weights: (N, 2 D H), those into the hidden layer first.
        biases: (N, H + D).

    Returns:
        (N, D).
    """
    size, dim = inputs.shape
    hidden = biases.shape[1] - dim
    into, out = weights.view(size, 2, dim * hidden).unbind(1)
    layer = torch.bmm(into.reshape(size, hidden, dim), inputs.unsqueeze(2)).squeeze(2) + biases[:, :hidden]
    return torch.bmm(out.reshape(size, dim, hidden), layer.relu().unsqueeze(2)).squeeze(2) + biases[:, hidden:]
