"""Hosts for physical rows: the large memory of a collection, and the lookup in it.

Both hosts take the same row numbers, return the same vectors and name their weights alike
(`embedding_bags.<table>.weight`, as torchrec does), so weights move between them by `load_state_dict`:

- `PlainTables` keeps ordinary parameters: any dtype, autograd, gradcheck, no kernels needed.
- `FusedTables` keeps FBGEMM's batched tables, whose backward pass applies the optimizer to the touched rows.

A lookup reads one physical table; several lookups may read the same one. Bags are pooled by sum.

`FusedTables` keeps rows of widths that kernels do not take in wider ones (`recemb.tables.lanes`). Its weights are views
of that storage in the shape of the plain ones.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from recemb.options import RecembError
from recemb.tables.base import PhysicalTable
from recemb.tables.lanes import find_stored, lanes_of, of_each, pick_lanes, plain_rows, stored_shape


class FusedOptimizer(NamedTuple):
    """The optimizer that FBGEMM applies to table rows inside the backward pass.

    Attributes:
        name: `rowwise_adagrad` (one accumulator a row), `adagrad` (one a weight) or `sgd`.
        lr: learning rate.
        eps: added to the root of Adagrad's accumulators.

    FBGEMM's CPU kernels take a weight decay and ignore it, so none is offered.
    """

    name: str = "rowwise_adagrad"
    lr: float = 0.02
    eps: float = 1e-4

    def kwargs(self) -> dict[str, Any]:
        """Write it as arguments of FBGEMM's batched tables."""
        if self.name not in _FUSED_OPTIMIZERS:
            raise RecembError(
                f"there is no table optimizer {self.name!r}. Known: {', '.join(_FUSED_OPTIMIZERS)} "
                "(FBGEMM's CPU kernels have no others)."
            )
        arguments: dict[str, Any] = {"optimizer": _FUSED_OPTIMIZERS[self.name], "learning_rate": self.lr}
        if self.name != "sgd":
            arguments["eps"] = self.eps
        return arguments


_AT_ONCE_ON = ("cuda",)
_AT_ONCE_WITH = ("rowwise_adagrad", "sgd")
_FUSED_OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


class _Bag(nn.Module):
    """Gives a weight the name that torchrec gives it."""

    def __init__(self, weight: Tensor, requires_grad: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=requires_grad)


