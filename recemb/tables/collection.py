"""CompressedEmbeddingBagCollection: a torchrec-shaped collection over any method of the family."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recemb.options import RecembError
from recemb.tables.bags import bag_in_result, offsets_of, pool, without_missing
from recemb.tables.base import (
    CompressedTable,
    Layout,
    PhysicalTable,
    TableConfig,
    TableSpec,
    total_full_bytes,
)
from recemb.tables.initial import init_orthogonal_, init_uniform_
from recemb.tables.quantized import QuantizedTables
from recemb.tables.registry import create_table
from recemb.tables.sharded import ReplicatedTables, ShardedTables
from recemb.tables.storage import FusedOptimizer, FusedTables, PlainTables, lanes_of

HERE, SHARDED, REPLICATED = "here", "sharded", "replicated"


@dataclass(frozen=True)
class BagConfig:
    """What torchrec's models ask of a collection: one logical table as it appears from outside."""

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: list[str]


class CompressedEmbeddingBagCollection(nn.Module):
    """Pooled embeddings of all features, KeyedJaggedTensor in, KeyedTensor out, whatever the method.

    Args:
        specs: the logical tables.
        config: the method and its sizes, or a module of a method made for these tables.
        optimizer: hold the rows in FBGEMM's fused tables under this optimizer; None keeps ordinary parameters, which
            autograd and any torch optimizer can see.
        seed: fixes the initial weights; two collections of one seed are equal.
        device: where the weights live.
        rows: (rows, width) of each physical table, to be held for serving as the specs' precisions say; `config` is
            then the module that they belong to. See `quantized`, which passes them.
        held: where rows under an optimizer are: `here`, in this process; `sharded`, spread over processes by
            torchrec's DistributedModelParallel once `recemb.training.sharding.shard` has wrapped the model;
            `replicated`, all of them in every process, which add up their gradients.

    Attributes:
        features: the features that are looked up, in the order of the result.

    Example::

        specs = [TableSpec(name="C1", num_embeddings=1000, embedding_dim=16)]
        collection = CompressedEmbeddingBagCollection(specs, HashingConfig(rows=100))
        #        0       1     <-- row of the batch
        # "C1"   [7]     [7, 8]
        features = KeyedJaggedTensor(keys=["C1"], values=torch.tensor([7, 7, 8]), lengths=torch.tensor([1, 2]))
        collection(features)["C1"].shape  # (2, 16)

    Raises:
        RecembError: two tables have one name or one feature, or ids are out of range (in `forward`; the sentence names
            the feature, the id and the size).
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: TableConfig | CompressedTable,
        *,
        optimizer: FusedOptimizer | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        rows: Sequence[Tensor] | None = None,
        held: str = HERE,
    ) -> None:
        super().__init__()
        self._in_layout: Tensor
        self._least: Tensor
        self._most: Tensor
        self._permutation: Tensor
        self._spec: Tensor
        self._place: Tensor
        _check_names(specs)
        if rows is not None and (optimizer is not None or not isinstance(config, CompressedTable)):
            raise RecembError("rows= holds trained rows for serving: pass their own module, and no optimizer.")
        self.specs = list(specs)
        method = config if isinstance(config, CompressedTable) else create_table(config, specs)
        self.method: CompressedTable = method.to(device)
        layout = self.method.layout
        self.features = [name for spec in specs for name in spec.feature_names]
        self._spec_of_feature = [index for index, spec in enumerate(specs) for _ in spec.feature_names]
        self._dims = [layout.dims[index] for index in self._spec_of_feature]
        self._single = all(spec.max_length == 1 for spec in specs)
        packed = optimizer is not None and any(lanes_of(table.dim) > 1 for table in layout.tables)
        # Whether rows are needed id by id: to choose among them, to pick them out of stored rows, or to combine them
        # before their bags are pooled.
        self._by_value = layout.alternatives or packed or method.gates or not (self._single or method.pooling_commutes)
        readers = self._spec_of_feature
        self._runs = self._find_runs([[layout.tables[t].dim for t in layout.lookups[spec]] for spec in readers])
        if layout.alternatives:
            # Every id reads one of the tables, whatever its feature: each table is looked up once.
            found = [_Lookup(0, table, table, table) for table in range(len(layout.tables))]
        else:
            found = list(_lookups(layout.lookups, readers))
        lookups = sorted(found, key=self._order_of(layout.tables))
        # For each feature the places of its lookups, in the order that combine takes them.
        self._places = [
            sorted((i for i, one in enumerate(lookups) if one.reader == reader), key=lambda i: lookups[i].in_layout)
            for reader in range(len(readers))
        ]
        self._one_lookup_each = [one.reader for one in lookups] == list(range(len(self.features)))
        # Where combine puts rows side by side and they are looked up in that order, the lookup has done it already.
        in_order = [place for places in self._places for place in places]
        self._combines = not self.method.concatenates or in_order != sorted(in_order)
        self._part_widths, self._parts_of_run = self._find_parts([layout.tables[one.table].dim for one in lookups])
        lookup_tables = [one.table for one in lookups]
        self.tables: PlainTables | FusedTables | QuantizedTables | ShardedTables | ReplicatedTables
        if rows is not None:
            self.tables = QuantizedTables(layout.tables, lookup_tables, rows, by_value=self._by_value)
        elif optimizer is not None and held != HERE:
            elsewhere: type[ShardedTables | ReplicatedTables] = ShardedTables if held == SHARDED else ReplicatedTables
            self.tables = elsewhere(layout.tables, lookup_tables, optimizer, device, by_value=self._by_value)
        elif optimizer is not None:
            self.tables = FusedTables(layout.tables, lookup_tables, optimizer, device, by_value=self._by_value)
        else:
            self.tables = PlainTables(layout.tables, lookup_tables, device)
        in_layout = [one.in_layout for one in lookups]
        least, most = id_ranges(specs)
        for name, numbers in (
            ("_in_layout", in_layout),
            ("_least", [least[index] for index in self._spec_of_feature]),
            ("_most", [most[index] for index in self._spec_of_feature]),
            ("_permutation", [one.reader for one in lookups]),
            ("_spec", self._spec_of_feature),
            ("_place", [in_layout.index(table) for table in range(len(layout.tables))] if layout.alternatives else []),
        ):
            # Derived from the specs, so not part of the saved state.
            self.register_buffer(name, torch.tensor(numbers, device=device), persistent=False)
        if rows is None:
            self.start(seed)

    def start(self, seed: int) -> None:
        """Give all weights the values that training starts from; rows that are still to be sharded wait for that."""
        layout = self.method.layout
        for table in layout.tables:
            if isinstance(self.tables, ShardedTables):
                self.tables.start(table, seed)
            elif not isinstance(self.tables, QuantizedTables):
                init_uniform_(self.tables.read(table.name).data, table.init_std, table.name, seed)
        for parameter in layout.parameters:
            init_orthogonal_(self.method.get_parameter(parameter.name), parameter.init_std, parameter.name, seed)

    def _find_runs(self, widths: list[list[int]]) -> list[range]:
        """Group neighbouring readers that one call of combine serves, given the widths of each one's lookups."""
        runs = [range(0, 1)]
        for reader in range(1, len(widths)):
            if self.method.elementwise and widths[reader] == widths[reader - 1]:
                runs[-1] = range(runs[-1].start, reader + 1)
            else:
                runs.append(range(reader, reader + 1))
        return runs

    def _find_parts(self, widths: list[int]) -> tuple[list[int], list[list[int]]]:
        """Give the width of each part that pooled rows are split into, and which of them each run combines."""
        if not self.method.elementwise:
            return widths, [self._places[run.start] for run in self._runs]
        part_widths: list[int] = []
        parts_of_run = []
        for run in self._runs:
            places = [self._places[feature] for feature in run]
            parts_of_run.append([len(part_widths) + position for position in range(len(places[0]))])
            part_widths += [sum(widths[place] for place in position) for position in zip(*places, strict=True)]
        return part_widths, parts_of_run

    def _order_of(self, tables: Sequence[PhysicalTable]) -> Callable[["_Lookup"], tuple[int | str, ...]]:
        """Say how lookups are ordered: those of one table side by side, as FBGEMM wants them."""
        if self._by_value:
            return lambda one: (tables[one.table].dim, tables[one.table].held, one.table)
        if self.method.elementwise:
            # The first lookups of all tables of a run, then the second ones, ...: combine takes each as one block.
            run_of = [number for number, run in enumerate(self._runs) for _ in run]
            return lambda one: (run_of[one.reader], one.position, one.table)
        return lambda one: (one.table,)

    def embedding_bag_configs(self) -> list[BagConfig]:
        """Describe the logical tables the way torchrec's models read them; a narrower table says its own width."""
        return bag_configs(self.specs, self.method.layout)

    @property
    def kept(self) -> float:
        """Serving bytes over the bytes of the full fp32 tables."""
        return self.method.layout.serving_bytes / total_full_bytes(self.specs)

    @property
    def weights(self) -> list[Tensor]:
        """The physical tables' weights (rows, width), in the layout's order.

        Sharded rows are gathered, so that all processes must ask for them together and get copies; see `write`.
        """
        host = self.tables
        if isinstance(host, QuantizedTables):
            raise RecembError("quantized tables hold packed rows and no weights; ask the collection they were made of.")
        return [host.read(table.name) for table in self.method.layout.tables]

    @torch.no_grad()
    def write(self, weights: Sequence[Tensor]) -> None:
        """Give the physical tables other weights (rows, width), in the layout's order, wherever they are held."""
        assert not isinstance(self.tables, QuantizedTables)
        for table, weight in zip(self.method.layout.tables, weights, strict=True):
            self.tables.write(table.name, weight)

    def quantized(self) -> "CompressedEmbeddingBagCollection":
        """Make the collection that serves these tables: rows held as the specs' precisions say, on the CPU.

        It takes and gives what this one does, and holds exactly the layout's serving bytes. Nothing in it is trained,
        and nothing of it is shared with this one.

        Raises:
            RecembError: the tables are still being pruned, or a number is too large for half precision.
        """
        if self.method.gates:
            raise RecembError("tables that are still being pruned cannot be served; serve the packed table.")
        method = copy.deepcopy(self.method).cpu().requires_grad_(False)
        return CompressedEmbeddingBagCollection(self.specs, method, rows=self.weights).train(self.training)

    def serving_tensors(self) -> dict[str, Tensor]:
        """Give every tensor that serving the tables needs, by name."""
        return {f"tables.{name}": tensor for name, tensor in self.tables.state_dict().items()} | {
            f"method.{name}": tensor for name, tensor in self.method.state_dict().items()
        }

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look all features up.

        Args:
            features: ids by feature; must hold every feature of the collection, in any order, others are ignored.

        Returns:
            KeyedTensor with (B, D) for each feature; an empty bag gives zeros.
        """
        ids, lengths = self._ordered(features)
        uniform = self._single and self._is_uniform(ids, lengths)
        if uniform:
            ids = ids.view(lengths.shape)
        self._check_ids(ids, lengths, uniform)
        if self.method.layout.alternatives:
            return self._keyed(self._look_up_alternatives(ids.flatten(), lengths))
        if self.method.gates:
            return self._keyed(self._look_up_gated(ids, lengths, uniform))
        if not self._one_lookup_each:
            if uniform:
                ids, lengths = ids[self._permutation], lengths[self._permutation]
            else:
                lengths, ids, _ = torch.ops.fbgemm.permute_2D_sparse_data(self._permutation.int(), lengths, ids)
        # Which lookup each id belongs to: a column that broadcasts, or one entry an id.
        lookup = self._in_layout.unsqueeze(1) if uniform else self._in_layout.repeat_interleave(lengths.sum(dim=1))
        rows = self.method.remap(ids, lookup)
        if self.method.drops_ids:
            rows, lengths = without_missing(rows, lengths)
            uniform = False
        rows = rows.flatten()
        look_up = self._look_up_values if self._by_value else self._look_up_bags
        return self._keyed(look_up(rows, lengths, uniform))

    def _look_up_bags(self, rows: Tensor, lengths: Tensor, uniform: bool) -> Tensor:
        """Pool rows while looking them up, then combine.

        Args:
            rows: (N,) row numbers, lookup after lookup.
            lengths: (L, B) ids of each bag.
            uniform: every bag holds one id.

        Returns:
            (B, sum of the features' widths).
        """
        pooled = self.tables(rows, offsets_of(lengths))
        if not self._combines:
            return pooled
        parts = pooled.split(self._part_widths, dim=1)
        vectors = []
        for run, of_run in zip(self._runs, self._parts_of_run, strict=True):
            vector = self.method.combine([parts[part] for part in of_run], self._spec_of_feature[run.start])
            if not uniform:
                # combine may make something of a bag without ids; an empty bag is zero.
                filled = lengths[[self._places[feature][0] for feature in run]] > 0
                vector = (vector.view(-1, len(run), vector.shape[1] // len(run)) * filled.T.unsqueeze(2)).flatten(1)
            vectors.append(vector)
        return torch.cat(vectors, dim=1) if len(vectors) > 1 else vectors[0]

    def _look_up_values(self, rows: Tensor, lengths: Tensor, uniform: bool) -> Tensor:
        """Look rows up one by one, combine, then pool; same arguments and result as `_look_up_bags`."""
        parts = self.tables.values(rows, lengths.sum(dim=1).tolist())
        vectors = []
        for spec, places in zip(self._spec_of_feature, self._places, strict=True):
            vector = self.method.combine([parts[place] for place in places], spec)
            vectors.append(vector if uniform else pool(vector, lengths[places[0]]))
        return torch.cat(vectors, dim=1)

    def _look_up_alternatives(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Look every id up in the one lookup of its table that it reads, widen the rows, then pool.

        Args:
            ids: (N,) feature after feature.
            lengths: (F, B) ids of each bag.

        Returns:
            (B, sum of the features' widths).
        """
        features, bags = lengths.shape
        bag = bag_in_result(lengths)
        table, rows = self.method.route(ids, self._spec.repeat_interleave(lengths.sum(dim=1)))
        if self.method.drops_ids:
            kept = rows >= 0
            table, rows, bag = table[kept], rows[kept], bag[kept]
        place, order = torch.sort(self._place[table], stable=True)
        counts = torch.bincount(place, minlength=len(self._place)).tolist()
        rows, bag = rows[order], bag[order]
        widest = max(self._dims)
        parts = zip(self.tables.values(rows, counts), self._in_layout.tolist(), rows.split(counts), strict=True)
        vectors = [
            F.pad(vector, (0, widest - vector.shape[1])) for vector in (self.method.widen(*part) for part in parts)
        ]
        pooled = vectors[0].new_zeros(bags * features, widest).index_add(0, bag, torch.cat(vectors))
        if min(self._dims) == widest:
            return pooled.view(bags, features * widest)
        of_features = pooled.view(bags, features, widest).unbind(1)
        return torch.cat([vector[:, :dim] for vector, dim in zip(of_features, self._dims, strict=True)], dim=1)

    def _look_up_gated(self, ids: Tensor, lengths: Tensor, uniform: bool) -> Tensor:
        """Look ids up one by one, let them pass the method's gate, then pool; every id's row is its own.

        Args:
            ids: (F, B) if uniform, else (N,) feature after feature.
            lengths: (F, B) ids of each bag.
            uniform: every bag holds one id.

        Returns:
            (B, F * D).
        """
        features, bags = lengths.shape
        of_features = lengths.sum(dim=1)
        vectors = torch.cat(self.tables.values(ids.flatten(), of_features.tolist()))
        if uniform:
            vectors = self.method.gate(vectors.view(features, bags, -1), ids, self._spec.unsqueeze(1))
            return vectors.transpose(0, 1).flatten(1)
        vectors = self.method.gate(vectors, ids, self._spec.repeat_interleave(of_features))
        pooled = vectors.new_zeros(bags * features, self._dims[0]).index_add(0, bag_in_result(lengths), vectors)
        return pooled.view(bags, features * self._dims[0])

    def _keyed(self, values: Tensor) -> KeyedTensor:
        return KeyedTensor(keys=self.features, length_per_key=self._dims, values=values)

    def _ordered(self, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Bring the features into the collection's order: ids (N,) and lengths (F, B)."""
        keys = features.keys()
        if features.weights_or_none() is not None:
            raise RecembError("the batch has per-id weights, which compressed tables do not take; leave them out.")
        if features.variable_stride_per_key():
            raise RecembError("the batch has another number of bags for each feature; all must have the same.")
        if features.values().is_floating_point():
            raise RecembError(f"ids must be integers, and the batch holds {features.values().dtype}.")
        if keys != self.features:
            missing = [name for name in self.features if name not in keys]
            if missing:
                raise RecembError(
                    f"the batch lacks feature {missing[0]!r}; it holds {', '.join(keys)}, "
                    f"and the collection needs {', '.join(self.features)}."
                )
            features = features.permute([keys.index(name) for name in self.features])
        return features.values(), features.lengths().view(len(self.features), -1)

    def _is_uniform(self, ids: Tensor, lengths: Tensor) -> bool:
        """Whether every bag holds exactly one id; raises where a bag holds more although max_length is 1."""
        if lengths.numel() and int(lengths.max()) > 1:
            feature = self.features[int(lengths.amax(dim=1).argmax())]
            raise RecembError(
                f"feature {feature}: a bag holds {int(lengths.max())} ids, but its table was made for one at most "
                "(max_length=1); make the TableSpec with max_length=None."
            )
        return ids.numel() == lengths.numel()

    def _check_ids(self, ids: Tensor, lengths: Tensor, uniform: bool) -> None:
        if not ids.numel():
            return
        if uniform:  # the usual case, told by two numbers a feature
            low, high = torch.aminmax(ids, dim=1)
            if not bool(((low < self._least) | (high > self._most)).any()):
                return
        feature_of_id, flat = torch.repeat_interleave(lengths.sum(dim=1)), ids.flatten()
        check_in_range(flat, feature_of_id, self.features, self._least, self._most)


class _Lookup(NamedTuple):
    reader: int  # the feature (or table) that looks up
    position: int  # among the reader's lookups
    table: int
    in_layout: int  # index into the layout's lookups, read left to right


def _lookups(of_specs: list[list[int]], spec_of_reader: Sequence[int]) -> Iterator[_Lookup]:
    first = [0, *itertools.accumulate(map(len, of_specs))]
    for reader, spec in enumerate(spec_of_reader):
        for position, table in enumerate(of_specs[spec]):
            yield _Lookup(reader, position, table, first[spec] + position)


def _check_names(specs: Sequence[TableSpec]) -> None:
    if not specs:
        raise RecembError("a collection needs at least one table.")
    for what, names in (
        ("table", [spec.name for spec in specs]),
        ("feature", [name for spec in specs for name in spec.feature_names]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                raise RecembError(f"{what} {name!r} is named {count} times; names must differ.")
    for spec in specs:
        if "." in spec.name or not spec.name or hasattr(nn.ModuleDict(), spec.name):
            raise RecembError(
                f"table name {spec.name!r} cannot be used: it must not be empty, hold a dot or be a method of "
                "torch.nn.ModuleDict, as keys and type are."
            )


def id_ranges(specs: Sequence[TableSpec]) -> tuple[list[int], list[int]]:
    """Give the least and the greatest id of each table."""
    return (
        [-(2**63) if spec.raw_ids else 0 for spec in specs],
        [2**63 - 1 if spec.raw_ids else spec.num_embeddings - 1 for spec in specs],
    )


def check_in_range(ids: Tensor, feature: Tensor, names: Sequence[str], least: Tensor, most: Tensor) -> None:
    """Raise where an id is outside of its table.

    Args:
        ids: (N,) int64.
        feature: (N,) int64, the feature of each.
        names: of the F features.
        least: (F,) int64, the least id of each.
        most: (F,) int64, the greatest.
    """
    outside = (ids < least[feature]) | (ids > most[feature])
    if bool(outside.any()):
        position = int(outside.nonzero()[0])
        greatest = int(most[feature[position]])
        raise RecembError(
            f"feature {names[int(feature[position])]}: id {int(ids[position])} is out of range; its table has "
            f"{greatest + 1} ids, 0 to {greatest}."
        )


def bag_configs(specs: Sequence[TableSpec], layout: Layout) -> list[BagConfig]:
    """Describe logical tables the way torchrec's models read them; a narrower table says its own width."""
    return [
        BagConfig(spec.name, spec.num_embeddings, dim, spec.feature_names)
        for spec, dim in zip(specs, layout.dims, strict=True)
    ]
