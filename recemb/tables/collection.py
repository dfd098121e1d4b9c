"""CompressedEmbeddingBagCollection: a torchrec-shaped collection over any method of the family."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recemb.options import RecembError
from recemb.tables.base import (
    CompressedTable,
    TableConfig,
    TableSpec,
    init_orthogonal_,
    init_uniform_,
    total_full_bytes,
)
from recemb.tables.registry import create_table
from recemb.tables.storage import FusedOptimizer, FusedTables, PlainTables


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
        config: the method and its sizes.
        optimizer: hold the rows in FBGEMM's fused tables under this optimizer; None keeps ordinary parameters, which
            autograd and any torch optimizer can see.
        seed: fixes the initial weights; two collections of one seed are equal.
        device: where the weights live.

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
        config: TableConfig,
        *,
        optimizer: FusedOptimizer | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self._in_layout: Tensor
        self._lanes: Tensor
        self._least: Tensor
        self._most: Tensor
        self._permutation: Tensor
        _check_names(specs)
        self.specs = list(specs)
        self.method: CompressedTable = create_table(config, specs).to(device)
        layout = self.method.layout
        self._features = [name for spec in specs for name in spec.feature_names]
        self._spec_of_feature = [index for index, spec in enumerate(specs) for _ in spec.feature_names]
        # FBGEMM wants the lookups of one table side by side, tables ascending.
        lookups = sorted(_lookups(layout.lookups, self._spec_of_feature), key=lambda lookup: lookup.table)
        self._feature_of_lookup = [lookup.feature for lookup in lookups]
        # For each feature the places of its lookups, in the order that combine takes them.
        self._lookups_of_feature = [
            sorted((i for i, one in enumerate(lookups) if one.feature == feature), key=lambda i: lookups[i].in_layout)
            for feature in range(len(self._features))
        ]
        physical = [layout.tables[lookup.table] for lookup in lookups]
        self._widths = [table.dim for table in physical]
        self._dims = [layout.dims[index] for index in self._spec_of_feature]
        self._one_lookup_each = self._feature_of_lookup == list(range(len(self._features)))
        # Where combine puts rows side by side and they are looked up in that order, the lookup has done it already.
        in_order = [lookup for of_feature in self._lookups_of_feature for lookup in of_feature]
        self._combines = type(self.method).combine is not CompressedTable.combine or in_order != sorted(in_order)
        self._single = all(spec.max_length == 1 for spec in specs)
        lookup_tables = [lookup.table for lookup in lookups]
        self.tables: PlainTables | FusedTables = (
            PlainTables(layout.tables, lookup_tables, device)
            if optimizer is None
            else FusedTables(layout.tables, lookup_tables, optimizer, device)
        )
        self._packed = any(lanes > 1 for lanes in self.tables.lanes)
        for name, numbers in (
            ("_in_layout", [lookup.in_layout for lookup in lookups]),
            ("_lanes", self.tables.lanes),
            ("_least", [_least_id(specs[index]) for index in self._spec_of_feature]),
            ("_most", [_most_id(specs[index]) for index in self._spec_of_feature]),
            ("_permutation", self._feature_of_lookup),
        ):
            # Derived from the specs, so not part of the saved state.
            self.register_buffer(name, torch.tensor(numbers, device=device), persistent=False)
        for table in layout.tables:
            weight = self.tables.get_parameter(f"embedding_bags.{table.name}.weight")
            init_uniform_(weight.data, table.init_std, table.name, seed)
        for parameter in layout.parameters:
            init_orthogonal_(self.method.get_parameter(parameter.name), parameter.init_std, parameter.name, seed)

    def embedding_bag_configs(self) -> list[BagConfig]:
        """Describe the logical tables the way torchrec's models read them; a narrower table says its own width."""
        return [
            BagConfig(spec.name, spec.num_embeddings, dim, spec.feature_names)
            for spec, dim in zip(self.specs, self.method.layout.dims, strict=True)
        ]

    @property
    def kept(self) -> float:
        """Serving bytes over the bytes of the full fp32 tables."""
        return self.method.layout.serving_bytes / total_full_bytes(self.specs)

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
        if not self._one_lookup_each:
            if uniform:
                ids, lengths = ids[self._permutation], lengths[self._permutation]
            else:
                lengths, ids, _ = torch.ops.fbgemm.permute_2D_sparse_data(self._permutation.int(), lengths, ids)
        # Which lookup each id belongs to: a column that broadcasts, or one entry an id.
        of_lookups = (
            (lambda numbers: numbers.unsqueeze(1))
            if uniform
            else partial(torch.repeat_interleave, repeats=lengths.sum(dim=1))
        )
        rows = self.method.remap(ids, of_lookups(self._in_layout))
        if not self._combines and not self._packed and not self.method.layout.partial:
            return self._keyed(self.tables(rows.flatten(), _offsets(lengths)))
        return self._combine(rows.flatten(), of_lookups(self._lanes), lengths, uniform)

    def _combine(self, rows: Tensor, lanes: Tensor, lengths: Tensor, uniform: bool) -> KeyedTensor:
        """Look stored rows up, pick their lanes, combine, and pool what must be pooled after combining.

        Args:
            rows: (N,) row numbers, lookup after lookup; -1 = left out.
            lanes: rows to a stored row, for each of the N (N,) or each lookup (L, 1).
            lengths: (L, B) ids of each bag.
            uniform: every bag holds one id.
        """
        pool_after = not self._single and (self._packed or not self.method.pooling_commutes)
        bag_lengths = _one_bag_per_value(lengths) if pool_after else lengths
        lane = None
        if self._packed:
            of_rows = rows.view(-1, lengths.shape[1]) if uniform else rows
            lane, rows = (of_rows % lanes).flatten(), (of_rows // lanes).flatten()
        if self.method.layout.partial:
            here = rows >= 0
            bag_lengths = _count_in_bags(here, bag_lengths)
            rows, lane = rows[here], None if lane is None else lane[here]
        stored = self.tables(rows, _offsets(bag_lengths)).split(self.tables.widths, dim=1)
        lane_of_bag = None
        if lane is not None:
            lane_of_bag = lane.new_zeros(bag_lengths.numel()).masked_scatter(bag_lengths.flatten() > 0, lane)
            lane_of_bag = lane_of_bag.view(bag_lengths.shape)
        vectors = []
        for feature, lookups in enumerate(self._lookups_of_feature):
            parts = [
                _pick_lane(stored[lookup], self._widths[lookup], None if lane_of_bag is None else lane_of_bag[lookup])
                for lookup in lookups
            ]
            vector = self.method.combine(parts, self._spec_of_feature[feature])
            of_bags = lengths[lookups[0]]
            if pool_after:
                bag = torch.repeat_interleave(of_bags)
                pooled = vector.new_zeros(len(of_bags), vector.shape[1])
                vector = pooled.index_add(0, bag, vector[: len(bag)])
            elif not uniform:
                # combine may make something of a bag without ids; an empty bag is zero.
                vector = vector * (of_bags > 0).unsqueeze(1)
            vectors.append(vector)
        return self._keyed(torch.cat(vectors, dim=1))

    def _keyed(self, values: Tensor) -> KeyedTensor:
        return KeyedTensor(keys=self._features, length_per_key=self._dims, values=values)

    def _ordered(self, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Bring the features into the collection's order: ids (N,) and lengths (F, B)."""
        keys = features.keys()
        if features.weights_or_none() is not None:
            raise RecembError("the batch has per-id weights, which compressed tables do not take; leave them out.")
        if features.variable_stride_per_key():
            raise RecembError("the batch has another number of bags for each feature; all must have the same.")
        if features.values().is_floating_point():
            raise RecembError(f"ids must be integers, and the batch holds {features.values().dtype}.")
        if keys != self._features:
            missing = [name for name in self._features if name not in keys]
            if missing:
                raise RecembError(
                    f"the batch lacks feature {missing[0]!r}; it holds {', '.join(keys)}, "
                    f"and the collection needs {', '.join(self._features)}."
                )
            features = features.permute([keys.index(name) for name in self._features])
        return features.values(), features.lengths().view(len(self._features), -1)

    def _is_uniform(self, ids: Tensor, lengths: Tensor) -> bool:
        """Whether every bag holds exactly one id; raises where a bag holds more although max_length is 1."""
        if lengths.numel() and int(lengths.max()) > 1:
            feature = self._features[int(lengths.amax(dim=1).argmax())]
            raise RecembError(
                f"feature {feature}: a bag holds {int(lengths.max())} ids, but its table was made for one at most "
                "(max_length=1); make the TableSpec with max_length=None."
            )
        return ids.numel() == lengths.numel()

    def _check_ids(self, ids: Tensor, lengths: Tensor, uniform: bool) -> None:
        if not ids.numel():
            return
        if uniform:
            low, high = torch.aminmax(ids, dim=1)
            wrong = bool(((low < self._least) | (high > self._most)).any())
        else:
            feature_of_id = torch.repeat_interleave(lengths.sum(dim=1))
            wrong = bool(((ids < self._least[feature_of_id]) | (ids > self._most[feature_of_id])).any())
        if wrong:
            feature_of_id, flat = torch.repeat_interleave(lengths.sum(dim=1)), ids.flatten()
            outside = (flat < self._least[feature_of_id]) | (flat > self._most[feature_of_id])
            position = int(outside.nonzero()[0])
            most = int(self._most[feature_of_id[position]])
            raise RecembError(
                f"feature {self._features[int(feature_of_id[position])]}: id {int(flat[position])} is out of range; "
                f"its table has {most + 1} ids, 0 to {most}."
            )


class _Lookup(NamedTuple):
    feature: int
    table: int
    in_layout: int  # index into the layout's lookups, read left to right


def _lookups(of_specs: list[list[int]], spec_of_feature: list[int]) -> Iterator[_Lookup]:
    first = [0, *itertools.accumulate(map(len, of_specs))]
    for feature, spec in enumerate(spec_of_feature):
        for position, table in enumerate(of_specs[spec]):
            yield _Lookup(feature, table, first[spec] + position)


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
        if "." in spec.name or not spec.name or hasattr(nn.ModuleDict, spec.name):
            raise RecembError(
                f"table name {spec.name!r} cannot be used: it must not be empty, hold a dot or be a method of "
                "torch.nn.ModuleDict, as keys and type are."
            )


def _least_id(spec: TableSpec) -> int:
    return -(2**63) if spec.raw_ids else 0


def _most_id(spec: TableSpec) -> int:
    return 2**63 - 1 if spec.raw_ids else spec.num_embeddings - 1


def _offsets(lengths: Tensor) -> Tensor:
    return torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.flatten().long())


def _one_bag_per_value(lengths: Tensor) -> Tensor:
    """Lengths (L, n) of bags with one id each, n = the most ids of any lookup; later bags of others are empty."""
    values = lengths.sum(dim=1, keepdim=True)
    return (torch.arange(int(values.max()), device=lengths.device) < values).long()


def _count_in_bags(chosen: Tensor, lengths: Tensor) -> Tensor:
    """Count the chosen (N,) bool values of every bag; returns the shape of `lengths`."""
    before = torch.ops.fbgemm.asynchronous_complete_cumsum(chosen.long())
    return before[_offsets(lengths)].diff().view(lengths.shape)


def _pick_lane(stored: Tensor, width: int, lane: Tensor | None) -> Tensor:
    """Take `width` of the stored floats: lane 0 is the first `width`, lane 1 the next."""
    if stored.shape[1] == width or lane is None:
        return stored
    lanes = stored.view(len(stored), stored.shape[1] // width, width)
    return lanes.gather(1, lane.view(-1, 1, 1).expand(-1, 1, width)).squeeze(1)