class _ViewBag(_Bag):
    """A bag whose weight is a view of a kernel's memory: it is copied into, never replaced."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight, requires_grad=False)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        copying = {**local_metadata, "assign_to_params_buffers": False}
        super()._load_from_state_dict(state_dict, prefix, copying, *rest)


class PlainTables(nn.Module):
    """Physical tables as ordinary parameters.

    Args:
        tables: the physical tables.
        lookup_tables: for each lookup the index of the table it reads.
        device: where the weights live.
    """

    def __init__(
        self, tables: Sequence[PhysicalTable], lookup_tables: Sequence[int], device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.widths = [tables[index].dim for index in lookup_tables]
        self._names = [tables[index].name for index in lookup_tables]
        self.embedding_bags = nn.ModuleDict(
            {
                table.name: _Bag(torch.empty(table.rows, table.dim, device=device), requires_grad=True)
                for table in tables
            }
        )

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Sum the rows of every bag.

        Args:
            rows: (N,) int64 row numbers, lookup after lookup.
            offsets: (L * B + 1,) int64 where each bag begins in `rows`.

        Returns:
            (B, sum of the lookups' `widths`).
        """
        bags = (offsets.numel() - 1) // len(self._names)
        pooled = []
        for index, name in enumerate(self._names):
            part = offsets[index * bags : (index + 1) * bags + 1]
            weight = cast(_Bag, self.embedding_bags[name]).weight
            values = rows[part[0] : part[-1]]
            pooled.append(F.embedding_bag(values, weight, part - part[0], mode="sum", include_last_offset=True))
        return torch.cat(pooled, dim=1)

    def values(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Look rows up one by one.

        Args:
            rows: (N,) int64 row numbers, lookup after lookup.
            counts: how many of them each lookup has.

        Returns:
            For each lookup (n, d).
        """
        parts = zip(rows.split(list(counts)), self._names, strict=True)
        return [F.embedding(part, cast(_Bag, self.embedding_bags[name]).weight) for part, name in parts]

    def read(self, name: str) -> Tensor:
        """Give the weight (rows, dim) of a table."""
        return self.get_parameter(f"embedding_bags.{name}.weight")

    def write(self, name: str, weight: Tensor) -> None:
        """Copy a weight (rows, dim) into a table."""
        self.read(name).copy_(weight)

    def stored_bytes(self) -> int:
        """Bytes the rows take in memory."""
        return sum(weight.nbytes for weight in self.parameters())

    def optimizer_bytes(self) -> int:
        """Bytes of optimizer state held beside the rows: none, whoever trains the parameters keeps it."""
        return 0


class FusedTables(nn.Module):
    """Physical tables in FBGEMM's batched form, updated inside the backward pass.

    The batched tables are called directly: on 26 tables torchrec's unsharded FusedEmbeddingBagCollection spends more
    time splitting and joining its input than the lookup itself takes, and narrows row numbers to 32 bits.

    Args:
        tables: the physical tables.
        lookup_tables: for each lookup the index of the table it reads, those of one table side by side; `by_value`,
            those of one width.
        optimizer: what updates the rows.
        device: where the weights live.
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
        self._first: Tensor
        self._lanes: Tensor
        device = device or torch.device("cpu")
        self._arguments = (tuple(tables), tuple(lookup_tables), optimizer, device, by_value)
        on_gpu = device.type == "cuda"
        where = (
            (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if on_gpu else (EmbeddingLocation.HOST, ComputeDevice.CPU)
        )
        # The kernel's own table that holds each physical one: those of one width share one where rows are looked up one
        # by one, which pads the fewest.
        order = sorted({table.dim for table in tables}) if by_value else list(dict.fromkeys(lookup_tables))
        kernels = [order.index(table.dim if by_value else index) for index, table in enumerate(tables)]
        lanes = [lanes_of(table.dim) for table in tables]
        # How long each of the kernel's tables is, and where in it each physical one begins.
        stored = [(0, 0)] * (max(kernels) + 1)
        first = []
        for table, kernel in zip(tables, kernels, strict=True):
            first.append(stored[kernel][0])
            rows_before, shape = first[-1], stored_shape(table)
            stored[kernel] = (rows_before + shape.rows, shape.dim)
        self.widths = [tables[index].dim for index in lookup_tables]
        kernel_of_lookup = [kernels[index] for index in lookup_tables]
        self._lookups_of_kernel = [
            [lookup for lookup, one in enumerate(kernel_of_lookup) if one == kernel] for kernel in range(len(stored))
        ]
        self._stored_widths = [width for _, width in stored]
        self._packs = max(lanes) > 1
        # Rows of different widths that are looked up one by one are differently many. On GPUs one kernel takes them; on
        # the CPU that is six times as slow as a kernel for each width.
        self._at_once = by_value and device.type in _AT_ONCE_ON and optimizer.name in _AT_ONCE_WITH
        calls = [[shape] for shape in stored] if by_value and not self._at_once else [stored]
        # In a list, so that their flat weights are not parameters beside the tables' own names.
        self._batched = [
            SplitTableBatchedEmbeddingBagsCodegen(
                [(*shape, *where) for shape in shapes],
                feature_table_map=list(range(len(shapes))) if by_value else kernel_of_lookup,
                device=device,
                bounds_check_mode=BoundsCheckMode.NONE,  # the collection has checked the ids, and says which is wrong
                **optimizer.kwargs(),
            )
            for shapes in calls
        ]
        weights = [weight for batched in self._batched for weight in batched.split_embedding_weights()]
        self.embedding_bags = nn.ModuleDict(
            {
                table.name: _ViewBag(plain_rows(weights[kernel][start:], table))
                for table, kernel, start in zip(tables, kernels, first, strict=True)
            }
        )
        # For each table the kernel's table that holds it, and the stored row that it begins at.
        self._places = {table: (kernel, start) for table, kernel, start in zip(tables, kernels, first, strict=True)}
        for name, numbers in (("_first", first), ("_lanes", lanes)):
            of_lookups = torch.tensor([numbers[index] for index in lookup_tables], device=device)
            self.register_buffer(name, of_lookups, persistent=False)

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Sum the rows of every bag; same arguments and result as `PlainTables.forward`."""
        return self._batched[0](rows, offsets)

    def values(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Look rows up one by one; same arguments and result as `PlainTables.values`."""
        if not len(rows):
            return [torch.zeros(0, width, device=rows.device) for width in self.widths]
        rows, lane = self._stored(rows, of_each(self._lanes, counts), of_each(self._first, counts))
        of_kernels = self._in_kernels(counts)
        parts = self._flat(rows, of_kernels)
        if self._at_once:
            sizes = [count * width for count, width in zip(of_kernels, self._stored_widths, strict=True)]
            parts = list(parts[0].split(sizes))
        found: list[Tensor] = []
        lanes = [None] * len(parts) if lane is None else lane.split(of_kernels)
        for part, width, here, one in zip(parts, self._stored_widths, self._lookups_of_kernel, lanes, strict=True):
            picked = pick_lanes(part.view(-1, width), self.widths[here[0]], one)
            found += picked.split([counts[index] for index in here])
        return found

    def split(self, rows: Tensor, lookup: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn row numbers of the lookups' tables into those of stored rows.

        Args:
            rows: (N,) or (L, B) int64.
            lookup: int64, the lookup of each; of a shape that broadcasts against `rows`.

        Returns:
            (N,) int64 stored rows, and (N,) int64 where in its stored row each row lies; None for at its beginning.
        """
        rows, lane = self._stored(rows, self._lanes[lookup], self._first[lookup])
        return rows.flatten(), None if lane is None else lane.flatten()

    def stored(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Look stored rows up one by one, and leave them as they are.

        Args:
            rows: (N,) int64 stored rows, as `split` gives them, lookup after lookup.
            counts: how many of them each lookup has.

        Returns:
            The numbers of the stored rows, flat, lookup after lookup.
        """
        if not len(rows):
            return torch.zeros(0, device=rows.device)
        parts = self._flat(rows, self._in_kernels(counts))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _stored(self, rows: Tensor, lanes: Tensor, first: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self._packs:
            return rows + first, None
        return find_stored(rows, lanes, first)

    def _in_kernels(self, counts: Sequence[int]) -> list[int]:
        return [sum(counts[index] for index in here) for here in self._lookups_of_kernel]

    def _flat(self, rows: Tensor, counts: list[int]) -> list[Tensor]:
        """Look up so many rows of each kernel's table: what each call of a kernel gives, flat."""
        if self._at_once:
            offsets = torch.arange(len(rows) + 1, device=rows.device)
            of_tables = [[count] for count in counts]
            return [self._batched[0](rows, offsets, batch_size_per_feature_per_rank=of_tables).view(-1)]
        found = []
        for batched, part in zip(self._batched, rows.split(counts), strict=True):
            offsets = torch.arange(len(part) + 1, device=rows.device)
            found.append(batched(part, offsets).view(-1) if len(part) else torch.zeros(0, device=rows.device))
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> "FusedTables":
        """Refuse what would cut the named weights loose from the kernel's memory."""
        _, _, _, device, _ = self._arguments
        probe = fn(torch.empty(0, device=device))
        if probe.dtype != torch.float32 or probe.device.type != device.type:
            raise RecembError(
                f"fused tables stay float32 on {device.type}; make the collection anew for {probe.dtype} on "
                f"{probe.device.type}, or without optimizer= for ordinary parameters."
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedTables":
        tables, lookup_tables, optimizer, device, by_value = self._arguments
        twin = FusedTables(tables, lookup_tables, optimizer, device, by_value=by_value)
        twin.load_state_dict(self.state_dict())
        for mine, its in zip(self._batched, twin._batched, strict=True):
            for ours, theirs in zip(mine.split_optimizer_states(), its.split_optimizer_states(), strict=True):
                for own, other in zip(ours, theirs, strict=True):
                    other.copy_(own)
        return twin

    def __getstate__(self) -> Any:
        raise RecembError("fused tables cannot be pickled; save the collection's state_dict() instead.")

    def read(self, name: str) -> Tensor:
        """Give the weight (rows, dim) of a table, a view of the kernel's memory."""
        return self.get_parameter(f"embedding_bags.{name}.weight")

    def write(self, name: str, weight: Tensor) -> None:
        """Copy a weight (rows, dim) into a table."""
        self.read(name).copy_(weight)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the rows."""
        for batched in self._batched:
            batched.set_learning_rate(lr)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Give the accumulators by name, views of the kernel's memory.

        `momentum1` is one float for each stored row with row-wise Adagrad, and one for each weight with Adagrad.
        """
        states = [of_table for batched in self._batched for of_table in batched.split_optimizer_states()]
        found = {}
        for table, (kernel, start) in self._places.items():
            if states and states[kernel]:
                stored = stored_shape(table)
                own = states[kernel][0][start : start + stored.rows]
                found[f"embedding_bags.{table.name}.momentum1"] = plain_rows(own, table) if own.dim() > 1 else own
        return found

    def stored_bytes(self) -> int:
        """Bytes the rows take in memory, with the padding of stored rows."""
        return sum(weight.nbytes for batched in self._batched for weight in batched.split_embedding_weights())

    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's accumulators."""
        states = (states for batched in self._batched for states in batched.split_optimizer_states())
        return sum(state.nbytes for of_table in states for state in of_table)
