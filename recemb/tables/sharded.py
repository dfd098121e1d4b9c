"""Hosts for physical rows that several processes train together; the third and fourth beside `recemb.tables.storage`.

- `ShardedTables` keeps them in torchrec's collections, which DistributedModelParallel spreads over the processes.
- `ReplicatedTables` keeps all of them in every process as ordinary parameters; an ordinary optimizer that does what
  FBGEMM's does updates them with gradients that the processes have averaged.

Both store rows as `FusedTables` does, in widths that kernels take, so that one process and many learn the same; and
both name and shape what they save as the other hosts do, so that checkpoints say nothing of how many processes wrote
them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.autograd import kernel_mode, unscaled
from recemb.tables.base import PhysicalTable
from recemb.tables.initial import init_uniform_
from recemb.tables.lanes import lanes_of, of_each, pick_lanes, plain_rows, split_lanes, stored_shape
from recemb.tables.plain import PlainTables
from recemb.tables.shards import ShardPart, in_pieces, shard_parts
from recemb.tables.storage import FusedOptimizer


class _TogetherTables(nn.Module):
    """What both hosts share: rows in stored rows, and a state that is written in the shapes of the physical tables.

    Args:
        tables: the physical tables.
        lookup_tables: for each lookup the index of the table it reads.
        optimizer: what updates the rows.
        device: where the weights live, once there are any.
        by_value: rows are looked up one by one (`values`) instead of in bags (`forward`).
    """

    def __init__(
        self,
        tables: Sequence[PhysicalTable],
        lookup_tables: Sequence[int],
        optimizer: FusedOptimizer,
        device: torch.device | None = None,
        *,
        by_value: bool = False,
    ) -> None:
        super().__init__()
        self._lanes: Tensor
        self.widths = [tables[index].dim for index in lookup_tables]
        self.tables = {table.name: table for table in tables}
        self.fused_optimizer = optimizer
        self._packs = any(lanes_of(table.dim) > 1 for table in tables)
        lanes = torch.tensor([lanes_of(width) for width in self.widths], device=device)
        self.register_buffer("_lanes", lanes, persistent=False)
        self._hold([stored_shape(table) for table in tables], lookup_tables, by_value)

    def _hold(self, stored: list[PhysicalTable], lookup_tables: Sequence[int], by_value: bool) -> None:
        """Make what holds the tables as they are stored."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """Give the weights of the tables as they are saved, (rows, dim) by name, each process what it holds."""
        raise NotImplementedError

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Give the accumulators as `FusedTables.optimizer_tensors` does, each process what it holds."""
        raise NotImplementedError

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Give the weights under the names that every host has for them."""
        found = {} if destination is None else destination
        for name, weight in self.weights().items():
            found[f"{prefix}embedding_bags.{name}.weight"] = weight
        return found

    def _split(self, rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Turn row numbers (N,), so many of each lookup, into those of stored rows, and the lane of each in its row."""
        if not self._packs:
            return rows, None
        lane, rows = split_lanes(rows, of_each(self._lanes, counts))
        return rows, lane

    def _pick(self, stored: list[Tensor], lane: Tensor | None) -> list[Tensor]:
        """Take the rows (n, d) out of the stored rows (n, w) of each lookup."""
        lanes = [None] * len(stored) if lane is None else lane.split([len(one) for one in stored])
        return [pick_lanes(*parts) for parts in zip(stored, self.widths, lanes, strict=True)]

    def stored_bytes(self) -> int:
        """Bytes the rows take in memory once, with the padding of stored rows."""
        return sum(4 * stored.rows * stored.dim for stored in map(stored_shape, self.tables.values()))

    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's accumulators once."""
        if self.fused_optimizer.name == "sgd":
            return 0
        if self.fused_optimizer.name == "adagrad":
            return self.stored_bytes()
        return sum(4 * stored_shape(table).rows for table in self.tables.values())


