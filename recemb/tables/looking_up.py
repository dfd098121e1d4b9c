"""What happens to a batch in a collection: its ids become rows (`Ask`), and what was read of them vectors (`Answer`).

The two are modules of their own so that torchrec's TrainPipelineSparseDist can turn the next batch's ids into rows, and
share them out over the processes, while this batch is still being trained on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recemb.fusing import makes_kernels
from recemb.options import RecembError
from recemb.tables.bags import bag_in_result, offsets_of, pool, without_missing
from recemb.tables.base import CompressedTable, TableSpec
from recemb.tables.lanes import stored_shape
from recemb.tables.lookups import Lookups
from recemb.tables.products import multiplied
from recemb.tables.sharded import ShardedTables
from recemb.tables.storage import FusedTables

# Widths of vectors up to which a GPU's shared memory holds what widening rows takes.
_WIDEST = 256


class Asked(NamedTuple):
    """What a batch asks of the physical tables, and what is needed to make vectors of the answer.

    Attributes:
        rows: (N,) int64 row numbers, lookup after lookup.
        lengths: (L, B) ids of each bag of each lookup; (F, B) where tables are alternatives.
        offsets: (L * B + 1,) where each bag begins in `rows`; None where rows are looked up one by one.
        counts: how many rows each lookup has; None where rows are looked up in bags.
        uniform: every bag holds one id.
        bag: (N,) int64, the bag in the result that each row belongs to; only where tables are alternatives, or rows are
            widened as they are stored.
        lane: (N,) int64, where in its stored row each row lies; only where rows are widened as they are stored, whose
            `rows` are those of the storage.
        bits: (N, ceil(D / 8)) uint8, where the numbers of each row go; as `lane`, and only where the method says so.
        shared: how the processes that share the tables are asked (`ShardedTables.ask`); None in one process.
    """

    rows: Tensor
    lengths: Tensor
    offsets: Tensor | None
    counts: list[int] | None
    uniform: bool
    bag: Tensor | None
    lane: Tensor | None
    bits: Tensor | None
    shared: Any

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until a GPU's stream is done with it."""
        for part in self:
            if isinstance(part, Tensor):
                part.record_stream(stream)


