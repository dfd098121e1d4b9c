"""A third host of physical rows, beside those of `recemb.tables.storage`: quantized rows, to serve and not to train.

`QuantizedTables` answers the lookups that `PlainTables` and `FusedTables` answer, from rows held as
`recemb.tables.precision` says, in FBGEMM's batched inference tables. Rows take their own bytes and no more: no padding
between rows or tables, and a row of codes is two halves (what a step is worth, what code 0 stands for) and the codes,
the first number in the lowest bits, which is what `pack_rows` gives.

Which widths FBGEMM's CPU kernels take, tried from 1 to 33 in every precision:

- fp32, fp16 and int8: every width.
- int4: even widths, and int2: multiples of four, since codes fill whole bytes. The codes of any other row fill whole
  bytes too, the last one in part, so the kernel is told the width that the bytes have room for and the columns too many
  are dropped from what it gives. No table needs another way to be read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from recemb.options import RecembError
from recemb.tables.base import PhysicalTable
from recemb.tables.casting import keep_types
from recemb.tables.precision import PRECISIONS, pack_rows

_TYPES = {
    "fp32": SparseType.FP32,
    "fp16": SparseType.FP16,
    "int8": SparseType.INT8,
    "int4": SparseType.INT4,
    "int2": SparseType.INT2,
}
_CODES_A_BYTE = {"int4": 2, "int2": 4}


class _PackedBag(nn.Module):
    """Bytes (V, bytes of a row) of a table, a view of a kernel's memory: they are copied into, never replaced."""

    packed: Tensor

    def __init__(self, packed: Tensor) -> None:
        super().__init__()
        # Not called weight: a row may have as many bytes as numbers, and floats would then load without a complaint.
        self.register_buffer("packed", packed)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        copying = {**local_metadata, "assign_to_params_buffers": False}
        super()._load_from_state_dict(state_dict, prefix, copying, *rest)


class QuantizedTables(nn.Module):
    """Physical tables in FBGEMM's batched inference form, each held as `PhysicalTable.held` says; on the CPU.

    Row numbers stay 64 bits wide. The batched tables are called directly, as `FusedTables` calls its own: torchrec's
    quantized collection is no faster, pads every table to 128 bytes, takes no odd width in int4, and splits its input
    by precision to join the results again.

    Args:
        tables: the physical tables.
        lookup_tables: for each lookup the index of the table it reads; `by_value`, those of one width and precision
            side by side.
        weights: (rows, d) float32 of each table, on any device, to be packed; None leaves zeros, for rows that will be
            loaded.
        by_value: rows are looked up one by one (`values`) instead of in bags (`forward`).
    """

    def __init__(
        self,
        tables: Sequence[PhysicalTable],
        lookup_tables: Sequence[int],
        weights: Sequence[Tensor] | None = None,
        *,
        by_value: bool = False,
    ) -> None:
        super().__init__()
        self._first: Tensor
        self._columns: Tensor
        self._arguments = (tuple(tables), tuple(lookup_tables), by_value)
        self.widths = [tables[index].dim for index in lookup_tables]
        kinds = [(PRECISIONS.index(table.held), table.dim) for table in tables]
        # Whole floats lie first in the memory that tables share, so that they are aligned as floats must be.
        order = sorted(range(len(tables)), key=lambda index: kinds[index])
        if by_value:
            # Differently many rows of each kind are looked up: a kernel for each, in the order of the lookups, whose
            # one table is all tables of the kind.
            of_lookups = list(dict.fromkeys(kinds[index] for index in lookup_tables))
            calls = [[[index for index in order if kinds[index] == kind]] for kind in of_lookups]
        else:
            calls = [[[index] for index in order]]
        self._lookups_of_kernel = [
            [lookup for lookup, index in enumerate(lookup_tables) if any(index in members for members in call)]
            for call in calls
        ]
        # In a list, so that their buffers are not saved beside the tables' own names.
        self._batched = [
            _batched(
                [(sum(tables[index].rows for index in members), tables[members[0]]) for members in call],
                [0] if by_value else [order.index(index) for index in lookup_tables],
            )
            for call in calls
        ]
        # Where in its kernel's table each physical one begins.
        first = [0] * len(tables)
        packed: dict[int, Tensor] = {}
        for call, batched in zip(calls, self._batched, strict=True):
            stored = batched.split_embedding_weights(split_scale_shifts=False)
            for members, (of_members, _) in zip(call, stored, strict=True):
                start = 0
                for index in members:
                    first[index] = start
                    packed[index] = of_members[start : start + tables[index].rows]
                    start += tables[index].rows
        if weights is not None:
            for index, (table, weight) in enumerate(zip(tables, weights, strict=True)):
                packed[index].copy_(_as_bytes(pack_rows(weight.detach().cpu(), table.held)))
        self.embedding_bags = nn.ModuleDict({table.name: _PackedBag(packed[i]) for i, table in enumerate(tables)})
        self._packed = [packed[index] for index in range(len(tables))]
        for name, numbers in (
            ("_first", [first[index] for index in lookup_tables]),
            ("_columns", [] if by_value else _kept_columns([tables[index] for index in lookup_tables])),
        ):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64), persistent=False)

    @torch.compiler.disable  # which cannot follow FBGEMM's inference tables
    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Sum the rows of every bag; same arguments and result as `PlainTables.forward`."""
        self._check_in_place()
        pooled: Tensor = self._batched[0](rows, offsets)
        return pooled.index_select(1, self._columns) if len(self._columns) else pooled

    @torch.compiler.disable
    def values(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Look rows up one by one; same arguments and result as `PlainTables.values`."""
        self._check_in_place()
        rows = rows + self._first.repeat_interleave(torch.tensor(counts))
        found: list[Tensor] = []
        start = 0
        for batched, here in zip(self._batched, self._lookups_of_kernel, strict=True):
            of_lookups = [counts[index] for index in here]
            stop = start + sum(of_lookups)
            read = batched(rows[start:stop], torch.arange(stop - start + 1))
            found += read[:, : self.widths[here[0]]].split(of_lookups)
            start = stop
        return found

    def _check_in_place(self) -> None:
        """Raise where the named rows are no longer those that the kernel reads."""
        for bag, packed in zip(self.embedding_bags.values(), self._packed, strict=True):
            if bag._buffers["packed"] is not packed:
                raise RecembError(
                    "the rows of quantized tables were replaced, as torch.func.functional_call does, and the kernels "
                    "would not see it; copy into them with load_state_dict()."
                )

    def stored_bytes(self) -> int:
        """Bytes the rows take in memory: those of `PhysicalTable.bytes`."""
        return sum(batched.weights_host.nbytes for batched in self._batched)

    def optimizer_bytes(self) -> int:
        """Bytes of optimizer state held beside the rows: none, they are not trained."""
        return 0

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedTables":
        """Do what leaves the memory where the kernel has it, such as share_memory(); refuse anything else."""
        probe = fn(torch.empty(0))
        if probe.dtype != torch.float32 or probe.device.type != "cpu":
            raise RecembError(
                f"quantized tables give float32 on the CPU, and cannot be moved to {probe.dtype} on "
                f"{probe.device.type}; call quantized() of the trained collection where they shall serve."
            )
        held = [batched.weights_host for batched in self._batched]
        for tensor in (*held, *self._buffers.values()):
            if tensor is not None and keep_types(fn)(tensor).data_ptr() != tensor.data_ptr():
                raise RecembError("quantized tables cannot be moved into other memory; call quantized() again.")
        return self

    def __reduce__(self) -> Any:
        # The kernels' memory as a whole: pickled one by one, each view of it would carry all of it along.
        made_anew = ("_modules", "_buffers", "_batched", "_packed")
        state = {name: value for name, value in self.__dict__.items() if name not in made_anew}
        return _restored, (*self._arguments, [batched.weights_host for batched in self._batched]), state

    def __copy__(self) -> "QuantizedTables":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)  # the same memory, as with any shallow copy of a module
        return twin