class ReplicatedTables(_TogetherTables):
    """Physical tables that every process holds whole; takes what `_TogetherTables` does."""

    def _hold(self, stored: list[PhysicalTable], lookup_tables: Sequence[int], by_value: bool) -> None:
        self._stored = PlainTables(stored, lookup_tables, self._lanes.device)
        self.optimizer = _dense_optimizer(self.fused_optimizer, list(self._stored.parameters()))

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Sum the rows of every bag; same arguments and result as `PlainTables.forward`."""
        return cast(Tensor, self._stored(rows, offsets))

    def values(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Look rows up one by one; same arguments and result as `PlainTables.values`."""
        rows, lane = self._split(rows, counts)
        return self._pick(self._stored.values(rows, counts), lane)

    def read(self, name: str) -> Tensor:
        """Give the weight (rows, dim) of a table, a view of what is trained."""
        return plain_rows(self._stored.read(name).detach(), self.tables[name])

    def write(self, name: str, weight: Tensor) -> None:
        """Copy a weight (rows, dim) into a table."""
        self.read(name).copy_(weight)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the rows."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def weights(self) -> dict[str, Tensor]:
        """Give the weights of the tables (rows, dim) by name."""
        return {name: self.read(name) for name in self.tables}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Give the accumulators as `FusedTables.optimizer_tensors` does."""
        found = {}
        for name, table in self.tables.items():
            total = self.optimizer.state[self._stored.read(name)].get("sum")
            if total is not None:
                wide = self.fused_optimizer.name == "adagrad"
                found[f"embedding_bags.{name}.momentum1"] = plain_rows(total, table) if wide else total.view(-1)
        return found

    def bytes_here(self) -> int:
        """Bytes of rows and accumulators that this process holds: all of them."""
        return self.stored_bytes() + self.optimizer_bytes()


def _dense_optimizer(optimizer: FusedOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the ordinary optimizer that does what FBGEMM's of this name does."""
    if optimizer.name == "sgd":
        return torch.optim.SGD(parameters, lr=optimizer.lr)
    if optimizer.name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=optimizer.lr, eps=optimizer.eps)
    made: torch.optim.Optimizer = RowWiseAdagrad(parameters, lr=optimizer.lr, eps=optimizer.eps)
    return made