class Ask(nn.Module):
    """Turns ids into what is asked of the tables.

    Args:
        specs: the logical tables.
        lookups: their lookups.
        method: turns ids into rows; stays the collection's own.
        host: of the rows; stays the collection's own.
        device: where batches are.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        lookups: Lookups,
        method: CompressedTable,
        host: nn.Module,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        self._in_layout: Tensor
        self._least: Tensor
        self._most: Tensor
        self._permutation: Tensor
        self._spec: Tensor
        self._place: Tensor
        self._reader: Tensor
        self._each: Tensor
        self._lookups = lookups
        # In a tuple, because a pipeline runs only what has no parameters ahead; what is read of them, does not change.
        self._of = (method, host)
        in_layout = [one.in_layout for one in lookups.ordered]
        least, most = id_ranges(specs)
        tables = range(len(method.layout.tables))
        for name, numbers in (
            ("_in_layout", in_layout),
            ("_least", [least[index] for index in lookups.spec_of_feature]),
            ("_most", [most[index] for index in lookups.spec_of_feature]),
            ("_permutation", [one.reader for one in lookups.ordered]),
            ("_spec", lookups.spec_of_feature),
            ("_reader", [one.reader for one in lookups.ordered]),
            ("_each", range(len(lookups.ordered))),
        ):
            # Derived from the specs, so not part of the saved state.
            self.register_buffer(name, torch.tensor(numbers, device=device), persistent=False)
        place = [in_layout.index(table) for table in tables] if method.layout.alternatives else []
        # Small numbers are sorted in fewer passes; as a buffer they are of a type that processes can broadcast.
        self._sorted_as = torch.int16 if len(place) < 2**15 else torch.int32
        self.register_buffer("_place", torch.tensor(place, dtype=torch.int32, device=device), persistent=False)
        self._widens = widens_stored(lookups, method, host, device)

    def forward(self, features: KeyedJaggedTensor) -> Asked:
        """Turn a batch's ids, feature by feature in any order, into row numbers."""
        method, _ = self._of
        ids, lengths = self._ordered(features)
        ids, uniform = self._checked(ids, lengths)
        if method.layout.alternatives:
            return self._among_alternatives(ids.flatten(), lengths, uniform)
        if method.gates:
            return self._asked(ids.flatten(), lengths, uniform)
        if not self._lookups.one_each:
            if uniform:
                ids, lengths = ids[self._permutation], lengths[self._permutation]
            else:
                lengths, ids, _ = torch.ops.fbgemm.permute_2D_sparse_data(self._permutation.int(), lengths, ids)
        # Which lookup each id belongs to: a column that broadcasts, or one entry an id.
        lookup = self._in_layout.unsqueeze(1) if uniform else _for_each_id(self._in_layout, lengths, ids)
        rows = method.remap(ids, lookup)
        if method.drops_ids:
            rows, lengths = without_missing(rows, lengths)
            uniform = False
        return self._asked(rows.flatten(), lengths, uniform)

    def _among_alternatives(self, ids: Tensor, lengths: Tensor, uniform: bool) -> Asked:
        """Let every id (N,) read the one table that the method chooses for it; rows are ordered by table."""
        method, host = self._of
        if uniform:
            bag, spec = self._bags(lengths), self._spec.repeat_interleave(lengths.shape[1])
        else:
            bag, spec = bag_in_result(lengths), _for_each_id(self._spec, lengths, ids)
        table, rows = method.route(ids, spec)
        if method.drops_ids:
            kept = (rows >= 0).nonzero().squeeze(1)
            table, rows, bag = table[kept], rows[kept], bag[kept]
        place, order = torch.sort(self._place.to(self._sorted_as)[table], stable=True)
        ends = torch.searchsorted(place, self._each.to(place.dtype), right=True)
        counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
        rows, bag = rows[order], bag[order]
        lane = bits = None
        if self._widens and isinstance(host, FusedTables):
            bits = method.bits(rows, table[order])
            rows, lane = host.split(rows, place.int())
        return Asked(rows, lengths, None, counts, False, bag, lane, bits, self._shared(rows, None, counts))

    def _asked(self, rows: Tensor, lengths: Tensor, uniform: bool) -> Asked:
        _, host = self._of
        offsets = counts = bag = lane = None
        if not self._lookups.by_value:
            offsets = torch.arange(rows.numel() + 1, device=rows.device) if uniform else offsets_of(lengths)
        else:
            counts = [lengths.shape[1]] * len(lengths) if uniform else lengths.sum(dim=1).tolist()
        if self._widens and isinstance(host, FusedTables):
            bag = self._bags(lengths, self._reader)
            if uniform:
                rows, lane = host.split(rows.view(lengths.shape), self._each.unsqueeze(1))
            else:
                bag = bag.repeat_interleave(lengths.flatten(), output_size=len(rows))
                rows, lane = host.split(rows, _for_each_id(self._each, lengths, rows))
        return Asked(rows, lengths, offsets, counts, uniform, bag, lane, None, self._shared(rows, offsets, counts))

    def _shared(self, rows: Tensor, offsets: Tensor | None, counts: list[int] | None) -> Any:
        _, host = self._of
        return host.ask(rows, offsets, counts) if isinstance(host, ShardedTables) else None

    def _bags(self, lengths: Tensor, readers: Tensor | None = None) -> Tensor:
        """Number the bags (L * B,) in the result of these readers, features one after the other if not given."""
        features, bags = len(self._lookups.features), lengths.shape[1]
        readers = torch.arange(features, device=lengths.device) if readers is None else readers
        return (torch.arange(bags, device=lengths.device) * features + readers.unsqueeze(1)).flatten()

    def _ordered(self, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Bring the features into the collection's order: ids (N,) and lengths (F, B)."""
        keys, wanted = list(features.keys()), self._lookups.features
        if features.weights_or_none() is not None:
            raise RecembError("the batch has per-id weights, which compressed tables do not take; leave them out.")
        if features.variable_stride_per_key():
            raise RecembError("the batch has another number of bags for each feature; all must have the same.")
        if features.values().is_floating_point():
            raise RecembError(f"ids must be integers, and the batch holds {features.values().dtype}.")
        if keys != wanted:
            missing = [name for name in wanted if name not in keys]
            if missing:
                raise RecembError(
                    f"the batch lacks feature {missing[0]!r}; it holds {', '.join(keys)}, "
                    f"and the collection needs {', '.join(wanted)}."
                )
            features = features.permute([keys.index(name) for name in wanted])
        return features.values(), features.lengths().view(len(wanted), -1)

    def _checked(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, bool]:
        """Check the ids (N,); give them as (F, B), and True, where every bag holds one."""
        names = self._lookups.features
        if self._lookups.single:
            if ids.numel() == lengths.numel() and ids.numel():
                # The usual case, told by two numbers a feature, for which a device is waited for once.
                by_feature = ids.view(lengths.shape)
                low, high = torch.aminmax(by_feature, dim=1)
                outside = ((low < self._least) | (high > self._most)).any()
                fewest, longest = torch.aminmax(lengths)
                if not bool(outside | (fewest != 1) | (longest != 1)):
                    return by_feature, True
            if lengths.numel() and int(lengths.max()) > 1:
                feature = names[int(lengths.amax(dim=1).argmax())]
                raise RecembError(
                    f"feature {feature}: a bag holds {int(lengths.max())} ids, but its table was made for one at most "
                    "(max_length=1); make the TableSpec with max_length=None."
                )
        if ids.numel():
            check_in_range(ids, torch.repeat_interleave(lengths.sum(dim=1)), names, self._least, self._most)
        return ids, False


class Answer(nn.Module):
    """Makes vectors of the rows that were asked for.

    Args:
        lookups: of the collection.
        method: combines rows, or masks them; stays the collection's own.
        host: of the rows; stays the collection's own.
        device: where batches are.
    """

    def __init__(self, lookups: Lookups, method: CompressedTable, host: nn.Module, device: torch.device | None) -> None:
        super().__init__()
        self._spec: Tensor
        self._lookups = lookups
        self._of = (method, host)  # in a tuple, so that they are not modules of this one too
        self.widening = widening_of(lookups, method) if widens_stored(lookups, method, host, device) else None
        self.register_buffer("_spec", torch.tensor(lookups.spec_of_feature, device=device), persistent=False)

    def forward(self, found: Any, asked: Asked) -> KeyedTensor:
        """Combine and pool.

        Args:
            found: of each lookup side by side the sums of the rows of each bag, (B, sum of widths); or, where rows are
                looked up one by one, a list of those of each lookup (n, d), or what `FusedTables.stored` gives; or what
                processes found together.
            asked: what they are.

        Returns:
            KeyedTensor with (B, D) for each feature; an empty bag gives zeros.
        """
        method, host = self._of
        if isinstance(host, ShardedTables):
            found = host.in_order(found, asked.shared)
        if method.gates:
            vectors = self._of_gated(found, asked)
        elif self.widening is not None:
            vectors = self._of_stored(found, asked)
        elif isinstance(found, Tensor):
            vectors = self._of_bags(found, asked)
        elif method.layout.alternatives:
            vectors = self._of_alternatives(found, asked)
        else:
            vectors = self._of_values(found, asked)
        return KeyedTensor(keys=self._lookups.features, length_per_key=self._lookups.dims, values=vectors)

    def _of_bags(self, pooled: Tensor, asked: Asked) -> Tensor:
        """Combine pooled rows (B, sum of widths)."""
        method, _ = self._of
        plan = self._lookups
        if not plan.combines:
            return pooled
        if method.multiplies:
            return multiplied(pooled, plan.part_widths, plan.parts_of_run)
        parts = pooled.split(plan.part_widths, dim=1)
        vectors = []
        for run, of_run in zip(plan.runs, plan.parts_of_run, strict=True):
            vector = method.combine([parts[part] for part in of_run], plan.spec_of_feature[run.start])
            if not asked.uniform:
                # combine may make something of a bag without ids; an empty bag is zero.
                filled = asked.lengths[[plan.places[feature][0] for feature in run]] > 0
                vector = (vector.view(-1, len(run), vector.shape[1] // len(run)) * filled.T.unsqueeze(2)).flatten(1)
            vectors.append(vector)
        return torch.cat(vectors, dim=1) if len(vectors) > 1 else vectors[0]

    def _of_values(self, parts: list[Tensor], asked: Asked) -> Tensor:
        """Combine the rows of each lookup, then pool."""
        method, _ = self._of
        vectors = []
        for spec, places in zip(self._lookups.spec_of_feature, self._lookups.places, strict=True):
            vector = method.combine([parts[place] for place in places], spec)
            vectors.append(vector if asked.uniform else pool(vector, asked.lengths[places[0]]))
        return torch.cat(vectors, dim=1)

    def _of_stored(self, stored: Tensor, asked: Asked) -> Tensor:
        """Widen the rows of all lookups, and put them where they belong."""
        method, _ = self._of
        features, bags = len(self._lookups.features), asked.lengths.shape[1]
        matrices = [found for table in self._lookups.tables if (found := method.matrix(table)) is not None]
        assert self.widening is not None
        assert asked.counts is not None
        assert asked.bag is not None
        of_rows = asked.lane, asked.bits, asked.bag
        vectors: Tensor = self.widening(stored, asked.counts, *of_rows, matrices, bags * features)
        return vectors.view(bags, features * self._lookups.dims[0])

    def _of_alternatives(self, parts: list[Tensor], asked: Asked) -> Tensor:
        """Widen the rows of each table, then pool."""
        method, _ = self._of
        features, bags = asked.lengths.shape
        dims = self._lookups.dims
        widest = max(dims)
        assert asked.counts is not None
        assert asked.bag is not None
        tables = [one.in_layout for one in self._lookups.ordered]
        of_tables = zip(parts, tables, asked.rows.split(asked.counts), strict=True)
        vectors = [F.pad(vector, (0, widest - vector.shape[1])) for vector in (method.widen(*one) for one in of_tables)]
        joined = torch.cat(vectors)  # under autocast the vectors of some tables are of another type
        pooled = joined.new_zeros(bags * features, widest).index_add(0, asked.bag, joined)
        if min(dims) == widest:
            return pooled.view(bags, features * widest)
        of_features = pooled.view(bags, features, widest).unbind(1)
        return torch.cat([vector[:, :dim] for vector, dim in zip(of_features, dims, strict=True)], dim=1)

    def _of_gated(self, found: Tensor | list[Tensor], asked: Asked) -> Tensor:
        """Let the vectors of single ids pass the method's gate, then pool; every id's row is its own."""
        method, _ = self._of
        features, bags = asked.lengths.shape
        width = self._lookups.dims[0]
        if isinstance(found, Tensor):  # looked up in bags of at most one id; an empty one is zero, whatever its id
            ids = asked.rows
            if not asked.uniform:
                ids = ids.new_zeros(features * bags).masked_scatter(asked.lengths.flatten() > 0, ids)
            return method.gate(found.view(bags, features, width), ids.view(features, bags).T, self._spec).flatten(1)
        if asked.uniform:
            vectors = torch.cat(found).view(features, bags, width)
            vectors = method.gate(vectors, asked.rows.view(features, bags), self._spec.unsqueeze(1))
            return vectors.transpose(0, 1).flatten(1)
        vectors = torch.cat(found)
        vectors = method.gate(vectors, asked.rows, _for_each_id(self._spec, asked.lengths, asked.rows))
        pooled = vectors.new_zeros(bags * features, width).index_add(0, bag_in_result(asked.lengths), vectors)
        return pooled.view(bags, features * width)


def widens_stored(lookups: Lookups, method: CompressedTable, host: nn.Module, device: torch.device | None) -> bool:
    """Whether rows are widened as they are stored, by a kernel that there is for GPUs."""
    linear = lookups.by_value and method.widens_linearly and not method.gates and len(set(lookups.dims)) == 1
    fits = linear and lookups.dims[0] <= _WIDEST
    return fits and isinstance(host, FusedTables) and device is not None and makes_kernels(device)


def widening_of(lookups: Lookups, method: CompressedTable) -> Any:
    """Make what widens rows as they are stored."""
    from recemb.tables.widening import Widened, Widening  # Triton is there where CUDA is

    made = []
    for index in lookups.tables:
        table, matrix = method.layout.tables[index], method.matrix(index)
        made.append(Widened(table.dim, stored_shape(table).dim, matrix is not None))
    return Widening(made, lookups.dims[0], adds=not lookups.single)


def _for_each_id(numbers: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
    """Repeat each number (L,) for every id (N,) of the bags of lengths (L, B)."""
    return numbers.repeat_interleave(lengths.sum(dim=1), output_size=ids.numel())


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