def _restored(
    tables: Sequence[PhysicalTable], lookup_tables: Sequence[int], by_value: bool, memory: Sequence[Tensor]
) -> QuantizedTables:
    """Make tables again from what `QuantizedTables.__reduce__` gave, in a copy of that memory."""
    made = QuantizedTables(tables, lookup_tables, by_value=by_value)
    for batched, held in zip(made._batched, memory, strict=True):
        batched.weights_host.copy_(held)
    return made


def _batched(
    parts: Sequence[tuple[int, PhysicalTable]], table_of_lookup: list[int]
) -> IntNBitTableBatchedEmbeddingBagsCodegen:
    """Make FBGEMM's tables, all zeros, of so many rows held like those of a physical table each."""
    batched = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("", rows, _kernel_width(like), _TYPES[like.held], EmbeddingLocation.HOST) for rows, like in parts],
        feature_table_map=table_of_lookup,
        device="cpu",
        bounds_check_mode=BoundsCheckMode.NONE,  # the collection has checked the ids, and says which is wrong
        output_dtype=SparseType.FP32,
        row_alignment=1,
        cacheline_alignment=False,
    )
    batched.initialize_weights()
    return batched


def _kernel_width(table: PhysicalTable) -> int:
    """Numbers that the bytes of a row have room for."""
    whole = _CODES_A_BYTE.get(table.held, 1)
    return -(-table.dim // whole) * whole


def _kept_columns(tables: Sequence[PhysicalTable]) -> list[int]:
    """Say which columns that the kernel gives for these lookups are numbers of rows; empty if all are."""
    columns: list[int] = []
    width = 0
    for table in tables:
        columns += range(width, width + table.dim)
        width += _kernel_width(table)
    return columns if len(columns) < width else []


def _as_bytes(packed: dict[str, Tensor]) -> Tensor:
    """Lay out what `pack_rows` gave as FBGEMM reads it: (V, bytes of a row) uint8."""
    if "rows" in packed:
        return packed["rows"].contiguous().view(torch.uint8)
    return torch.cat([packed["scales"].view(torch.uint8), packed["codes"]], dim=1)
