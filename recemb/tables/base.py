"""The contract of a compressed embedding table: remap, lookup, combine.

Every method answers the same three questions, and nothing else of it lives outside its file:

    ids --remap--> row numbers --lookup--> rows --combine--> one vector of width D per id
       (integers only,         (plain physical tables:     (identity, multiply, project, ...)
        no gradient)            the only large memory)

`TableConfig.layout` says which physical tables there are and which of them each logical table looks up. From that alone
follow the predicted bytes, the storage (`recemb.tables.storage`) and the batched lookup (`recemb.tables.collection`).

Shapes are written as: V ids of a table, D width of the vectors, N looked-up ids, B bags, L lookups of the collection.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from recemb.budget import FLOAT32_BYTES
from recemb.options import RecembError
from recemb.tables.precision import check_precision, held_as, row_bytes


@dataclass(kw_only=True)
class TableSpec:
    """One logical table, as the model sees it.

    Attributes:
        name: name of the table; hashes are salted with it.
        num_embeddings: V, the number of ids; ids run from 0 (out of vocabulary) to V - 1.
        embedding_dim: D, the width of the vectors the model asks for.
        feature_names: the features that look this table up; its own name when left out.
        counts: (V,) int64, how often each id was seen in training, or None when unknown. Methods that keep popular ids
            apart rely on ids being numbered by descending frequency (id 0 aside), as prepared data has them.
        max_length: 1 when every bag holds at most one id, None for bags of any length.
        init_std: standard deviation of a full table's entries before training. Every method starts its vectors with it.
        raw_ids: ids are any 64-bit integers, such as hashes of raw values, instead of 0 to V - 1; V is then only what
            shares of a full table refer to. Methods that hash take such ids, see `CompressedTable.takes_raw_ids`.
        precision: how rows are held once they are served (`recemb.tables.precision`); training is in fp32.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: list[str] = field(default_factory=list)
    counts: Tensor | None = None
    max_length: int | None = None
    init_std: float = 0.01
    raw_ids: bool = False
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        self.feature_names = self.feature_names or [self.name]
        for what in ("num_embeddings", "embedding_dim"):
            if getattr(self, what) < 1:
                raise RecembError(f"table {self.name}: {what} is {getattr(self, what)}; it must be at least 1.")
        if self.counts is not None and self.counts.shape != (self.num_embeddings,):
            raise RecembError(
                f"table {self.name}: counts has shape {tuple(self.counts.shape)}, not ({self.num_embeddings},)."
            )

        if self.counts is not None and bool((self.counts[1:].diff() > 0).any()):
            raise RecembError(
                f"table {self.name}: counts must fall from id 1 on; number the ids by descending frequency, or leave "
                "counts out."
            )
        if not 0 < self.init_std < math.inf:
            raise RecembError(f"table {self.name}: init_std is {self.init_std}; it must be a positive number.")

    @property
    def full_bytes(self) -> int:
        """Bytes of the uncompressed fp32 table."""
        return self.num_embeddings * self.embedding_dim * FLOAT32_BYTES

    @property
    def popularity(self) -> Tensor:
        """(V,) float64, how much an id counts where tables are approximated: its training frequency and one more."""
        if self.counts is None:
            return torch.ones(self.num_embeddings, dtype=torch.float64)
        return self.counts.double() + 1

    def physical(self, rows: int, dim: int, name: str | None = None, init_std: float | None = None) -> "PhysicalTable":
        """Describe rows that are held for this table, named and started as it is unless said otherwise."""
        std = self.init_std if init_std is None else init_std
        return PhysicalTable(self.name if name is None else name, rows, dim, std, self.precision)


