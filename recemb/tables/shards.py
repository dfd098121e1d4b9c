"""The parts of tables that processes share, as they are held and as they are saved."""

import math
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata

from recemb.tables.base import PhysicalTable
from recemb.tables.lanes import lanes_of

# Numbers of a table that are saved at once, 128 MiB.
_PIECE = 1 << 25


class ShardPart(NamedTuple):
    """A part of a tensor that the processes share, and its values where they are held here."""

    where: ShardMetadata
    values: Tensor | None


def shard_parts(shared: ShardedTensor, table: PhysicalTable) -> list[ShardPart]:
    """List the parts of a table's weight or accumulators; rows side by side are taken apart, padding is left out."""
    wide = len(shared.size()) > 1
    lanes = lanes_of(table.dim) if wide else 1
    rows_in_all = table.rows if wide else shared.size()[0]
    held = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in shared.local_shards()}
    parts = []
    for one in shared.metadata().shards_metadata:
        (row, *column), (rows, *width) = one.shard_offsets, one.shard_sizes
        each = [stored // lanes for stored in width]
        begin = [row * lanes, *column]
        size = [min(rows * lanes, rows_in_all - row * lanes)]
        size += [min(stored, table.dim - first) for stored, first in zip(each, column, strict=True)]
        if min(size) <= 0:
            continue
        where = ShardMetadata(begin, size, one.placement)
        values = held[tuple(one.shard_offsets)] if _is_here(one) else None
        if values is not None:
            values = values.view(-1, *each)[tuple(slice(length) for length in size)]
        parts.append(ShardPart(where, values))
    return parts


def in_pieces(parts: list[ShardPart], size: list[int], like: ShardedTensor) -> ShardedTensor:
    """Make the sharded tensor that is saved, in pieces, since saving copies what is a part of a larger memory."""
    described, pieces, shards = [], [], []
    for where, values in parts:
        (first, *column), (rows, *width) = where.shard_offsets, where.shard_sizes
        step = max(1, _PIECE // math.prod(width))
        for start in range(0, rows, step):
            end = min(start + step, rows)
            piece = ShardMetadata([first + start, *column], [end - start, *width], where.placement)
            described.append(piece)
            if values is not None:
                own = values[start:end]
                pieces.append(own)
                # A sharded tensor is only made of tensors without gaps. It is saved and loaded with gaps as well.
                shards.append(Shard(own.as_strided(own.shape, [*width, 1]), piece))
    metadata = ShardedTensorMetadata(described, torch.Size(size), like.metadata().tensor_properties)
    found = ShardedTensor._init_from_local_shards_and_global_metadata(shards, metadata)
    for shard, own in zip(found.local_shards(), pieces, strict=True):
        shard.tensor = own
    return found


def _is_here(shard: ShardMetadata) -> bool:
    placement = shard.placement
    return placement is not None and cast(Any, placement).rank() == dist.get_rank()