class ShardedTables(_TogetherTables):
    """Physical tables that torchrec spreads over processes; its fused kernels update them in the backward pass.

    They take no memory until DistributedModelParallel has sharded `collections` and `sharded` was called; takes what
    `_TogetherTables` does.

    Attributes:
        collections: torchrec's collections: one of bags, or one of embeddings for each stored width.
    """

    def _hold(self, stored: list[PhysicalTable], lookup_tables: Sequence[int], by_value: bool) -> None:
        self._by_value = by_value
        # A key is never met with other lookups: a sharded collection remembers the order of its first batch.
        self._keys = [f"lookup{number}" for number in range(len(lookup_tables))]
        readers = [
            [self._keys[lookup] for lookup, table in enumerate(lookup_tables) if table == index]
            for index in range(len(stored))
        ]
        # torchrec keeps one width in a collection of embeddings.
        self._groups = [list(range(len(lookup_tables)))]
        if by_value:
            widths = [stored[index].dim for index in lookup_tables]
            self._groups = [[i for i, one in enumerate(widths) if one == width] for width in sorted(set(widths))]
        self.collections = nn.ModuleList()
        for group in self._groups:
            indices = list(dict.fromkeys(lookup_tables[lookup] for lookup in group))
            self.collections.append(_collection([(stored[i], readers[i]) for i in indices], by_value))
        self._held_rows: dict[str, list[ShardPart]] = {}
        self._weights: dict[str, ShardedTensor] = {}
        self._states: dict[str, ShardedTensor] = {}
        self._held = 0
        self._trains = True
        self._scaler: GradScaler | None = None

    def requires_grad_(self, requires_grad: bool = True) -> "ShardedTables":
        """Freeze the rows, or let them be trained again: torchrec's weights are no leaves and have no switch."""
        self._trains = requires_grad
        return self

    def unscale_with(self, scaler: GradScaler | None) -> None:
        """Divide the scale of a scaler out of gradients before they update rows; None for no scaler."""
        self._scaler = scaler

    def _apply(self, fn: Any, recurse: bool = True) -> "ShardedTables":
        """Leave the rows alone, which have no memory yet or are where they were sharded to."""
        return super()._apply(fn, recurse=False)

    def sharded(self) -> None:
        """Take note of what this process holds, once the collections are sharded."""
        for collection in self.collections:
            for name, weight in collection.state_dict().items():
                self._held += sum(shard.tensor.nbytes for shard in weight.local_shards())
                table = self.tables[_table_of(name)]
                parts = shard_parts(weight, table)
                self._held_rows[table.name] = [part for part in parts if part.values is not None]
                self._weights[table.name] = in_pieces(parts, [table.rows, table.dim], weight)
            optimizer = cast(Any, collection).fused_optimizer
            for name, state in optimizer.state_dict()["state"].items():
                table = self.tables[_table_of(name)]
                for own in state.values():
                    self._held += sum(shard.tensor.nbytes for shard in own.local_shards())
                    size = [table.rows, table.dim] if len(own.size()) > 1 else list(own.size())
                    name = f"embedding_bags.{table.name}.momentum1"
                    self._states[name] = in_pieces(shard_parts(own, table), size, own)

    def start(self, table: PhysicalTable, seed: int) -> None:
        """Give the rows of a table that are held here the values that training starts from."""
        for where, values in self._held_rows.get(table.name, ()):
            assert values is not None
            row, column = where.shard_offsets
            init_uniform_(values, table.init_std, table.name, seed, size=(table.rows, table.dim), at=(row, column))

    def ask(self, rows: Tensor, offsets: Tensor | None, counts: Sequence[int] | None) -> "Shared":
        """Write what is looked up as the collections take it; `forward` and then `in_order` make the result of it.

        Args:
            rows: (N,) int64 row numbers, lookup after lookup.
            offsets: (L * B + 1,) int64 where each bag begins in `rows`; None where rows are looked up one by one.
            counts: how many rows each lookup has; None where rows are looked up in bags.
        """
        if offsets is not None:
            bags = (offsets.numel() - 1) // len(self._keys)
            return Shared([KeyedJaggedTensor(self._keys, rows, lengths=offsets.diff(), stride=bags)], None)
        assert counts is not None
        rows, lane = self._split(rows, counts)
        parts = rows.split(list(counts))
        features = [
            KeyedJaggedTensor(
                keys=[self._keys[lookup] for lookup in group],
                values=torch.cat([parts[lookup] for lookup in group]),
                lengths=torch.tensor([counts[lookup] for lookup in group], device=rows.device),
                stride=1,
            )
            for group in self._groups
        ]
        return Shared(features, lane)

    def forward(self, asked: "Shared") -> list[Any]:
        """Give what each collection finds."""
        with kernel_mode(self._trains):
            return [collection(asked.features[number]) for number, collection in enumerate(self.collections)]

    def in_order(self, found: list[Any], asked: "Shared") -> Tensor | list[Tensor]:
        """Put what the collections found in the order of the lookups.

        Returns:
            What `PlainTables.forward` gives, or, where rows are looked up one by one, `PlainTables.values`.
        """
        if not self._by_value:
            (pooled,) = found
            if pooled.keys() == self._keys:
                return unscaled(pooled.values(), self._scaler)
            by_key = pooled.to_dict()  # sharded collections have an order of their own
            return unscaled(torch.cat([by_key[key] for key in self._keys], dim=1), self._scaler)
        stored: dict[int, Tensor] = {}
        for group, by_key in zip(self._groups, found, strict=True):
            for lookup in group:
                stored[lookup] = unscaled(by_key[self._keys[lookup]].values(), self._scaler)
        return self._pick([stored[lookup] for lookup in range(len(self._keys))], asked.lane)

    def read(self, name: str) -> Tensor:
        """Gather the weight (rows, dim) of a table, a copy; all processes must call it together."""
        table = self.tables[name]
        whole = torch.zeros(table.rows, table.dim, device=self._lanes.device)
        for part, held in self._pairs(name, whole):
            part.copy_(held)
        dist.all_reduce(whole)
        return whole

    def write(self, name: str, weight: Tensor) -> None:
        """Copy what is held here of a weight (rows, dim) into a table."""
        for part, held in self._pairs(name, weight):
            held.copy_(part)

    def _pairs(self, name: str, whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pair the parts of a whole weight (rows, dim) with what is held of them here."""
        for where, values in self._held_rows[name]:
            assert values is not None
            (row, column), (rows, width) = where.shard_offsets, where.shard_sizes
            yield whole[row : row + rows, column : column + width], values

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the rows."""
        for collection in self.collections:
            optimizer = cast(Any, collection).fused_optimizer
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()  # which updates no weight: it hands the kernels their rate

    def weights(self) -> dict[str, Tensor]:
        """Give the weights of the tables by name, each sharded as it is held."""
        return dict(self._weights)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Give the accumulators by name, sharded, those that are partly held here."""
        return dict(self._states)

    def bytes_here(self) -> int:
        """Bytes of rows and accumulators that this process holds."""
        return self._held


class Shared(NamedTuple):
    """What processes that share tables ask of each other.

    Attributes:
        features: for each collection the stored rows that are looked up.
        lane: (N,) where in its stored row each row lies, lookup after lookup; None if stored rows are rows.
    """

    features: list[KeyedJaggedTensor]
    lane: Tensor | None


def _collection(tables: list[tuple[PhysicalTable, list[str]]], by_value: bool) -> nn.Module:
    """Make torchrec's collection of stored tables and the lookups that read them, without memory."""
    nowhere = torch.device("meta")
    of_tables: list[dict[str, Any]] = [
        {
            "name": table.name,
            "num_embeddings": table.rows,
            "embedding_dim": table.dim,
            "feature_names": readers,
            "init_fn": _leave,  # the rows are filled by `start`, the same for any sharding
        }
        for table, readers in tables
    ]
    if by_value:
        return EmbeddingCollection(tables=[EmbeddingConfig(**one) for one in of_tables], device=nowhere)
    return EmbeddingBagCollection(tables=[EmbeddingBagConfig(**one) for one in of_tables], device=nowhere)


def _leave(weight: Tensor) -> Tensor:
    return weight


def _table_of(name: str) -> str:
    """Take the table's name out of `embedding_bags.NAME.weight` or `embeddings.NAME.weight`."""
    return name.split(".", 1)[1].rsplit(".", 1)[0]
