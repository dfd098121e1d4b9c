"""Hosts for physical rows: the large memory of a collection, and the lookup in it.

Both hosts take the same row numbers, return the same vectors and name their weights alike
(`embedding_bags.<table>.weight`, as torchrec does), so weights move between them by `load_state_dict`:

- `recemb.tables.plain.PlainTables` keeps ordinary parameters: any dtype, autograd, gradcheck, no kernels needed.
- `FusedTables` keeps FBGEMM's batched tables, whose backward pass applies the optimizer to the touched rows.

A lookup reads one physical table; several lookups may read the same one. Bags are pooled by sum.

`FusedTables` keeps rows of widths that kernels do not take in wider ones (`recemb.tables.lanes`). Its weights are views
of that storage in the shape of the plain ones. Their gradients never exist outside of a kernel; how they are frozen and
unscaled nevertheless is in `recemb.tables.autograd`.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.amp import GradScaler

from recemb.options import RecembError
from recemb.tables.autograd import check_not_replicated, kernel_mode, unscaled
from recemb.tables.base import PhysicalTable
from recemb.tables.lanes import find_stored, lanes_of, of_each, pick_lanes, plain_rows, stored_shape
from recemb.tables.plain import Bag


class FusedOptimizer(NamedTuple):
    """The optimizer that FBGEMM applies to table rows inside the backward pass.

    Attributes:
        name: `rowwise_adagrad` (one accumulator a row), `adagrad` (one a weight) or `sgd`.
        lr: learning rate.
        eps: added to the root of Adagrad's accumulators.

    What comes after the backward pass in an ordinary training loop cannot reach these rows: gradients are neither
    accumulated over several backward passes (each is a step of its own) nor clipped (`clip_grad_norm_`), and the
    rows' `.grad` stays None. `CompressedEmbeddingBagCollection.unscale_with` divides out what a GradScaler multiplies.

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


