"""Tables of any method as a plain module that serves: flat ids in, vectors out, rows at any precision.

No FBGEMM, no torchrec and no autograd: the graph is plain tensor functions, so that the same module runs in eager
torch, as a `torch.export` program and as ONNX. Rows of equal width and precision lie in one store whatever their table,
so that a feature more costs no operation more.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recemb.options import RecembError
from recemb.tables.base import CompressedTable, PhysicalTable
from recemb.tables.casting import keep_types
from recemb.tables.collection import BagConfig, bag_configs
from recemb.tables.looking_up import check_in_range, id_ranges
from recemb.tables.precision import empty_rows, pack_rows, read_rows


class Place(NamedTuple):
    """Where the rows of a physical table lie: from row `first` on in a store."""

    store: str
    first: int


_IDS_AT_ONCE = 1 << 16


class RowStore(nn.Module):
    """Rows of one width, held in one way; see `recemb.tables.precision`."""

    def __init__(self, tensors: Mapping[str, Tensor], dim: int, held: str) -> None:
        super().__init__()
        self.dim = dim
        self.held = held
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, rows: Tensor) -> Tensor:
        """Read rows (N,) int64: (N, d) float32."""
        return read_rows(self._buffers, rows, self.dim, self.held)  # type: ignore[arg-type]


class ServingTables(nn.Module):
    """Looks pooled vectors up, for every method, from rows that may be quantized.

    Bags are summed. In an exported graph, which has no way to raise, an id outside of its table reads id 0, the
    out-of-vocabulary one; called from Python it is an error.

    Args:
        method: the module of a method whose tables these are; its constants and parameters are served too.
        weights: (rows, d) float32 of each physical table, in the layout's order; None leaves the rows to be loaded.
    """

    _spec: Tensor
    _lookup: Tensor
    _base: Tensor
    _least: Tensor
    _most: Tensor
    _class: Tensor
    _in_class: Tensor
    _group: Tensor
    _first_row: Tensor

    def __init__(self, method: CompressedTable, weights: Sequence[Tensor] | None) -> None:
        super().__init__()
        if method.gates:
            raise RecembError("tables that are still being pruned cannot be served; serve the packed table.")
        self.method = method.requires_grad_(False)
        self.specs = method.specs
        layout = method.layout
        self.places = places(layout.tables)
        stores: dict[str, list[dict[str, Tensor]]] = {}
        for number, table in enumerate(layout.tables):
            stores.setdefault(self.places[number].store, []).append(
                empty_rows(table) if weights is None else pack_rows(weights[number].detach().cpu(), table.held)
            )
        self.stores = nn.ModuleDict()
        for table, place in zip(layout.tables, self.places, strict=True):
            if place.store not in self.stores:
                of_tables = stores[place.store]
                joined = {name: torch.cat([one[name] for one in of_tables]) for name in of_tables[0]}
                self.stores[place.store] = RowStore(joined, table.dim, table.held)
        spec_of_feature = [index for index, spec in enumerate(self.specs) for _ in spec.feature_names]
        self._spec_of_feature = spec_of_feature
        self.features = [name for spec in self.specs for name in spec.feature_names]
        self._dims = [layout.dims[spec] for spec in spec_of_feature]
        # The first lookup of each table, and of which table each lookup is, in the layout's order read left to right.
        self._first = [0, *itertools.accumulate(map(len, layout.lookups))]
        of_lookup = [table for tables in layout.lookups for table in tables]
        least, most = id_ranges(self.specs)
        self._classes = [] if layout.alternatives else self._find_classes()
        for name, numbers in (
            ("_spec", spec_of_feature),
            ("_lookup", [self._first[spec] for spec in spec_of_feature]),
            ("_base", [self.places[table].first for table in of_lookup]),
            ("_least", [least[spec] for spec in spec_of_feature]),
            ("_most", [most[spec] for spec in spec_of_feature]),
            ("_class", self._class_of_feature if self._classes else []),
            ("_in_class", self._place_in_class if self._classes else []),
            ("_group", self._find_groups() if layout.alternatives else []),
            ("_first_row", [place.first for place in self.places] if layout.alternatives else []),
        ):
            self.register_buffer(name, torch.tensor(numbers), persistent=False)  # derived from the specs

    def _apply(self, fn: Any, recurse: bool = True) -> "ServingTables":
        """Move to another device, but keep numbers in the types that they are held in whatever a model is cast to."""
        super()._apply(keep_types(fn), recurse)
        return self

    def _find_groups(self) -> list[int]:
        """Give each alternative its group: those whose rows lie in one store and become vectors in the same way."""
        ways = [(place.store, self.method.widens_as(number)) for number, place in enumerate(self.places)]
        of_way = {way: group for group, way in enumerate(dict.fromkeys(ways))}
        groups = [of_way[way] for way in ways]
        self._groups = [groups.index(group) for group in range(len(of_way))]
        return groups

    def _find_classes(self) -> list[list[int]]:
        """Group features that the same operations serve: those whose lookups read the same stores.

        Where rows are combined id by id and each table has its own way to, every feature is a class.
        """
        alone = not (self.method.pooling_commutes or self.method.elementwise)
        keys: dict[tuple[object, ...], list[int]] = {}
        for feature, spec in enumerate(self._spec_of_feature):
            stores = [self.places[table].store for table in self.method.layout.lookups[spec]]
            keys.setdefault((*stores, spec if alone else None), []).append(feature)
        classes = list(keys.values())
        self._class_of_feature = [0] * len(self._spec_of_feature)
        self._place_in_class = [0] * len(self._spec_of_feature)
        for number, features in enumerate(classes):
            for place, feature in enumerate(features):
                self._class_of_feature[feature], self._place_in_class[feature] = number, place
        return classes

    def embedding_bag_configs(self) -> list[BagConfig]:
        """Describe the logical tables the way torchrec's models read them."""
        return bag_configs(self.specs, self.method.layout)

    @property
    def serving_bytes(self) -> int:
        """Bytes of every tensor that is served."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Look up.

        Args:
            values: (N,) int64 ids, feature after feature, each feature's bags one after the other.
            offsets: (F, B + 1) int64: bag b of feature f is values[offsets[f, b] : offsets[f, b + 1]].

        Returns:
            (B, sum of the features' widths) float32; an empty bag gives zeros.

        Raises:
            RecembError: the shapes do not fit together, or an id is out of range; not from an exported graph.
        """
        if not torch.compiler.is_exporting():
            self._check(values, offsets)  # and nothing is out of range from here on
        features, bags = len(self.features), offsets.shape[1] - 1
        # An id's bag is the number of bags that end at or before it. Without the copy an exported graph would depend on
        # whether one bag or several make the slice contiguous.
        ends = offsets[:, 1:].clone().view(-1)
        marks = torch.zeros(values.shape[0] + 1, dtype=torch.int64, device=values.device)
        bag = marks.index_add(0, ends, torch.ones_like(ends)).cumsum(0)[:-1]
        feature = torch.div(bag, bags, rounding_mode="floor")
        bag = bag - feature * bags
        if torch.compiler.is_exporting():
            outside = (values < self._least[feature]) | (values > self._most[feature])
            values = torch.where(outside, 0, values)
        if self.method.layout.alternatives:
            return self._look_up_alternatives(values, feature, bag * features + feature, bags)
        return self._look_up_classes(values, feature, bag, offsets)

    def vectors(self, spec: int, ids: Tensor) -> Tensor:
        """Give the vectors of single ids (N,) int64 of one logical table: (N, D)."""
        layout, of_spec = self.method.layout, torch.full_like(ids, spec)
        if not layout.alternatives:
            feature = torch.full_like(ids, self._spec_of_feature.index(spec))
            return self.method.combine(self._read(ids, feature, layout.lookups[spec]), spec)
        table, rows = self.method.route(ids, of_spec)
        found = torch.zeros(ids.shape[0], layout.dims[spec], device=ids.device)
        for number in layout.lookups[spec]:
            at = self.places[number]
            chosen = ((table == number) & (rows >= 0)).nonzero().squeeze(1)
            mine = rows[chosen]
            vectors = self.method.widen(self.stores[at.store](mine + at.first), number, mine)
            found = found.index_copy(0, chosen, vectors.to(found.dtype))  # another one under autocast
        return found

    def _look_up_classes(self, values: Tensor, feature: Tensor, bag: Tensor, offsets: Tensor) -> Tensor:
        bags = offsets.shape[1] - 1
        of_features: dict[int, Tensor] = {}
        commutes = self.method.pooling_commutes
        for number, features in enumerate(self._classes):
            ids, readers, place = values, feature, bag * len(features) + self._in_class[feature]
            if len(self._classes) > 1:
                chosen = (self._class[feature] == number).nonzero().squeeze(1)
                ids, readers, place = ids[chosen], readers[chosen], place[chosen]
            lookups = self.method.layout.lookups[self._spec_of_feature[features[0]]]
            pool = _Pool(place, offsets[features])
            if commutes:
                pooled = [
                    self._read_bags(ids, readers, position, table, pool) for position, table in enumerate(lookups)
                ]
            else:
                parts = self._read(ids, readers, lookups)
                pooled = [pool(self.method.combine(parts, self._spec_of_feature[features[0]]))]
            if (commutes and not self.method.concatenates) or len(pooled) > 1:
                by_feature = [part.view(bags, len(features), part.shape[1]).unbind(1) for part in pooled]
                filled = torch.zeros(bags * len(features), device=values.device).index_fill(0, place, 1.0)
                filled = filled.view(bags, len(features), 1)
                for position, one in enumerate(features):
                    rows = [part[position] for part in by_feature]
                    vector = self.method.combine(rows, self._spec_of_feature[one])
                    # combine may make something of a bag without ids; an empty bag is zero.
                    of_features[one] = vector * filled[:, position]
            elif len(self._classes) == 1:
                return pooled[0].view(bags, len(features) * pooled[0].shape[1])
            else:
                vectors = pooled[0].view(bags, len(features), pooled[0].shape[1])
                of_features |= dict(zip(features, vectors.unbind(1), strict=True))
        return torch.cat([of_features[one] for one in range(len(self.features))], dim=1)

    def _read(self, ids: Tensor, feature: Tensor, lookups: list[int]) -> list[Tensor]:
        """Read the rows of each lookup of ids (N,) of features whose lookups read the same stores as these."""
        parts = []
        for position, table in enumerate(lookups):
            lookup = self._lookup[feature] + position
            rows = self.method.remap(ids, lookup)
            parts.append(self._read_rows(rows, self._base[lookup], self.places[table].store))
        return parts

    def _read_bags(self, ids: Tensor, feature: Tensor, position: int, table: int, pool: "_Pool") -> Tensor:
        """Read and pool the rows of one lookup; whole floats in one go, where no graph is made of it."""
        lookup = self._lookup[feature] + position
        rows = self.method.remap(ids, lookup)
        store = self.stores[self.places[table].store]
        if torch.compiler.is_exporting() or store.held != "fp32" or self.method.drops_ids:
            return pool(self._read_rows(rows, self._base[lookup], self.places[table].store))
        return pool(store.get_buffer("rows"), rows + self._base[lookup])

    def _read_rows(self, rows: Tensor, base: Tensor | int, store: str) -> Tensor:
        if not self.method.drops_ids:
            read: Tensor = self.stores[store](rows + base)
            return read
        return self.stores[store](rows.clamp(min=0) + base) * (rows >= 0).unsqueeze(1)

    def _look_up_alternatives(self, values: Tensor, feature: Tensor, place: Tensor, bags: int) -> Tensor:
        table, rows = self.method.route(values, self._spec[feature])
        widest = max(self._dims)
        pooled = torch.zeros(bags * len(self.features), widest, device=values.device)
        group = self._group[table]
        for here, number in enumerate(self._groups):
            # Ids without a row are in no table.
            chosen = ((group == here) & (rows >= 0)).nonzero().squeeze(1)
            mine = rows[chosen]
            found = self.stores[self.places[number].store](mine + self._first_row[table[chosen]])
            vectors = self.method.widen(found, number, mine)
            vectors = nn.functional.pad(vectors, (0, widest - vectors.shape[1]))
            pooled = pooled.index_add(0, place[chosen], vectors.to(pooled.dtype))  # another one under autocast
        if min(self._dims) == widest:
            return pooled.view(bags, len(self.features) * widest)
        of_features = pooled.view(bags, len(self.features), widest).unbind(1)
        return torch.cat([vector[:, :dim] for vector, dim in zip(of_features, self._dims, strict=True)], dim=1)

    def _check(self, values: Tensor, offsets: Tensor) -> None:
        """Raise where flat ids are not what `forward` takes."""
        features = len(self.features)
        if values.dim() != 1 or values.dtype != torch.int64 or offsets.dtype != torch.int64:
            raise RecembError(
                f"values must be (N,) int64 and offsets (F, B + 1) int64, not {tuple(values.shape)} {values.dtype} and "
                f"{tuple(offsets.shape)} {offsets.dtype}."
            )
        if offsets.dim() != 2 or offsets.shape[0] != features or offsets.shape[1] < 2:
            raise RecembError(
                f"offsets have shape {tuple(offsets.shape)}; these tables need ({features}, B + 1), one row for each "
                f"of {', '.join(self.features)}."
            )
        flat = torch.cat([offsets[:, :-1].flatten(), offsets[-1, -1:]])
        joined = torch.equal(offsets[1:, 0], offsets[:-1, -1])
        if not joined or int(flat[0]) or int(flat[-1]) != len(values) or bool((flat.diff() < 0).any()):
            raise RecembError(
                f"offsets do not cut {len(values)} values into bags: they must rise from 0 to {len(values)}, each "
                "feature's beginning where the one before ends."
            )
        feature = torch.arange(features, device=values.device).repeat_interleave(offsets[:, -1] - offsets[:, 0])
        check_in_range(values, feature, self.features, self._least, self._most)