class PhysicalTable(NamedTuple):
    """Memory that is really held: `rows` rows of `dim` floats, started uniformly with standard deviation `init_std`.

    A standard deviation of 0 starts the rows at zero. Served rows are held in `precision`, or in what takes fewer bytes
    at this width (`held`).
    """

    name: str
    rows: int
    dim: int
    init_std: float
    precision: str = "fp32"

    @property
    def held(self) -> str:
        """How rows are held when served."""
        return held_as(self.dim, self.precision)

    @property
    def bytes(self) -> int:
        """Bytes when served."""
        return self.rows * row_bytes(self.dim, self.precision)


class DenseParameter(NamedTuple):
    """A matrix that combine needs for one logical table, such as a projection; trained by the dense optimizer.

    It starts with orthogonal rows, the root mean square of its entries exactly `init_std`.
    """

    name: str
    shape: tuple[int, int]
    init_std: float
    spec_index: int

    @property
    def bytes(self) -> int:
        """Bytes in fp32."""
        return math.prod(self.shape) * FLOAT32_BYTES


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a method holds for a list of logical tables; made without allocating any table.

    Attributes:
        tables: the physical tables.
        lookups: for each logical table the indices of the physical tables it looks up, in the order combine gets them.
        dims: for each logical table the width of the vector that combine returns.
        constants: small tensors that serving needs beside the rows (hash salts, moduli, ...), by buffer name. A
            constant that belongs to lookups has one entry per lookup, in the order of `lookups` read left to right.
        parameters: small trained weights that combine needs beside the rows.
        alternatives: the lookups of a table are blocks of its ids, and each id reads the one that `route` names,
            instead of all of them as `remap` says.
    """

    tables: list[PhysicalTable]
    lookups: list[list[int]]
    dims: list[int]
    constants: dict[str, Tensor] = field(default_factory=dict)
    parameters: list[DenseParameter] = field(default_factory=list)
    alternatives: bool = False

    def __post_init__(self) -> None:
        names = [table.name for table in self.tables] + [parameter.name for parameter in self.parameters]
        for name, count in Counter(names).items():
            if count > 1:
                raise RecembError(f"{count} physical tables would be named {name!r}; rename one of the logical tables.")

    @property
    def parts(self) -> dict[str, int]:
        """Serving bytes by kind: `rows` of the physical tables, `parameters` and `constants` beside them."""
        return {
            "rows": sum(table.bytes for table in self.tables),
            "parameters": sum(parameter.bytes for parameter in self.parameters),
            "constants": sum(tensor.nbytes for tensor in self.constants.values()),
        }

    @property
    def serving_bytes(self) -> int:
        """Every byte that serving the tables needs."""
        return sum(self.parts.values())

    def bytes_per_table(self, specs: Sequence[TableSpec]) -> dict[str, int]:
        """Bytes of rows and parameters by logical table; rows that several share are listed under their own name."""
        users: dict[int, set[str]] = {}
        for spec, indices in zip(specs, self.lookups, strict=True):
            for index in indices:
                users.setdefault(index, set()).add(spec.name)
        sizes = {spec.name: 0 for spec in specs}
        for index, table in enumerate(self.tables):
            owners = users.get(index, set())
            owner = next(iter(owners)) if len(owners) == 1 else table.name
            sizes[owner] = sizes.get(owner, 0) + table.bytes
        for parameter in self.parameters:
            sizes[specs[parameter.spec_index].name] += parameter.bytes
        return sizes


@dataclass(kw_only=True)
class TableConfig:
    """Options of a method. A plain dataclass, so that Hydra can type, override and print it.

    Options that say how large the tables are have the default None: a budget sets them, and somebody who gives both is
    told so. A method whose other options may be None lists its sizes in `size_options`.
    """

    size_options: ClassVar[tuple[str, ...] | None] = None
    learns: ClassVar[bool] = False
    """Whether training decides what is held; a layout is then what a budget stands for before."""

    def check_at_least(self, **least: int) -> None:
        """Raise where one of these options is smaller than makes sense; None is no size yet, and fine."""
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise RecembError(f"table.{name} is {value}; it must be at least {bound}.")

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Lay out the physical tables for these logical tables without allocating them."""
        raise NotImplementedError(f"{type(self).__name__} must say which physical tables it holds.")

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Choose the sizes for a budget.

        The budget bounds the serving bytes of all tables together: it is never exceeded, and what one table does not
        use goes to the others.

        Returns:
            A copy of the config with its sizes set.

        Raises:
            RecembError: no sizes fit; the sentence names the least possible budget.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it meets a budget.")

    def approximate(self, specs: Sequence[TableSpec], vectors: Sequence[Tensor], seed: int = 0) -> "Approximation":
        """Make tables whose vectors are as near to given ones as this config's sizes allow, without training.

        Near means the squared distance, each id counted as often as it is looked up (`TableSpec.popularity`).

        Args:
            specs: the logical tables.
            vectors: (V, D) float32 of each.
            seed: of whatever is random in it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no way to, as `approximates` says.")

    @classmethod
    def approximates(cls) -> bool:
        """Whether such tables can be made from trained ones."""
        return cls.approximate is not TableConfig.approximate


class Approximation(NamedTuple):
    """Tables that were made from given vectors instead of trained.

    Attributes:
        method: the module, its parameters and constants set.
        weights: (rows, d) float32 of each physical table, in the layout's order.
        structure: what is kept, for methods that learn that (`recemb.tables.structure.Structure`).
    """

    method: "CompressedTable"
    weights: list[Tensor]
    structure: Any = None


class CompressedTable(nn.Module):
    """Serves a group of logical tables: the small, method-specific half of a collection.

    A method overrides `remap`, and `combine` where rows side by side are not yet the vector. The layout's constants are
    registered as buffers and its parameters as parameters, under their names.

    Args:
        config: the method's options, sizes set.
        specs: the logical tables.
        layout: what is held; the config's own layout when not given.
    """

    takes_raw_ids: ClassVar[bool] = False
    """True when any 64-bit integer is an id, so that no vocabulary is needed."""

    gates: ClassVar[bool] = False
    """True when vectors pass through `gate` before bags are pooled."""

    def __init__(self, config: Any, specs: Sequence[TableSpec], layout: Layout | None = None) -> None:
        super().__init__()
        self.config = config
        self.specs = list(specs)
        self.layout: Layout = layout or config.layout(specs)
        for name, tensor in self.layout.constants.items():
            self.register_buffer(name, tensor)
        for parameter in self.layout.parameters:
            self.register_parameter(parameter.name, nn.Parameter(torch.zeros(parameter.shape)))

    @property
    def pooling_commutes(self) -> bool:
        """Whether combining pooled rows equals pooling combined rows, so that the lookup may pool bags."""
        return True

    @property
    def concatenates(self) -> bool:
        """Whether combine puts rows side by side and does nothing else, which a lookup can do by itself."""
        return type(self).combine is CompressedTable.combine

    @property
    def elementwise(self) -> bool:
        """Whether combine treats all columns of rows alike, so that one call serves several tables side by side."""
        return False

    @property
    def multiplies(self) -> bool:
        """Whether combine multiplies rows, all columns alike, which `elementwise` then says too."""
        return False

    @property
    def drops_ids(self) -> bool:
        """Whether `remap` or `route` gives -1 for ids that have no row, whose vector is zero."""
        return False

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """Turn ids into row numbers of the physical table that each lookup reads.

        Element-wise over all lookups of all features at once: look per-lookup constants up by `lookup` and broadcast.

        Args:
            ids: int64 ids, (N,) or (L, B).
            lookup: int64, which lookup (an index into the layout's lookups read left to right) each id belongs to;
                of a shape that broadcasts against `ids`: (N,) or (L, 1).

        Returns:
            int64 row numbers of the shape of `ids`; -1 where an id has no row, if the method `drops_ids`.
        """
        raise NotImplementedError(f"{type(self).__name__} must turn ids into row numbers.")

    def combine(self, rows: list[Tensor], spec_index: int) -> Tensor:
        """Make the vectors of one logical table from its looked-up rows; unless overridden, put them side by side.

        Args:
            rows: for each lookup of the table (N, d), or sums of rows over bags where `pooling_commutes`.
            spec_index: which logical table.

        Returns:
            (N, D).
        """
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def route(self, ids: Tensor, spec: Tensor) -> tuple[Tensor, Tensor]:
        """Choose for each id the one physical table that it reads; only for layouts whose lookups are alternatives.

        Args:
            ids: (N,) int64.
            spec: (N,) int64, the logical table of each id.

        Returns:
            (N,) int64, which of the layout's tables an id reads, and (N,) int64 row numbers of it, -1 as in `remap`.
        """
        raise NotImplementedError(f"{type(self).__name__} must say which table an id reads.")

    def widen(self, rows: Tensor, table: int, numbers: Tensor) -> Tensor:
        """Make vectors of the rows of one physical table; only for layouts whose lookups are alternatives.

        Args:
            rows: (N, d).
            table: which of the layout's tables they are from.
            numbers: (N,) int64, which rows they are.

        Returns:
            (N, D).
        """
        return rows

    def widens_as(self, table: int) -> Hashable:
        """Name the way in which `widen` treats a table; those of one width and one way may be widened together."""
        return ("alone", table)

    @property
    def widens_linearly(self) -> bool:
        """Whether every vector is one row times `matrix` of its table, which a kernel does for all tables at once."""
        return False

    def matrix(self, table: int) -> Tensor | None:
        """Give the (d, D) matrix that widens rows of a physical table; only for tables that are widened linearly.

        None stands for zeros behind the row, or where `bits` says.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what widens its rows.")

    def bits(self, rows: Tensor, table: Tensor) -> Tensor | None:
        """Say where the floats of rows go, in the form of `recemb.tables.structure.pack_bits`; None for to the front.

        Args:
            rows: (N,) int64 row numbers of physical tables.
            table: (N,) int64, the table of each.

        Returns:
            (N, ceil(D / 8)) uint8; those of rows of full width are not looked at.
        """
        return None

    def gate(self, vectors: Tensor, ids: Tensor, spec: Tensor) -> Tensor:
        """Mask the vectors of single ids of all tables at once; only for tables that `gates`.

        Args:
            vectors: (..., D), before bags are pooled.
            ids: (...) int64.
            spec: int64, the logical table of each id; of a shape that broadcasts against `ids`.

        Returns:
            (..., D).
        """
        raise NotImplementedError(f"{type(self).__name__} must mask vectors.")

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers of parameters that the dense optimizer shall leave alone; stepped and scheduled beside it."""
        return []

    def penalty(self) -> Tensor | None:
        """Give what the loss of a training step adds for the table's own sake, a scalar."""
        return None

    def after_step(self, weights: Callable[[], Sequence[Tensor]], epochs: float) -> None:
        """Do what is due after a training step.

        Args:
            weights: gives the physical tables' weights, in the layout's order, not to be changed. Where they are
                sharded every process must ask for them at the same step, so that the answer to whether to ask may
                depend on `epochs` alone.
            epochs: how many passes over the training rows are done.
        """

    def progress(self) -> dict[str, float]:
        """Give the numbers that training goes on from beside the module's tensors, for `resume`."""
        return {}

    def resume(self, progress: dict[str, float]) -> None:
        """Take up what `progress` gave."""

    def scalars(self) -> dict[str, float]:
        """Numbers worth watching in training, by name."""
        return {}


def total_held_bytes(specs: Sequence[TableSpec]) -> int:
    """Bytes of every id's row at full width, in the precision that each table is served in."""
    return sum(spec.num_embeddings * row_bytes(spec.embedding_dim, spec.precision) for spec in specs)


def total_full_bytes(specs: Sequence[TableSpec]) -> int:
    """Bytes of the uncompressed fp32 tables, which `kept` and shares of a budget refer to."""
    return sum(spec.full_bytes for spec in specs)