class _ViewBag(Bag):
    """A bag whose weight is a view of a kernel's memory: it is copied into, never replaced."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight, requires_grad=True)  # no gradient arrives, but turning this off freezes the rows

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        copying = {**local_metadata, "assign_to_params_buffers": False}
        super()._load_from_state_dict(state_dict, prefix, copying, *rest)


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

    @torch.inference_mode(False)  # the kernels keep counts that no later mode may change otherwise
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
        self._bags = [cast(_ViewBag, self.embedding_bags[tables[index].name]) for index in lookup_tables]
        self._weights = [bag.weight for bag in self._bags]
        self._scaler: GradScaler | None = None
        self._scaler_lost = False
        # For each table the kernel's table that holds it, and the stored row that it begins at.
        self._places = {table: (kernel, start) for table, kernel, start in zip(tables, kernels, first, strict=True)}
        for name, numbers in (("_first", first), ("_lanes", lanes)):
            of_lookups = torch.tensor([numbers[index] for index in lookup_tables], device=device)
            self.register_buffer(name, of_lookups, persistent=False)

    @torch.compiler.disable  # which cannot follow FBGEMM
    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Sum the rows of every bag; same arguments and result as `PlainTables.forward`."""
        frozen = self._frozen()
        with kernel_mode(not all(frozen)):
            pooled = unscaled(self._batched[0](rows, offsets), self._scaler)
        if not any(frozen) or not pooled.requires_grad:
            return pooled
        return torch.cat(_detached(pooled.split(self.widths, dim=1), frozen), dim=1)

    @torch.compiler.disable
    def values(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Look rows up one by one; same arguments and result as `PlainTables.values`."""
        if not len(rows):
            return [torch.zeros(0, width, device=rows.device) for width in self.widths]
        rows, lane = self._stored(rows, of_each(self._lanes, counts), of_each(self._first, counts))
        of_kernels = self._in_kernels(counts)
        frozen = self._frozen()
        parts = self._flat(rows, of_kernels, not all(frozen))
        if self._at_once:
            sizes = [count * width for count, width in zip(of_kernels, self._stored_widths, strict=True)]
            parts = list(parts[0].split(sizes))
        found: list[Tensor] = []
        lanes = [None] * len(parts) if lane is None else lane.split(of_kernels)
        for part, width, here, one in zip(parts, self._stored_widths, self._lookups_of_kernel, lanes, strict=True):
            picked = pick_lanes(part.view(-1, width), self.widths[here[0]], one)
            found += picked.split([counts[index] for index in here])
        return _detached(found, [frozen[index] for here in self._lookups_of_kernel for index in here])

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

    @torch.compiler.disable
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
        frozen = self._frozen()
        parts = self._flat(rows, self._in_kernels(counts), not all(frozen))
        flat = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not any(frozen) or not flat.requires_grad:
            return flat
        in_kernels = zip(self._lookups_of_kernel, self._stored_widths, strict=True)
        lookups = [(index, counts[index] * width) for here, width in in_kernels for index in here]
        segments = flat.split([size for _, size in lookups])
        return torch.cat(_detached(segments, [frozen[index] for index, _ in lookups]))

    def unscale_with(self, scaler: GradScaler | None) -> None:
        """Divide the scale of a scaler out of gradients before they update rows; None for no scaler."""
        self._scaler, self._scaler_lost = scaler, False

    def _frozen(self) -> list[bool]:
        """Say of each lookup whether it reads a table that is not trained now; refuse what cannot be done right."""
        for bag, weight in zip(self._bags, self._weights, strict=True):
            if bag._parameters["weight"] is not weight:
                raise RecembError(
                    "a weight of fused tables was replaced, as torch.func.functional_call does, and the kernels would "
                    "not see it; copy into it (load_state_dict, write), or make the collection without optimizer=."
                )
        if not torch.is_grad_enabled():
            return [True] * len(self._weights)
        frozen = [not weight.requires_grad for weight in self._weights]
        if not all(frozen):
            check_not_replicated()
            if self._scaler_lost:
                raise RecembError(
                    "fused tables that were trained under a GradScaler came out of a pickle without it; call "
                    "unscale_with() of the collection, with the scaler or with None, before training goes on."
                )
        return frozen

    def _stored(self, rows: Tensor, lanes: Tensor, first: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self._packs:
            return rows + first, None
        return find_stored(rows, lanes, first)

    def _in_kernels(self, counts: Sequence[int]) -> list[int]:
        return [sum(counts[index] for index in here) for here in self._lookups_of_kernel]

    def _flat(self, rows: Tensor, counts: list[int], trains: bool) -> list[Tensor]:
        """Look up so many rows of each kernel's table: what each call of a kernel gives, flat."""
        found = []
        with kernel_mode(trains):
            if self._at_once:
                offsets = torch.arange(len(rows) + 1, device=rows.device)
                of_tables = [[count] for count in counts]
                found.append(self._batched[0](rows, offsets, batch_size_per_feature_per_rank=of_tables).view(-1))
            else:
                for batched, part in zip(self._batched, rows.split(counts), strict=True):
                    offsets = torch.arange(len(part) + 1, device=rows.device)
                    found.append(batched(part, offsets).view(-1) if len(part) else rows.new_zeros(0).float())
            return [unscaled(part, self._scaler) for part in found]

    def _apply(self, fn: Any, recurse: bool = True) -> "FusedTables":
        """Do what leaves the memory where the kernel has it, such as share_memory(); refuse anything else.

        Processes that are forked share it then; a pickle, which spawned ones are sent, holds a copy.
        """
        _, _, _, device, _ = self._arguments
        probe = fn(torch.empty(0, device=device))
        if probe.dtype != torch.float32 or probe.device.type != device.type:
            raise RecembError(
                f"fused tables stay float32 on {device.type}; make the collection anew for {probe.dtype} on "
                f"{probe.device.type}, or without optimizer= for ordinary parameters."
            )
        for tensor in (*self._memory(), self._first, self._lanes):
            if fn(tensor.detach()).data_ptr() != tensor.data_ptr():
                raise RecembError("fused tables cannot be moved into other memory; make the collection anew.")
        return self

    def _memory(self) -> list[Tensor]:
        """List what the kernels hold and change: rows, accumulators and learning rates, each whole."""
        found = []
        for batched in self._batched:
            tensors = (*batched.parameters(), *batched.buffers(), batched.learning_rate_tensor)
            found += [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        return found

    def __getstate__(self) -> dict[str, Any]:
        # The kernels' memory as a whole: pickled one by one, each view of it would carry all of it along.
        made_anew = ("_modules", "_buffers", "_batched", "_bags", "_weights", "_scaler")
        state = {name: value for name, value in self.__dict__.items() if name not in made_anew}
        state["trains"] = [weight.requires_grad for weight in self.parameters()]
        state["memory"] = [tensor.detach() for tensor in self._memory()]
        state["_scaler_lost"] = self._scaler_lost or self._scaler is not None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        memory, trains = state.pop("memory"), state.pop("trains")
        tables, lookup_tables, optimizer, device, by_value = state["_arguments"]
        if memory and memory[0].device.type != device.type:
            raise RecembError(
                f"fused tables that were pickled on {device.type} cannot be loaded on {memory[0].device.type}; load "
                "their state_dict() into a collection that is made there."
            )
        FusedTables.__init__(self, tables, lookup_tables, optimizer, device, by_value=by_value)
        super().__setstate__(state)
        for mine, given in zip(self._memory(), memory, strict=True):
            mine.detach().copy_(given)
        for weight, on in zip(self.parameters(), trains, strict=True):
            weight.requires_grad_(on)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedTables":
        state = self.__getstate__()
        memory, state["memory"] = state["memory"], []  # copied once, into the twin's own
        twin = object.__new__(type(self))
        twin.__setstate__({**copy.deepcopy(state, memo), "memory": memory})
        twin._scaler, twin._scaler_lost = self._scaler, self._scaler_lost
        return twin

    def __copy__(self) -> "FusedTables":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)  # the same memory, as with any shallow copy of a module
        return twin

    def read(self, name: str) -> Tensor:
        """Give the weight (rows, dim) of a table, a view of the kernel's memory."""
        return self.get_parameter(f"embedding_bags.{name}.weight").detach()

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


def _detached(parts: Sequence[Tensor], frozen: Sequence[bool]) -> list[Tensor]:
    """Cut those parts off from autograd that are of frozen tables; a gradient of zero moves none of their rows."""
    return [part.detach() if off else part for part, off in zip(parts, frozen, strict=True)]