class _Pool:
    """Adds up what the bags of some features hold.

    Args:
        place: (N,) int64, where in the result each id's bag is: all features of a row, then the next row.
        offsets: (F, B + 1) int64, the bags of these features among all ids.
    """

    def __init__(self, place: Tensor, offsets: Tensor) -> None:
        self._place = place
        self._lengths = offsets.diff(dim=1)

    def __call__(self, vectors: Tensor, rows: Tensor | None = None) -> Tensor:
        """Pool vectors (N, d), or those that `rows` (N,) names of (V, d): (B * F, d)."""
        features, bags = self._lengths.shape
        if torch.compiler.is_exporting():
            return vectors.new_zeros(bags * features, vectors.shape[1]).index_add(0, self._place, vectors)
        # Several times as fast as index_add, which takes a path for any order of the places.
        ends = self._lengths.flatten().cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends])
        rows = torch.arange(vectors.shape[0], device=vectors.device) if rows is None else rows
        pooled = F.embedding_bag(rows, vectors, starts, mode="sum", include_last_offset=True)
        return pooled.view(features, bags, -1).transpose(0, 1).reshape(bags * features, -1)


class ServingModel(nn.Module):
    """A click model over tables that serve: numbers and flat ids in, logits out.

    Cast to another floating type (`half`, `bfloat16`, `double`), its backbone computes and answers in that type; rows
    stay as they are held, and dense features are scaled in float32.

    Args:
        tables: the tables.
        backbone: a `recemb.models.base.Backbone` built for their widths, in evaluation mode from here on.
    """

    def __init__(self, tables: ServingTables, backbone: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.backbone = backbone.eval().requires_grad_(False)

    def forward(self, dense: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        """Predict: dense (B, K) float32 with NaN = missing, and flat ids as `ServingTables` takes them; logits (B,)."""
        vectors = self.tables(values, offsets).to(next(self.backbone.parameters()).dtype)
        logits: Tensor = self.backbone.head(dense, vectors)  # type: ignore[operator]
        return logits


class Widths(nn.Module):
    """Stands in for a collection while a backbone is built that never looks anything up itself."""

    def __init__(self, configs: list[BagConfig]) -> None:
        super().__init__()
        self._configs = configs

    def embedding_bag_configs(self) -> list[BagConfig]:
        """As given."""
        return self._configs


def places(tables: Sequence[PhysicalTable]) -> list[Place]:
    """Say where each physical table lies: those of one width and precision one after the other in one store."""
    used: dict[str, int] = {}
    found = []
    for table in tables:
        store = f"{table.held}x{table.dim}"
        found.append(Place(store, used.get(store, 0)))
        used[store] = found[-1].first + table.rows
    return found


def full_vectors(tables: ServingTables) -> list[Tensor]:
    """Give every id's vector, whatever the method holds for it: (V, D) float32 of each logical table."""
    for spec in tables.specs:
        if spec.raw_ids:
            raise RecembError(
                f"the ids of {spec.name} are raw values, any 64-bit number, so their vectors cannot be listed; only "
                "the precision can be changed (--precision)."
            )
    with torch.no_grad():
        return [
            torch.cat([tables.vectors(index, ids) for ids in torch.arange(spec.num_embeddings).split(_IDS_AT_ONCE)])
            for index, spec in enumerate(tables.specs)
        ]
