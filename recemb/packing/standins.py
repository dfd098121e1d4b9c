"""Modules that stand in for PyTorch's tables: their arguments, checks and shapes over `ServingTables`."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recemb.options import RecembError
from recemb.packing.serving import ServingTables

_ROWS_AT_ONCE = 1 << 16


class _StandIn(nn.Module):
    """What the modules that stand in for one table of PyTorch's have in common.

    Args:
        tables: one logical table.
        like: a tensor of the dtype that is given back, on the device of the model; casts of the model are followed.
        zero_row: the row that reads zeros, if there is one.
    """

    _like: Tensor

    def __init__(self, tables: ServingTables, like: Tensor, zero_row: int | None = None) -> None:
        super().__init__()
        self.tables = tables
        self._zero_row = zero_row
        self.register_buffer("_like", like.detach().new_empty(0), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Make all vectors: (V, D) in the model's dtype, without a gradient.

        It is a copy, made anew at each call: what is written to it does not reach the compressed rows.
        """
        with torch.no_grad():
            return torch.cat([self._rows(ids) for ids in self._all_ids()])

    def _all_ids(self) -> tuple[Tensor, ...]:
        rows = self.tables.specs[0].num_embeddings
        return torch.arange(rows, device=self._like.device).split(_ROWS_AT_ONCE)

    def _rows(self, ids: Tensor) -> Tensor:
        """Look up ids (N,): (N, D)."""
        vectors = self.tables.vectors(0, ids).to(self._like.dtype)
        return vectors if self._zero_row is None else vectors * (ids != self._zero_row).unsqueeze(1)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the weight is none that can be set."""
        if name == "weight":
            raise RecembError(
                "the rows are compressed and take no new weight; assign it before the model is compressed."
            )
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Refuse to start anew, as torch's tables can.

        Raises:
            RecembError: always.
        """
        raise RecembError("the rows are compressed and cannot be initialised again; do so before compressing.")


class CompressedEmbedding(_StandIn):
    """Stands in for an `nn.Embedding`: ids of any shape (...) to (..., D)."""

    max_norm = None
    norm_type = 2.0
    scale_grad_by_freq = False
    sparse = False

    def __init__(self, tables: ServingTables, padding_idx: int | None, like: Tensor, zero_row: int | None) -> None:
        super().__init__(tables, like, zero_row)
        self.num_embeddings = tables.specs[0].num_embeddings
        self.embedding_dim = tables.specs[0].embedding_dim
        self.padding_idx = padding_idx

    def forward(self, input: Tensor) -> Tensor:
        """Look up; the padding id reads zeros, unless it was given a vector.

        Raises:
            RecembError: the ids are no integers, or one is out of range.
        """
        return self._rows(checked_ids(input, self.num_embeddings)).view(*input.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """As torch writes an embedding."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class CompressedEmbeddingBag(_StandIn):
    """Stands in for an `nn.EmbeddingBag` that sums or averages, with the same arguments."""

    max_norm = None
    norm_type = 2.0
    scale_grad_by_freq = False
    sparse = False

    def __init__(
        self,
        tables: ServingTables,
        mode: str,
        include_last_offset: bool,
        padding_idx: int | None,
        like: Tensor,
        zero_row: int | None,
    ) -> None:
        super().__init__(tables, like, zero_row)
        self.num_embeddings = tables.specs[0].num_embeddings
        self.embedding_dim = tables.specs[0].embedding_dim
        self.mode = mode
        self.include_last_offset = include_last_offset
        self.padding_idx = padding_idx

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Look up and pool: (B, L) ids, or (N,) ids and (B,) offsets, to (B, D).

        Raises:
            RecembError: what `nn.EmbeddingBag` refuses, or an id out of range.
        """
        if (offsets is None) != (input.dim() == 2) or input.dim() not in (1, 2):
            raise RecembError("ids must be (B, L), or (N,) with the offsets of their bags.")
        ids = checked_ids(input, self.num_embeddings)
        if offsets is None:
            lengths = torch.full((input.shape[0],), input.shape[1], device=ids.device)
        else:
            lengths = self._lengths(ids, offsets)
        weights = self._weights(input, per_sample_weights)
        if self.padding_idx is not None:
            weights = weights * (ids != self.padding_idx)
        pooled = weighted_pool(self.tables.vectors(0, ids), weights, lengths, self.mode == "mean")
        return pooled.to(self._like.dtype)

    def _lengths(self, ids: Tensor, offsets: Tensor) -> Tensor:
        if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64):
            raise RecembError(f"offsets must be (B,) int64 or int32, not {tuple(offsets.shape)} {offsets.dtype}.")
        begins = offsets[:-1] if self.include_last_offset else offsets
        if may_check():
            _check_offsets(offsets, ids.shape[0], self.include_last_offset)
        ends = offsets[1:]
        if not self.include_last_offset:
            ends = torch.cat([ends, torch.full_like(offsets[:1], ids.shape[0])])
        return ends - begins

    def _weights(self, input: Tensor, given: Tensor | None) -> Tensor:
        """One weight for each id, (N,) float32."""
        if given is None:
            return torch.ones(input.numel(), device=input.device)
        if self.mode != "sum":
            raise RecembError("per_sample_weights go with mode='sum' only, as in nn.EmbeddingBag.")
        if given.shape != input.shape or not given.is_floating_point():
            raise RecembError(
                f"per_sample_weights must be one float for each id, {tuple(input.shape)}, not {tuple(given.shape)} "
                f"{given.dtype}."
            )
        return given.flatten().float()

    def extra_repr(self) -> str:
        """As torch writes a bag."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}{padding}"


class CompressedLinear(_StandIn):
    """Stands in for an `nn.Linear` whose weight is a table's: scores against all of its vectors.

    The rows are made some at a time, and none of them is held beside the compressed table; while gradients are kept,
    all of them are.
    """

    bias: Tensor | None

    def __init__(self, tables: ServingTables, bias: nn.Parameter | None, like: Tensor, zero_row: int | None) -> None:
        super().__init__(tables, like, zero_row)
        self.out_features = tables.specs[0].num_embeddings
        self.in_features = tables.specs[0].embedding_dim
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply (..., D) by every vector, and add the bias: (..., V)."""
        scores = torch.cat([F.linear(input, self._rows(ids)) for ids in self._all_ids()], dim=-1)
        return scores if self.bias is None else scores + self.bias

    def extra_repr(self) -> str:
        """As torch writes a linear layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def may_check() -> bool:
    """Whether values may decide: not while a graph is exported or traced, which would keep what they were."""
    return not (torch.compiler.is_exporting() or torch.jit.is_tracing())


def checked_ids(input: Tensor, num_embeddings: int) -> Tensor:
    """Flatten ids to (N,) int64.

    Raises:
        RecembError: they are no integers or out of range, which an exported graph cannot tell.
    """
    if input.is_floating_point() or input.is_complex() or input.dtype == torch.bool:
        raise RecembError(f"ids must be integers, and these are {input.dtype}.")
    ids = input.flatten().long()
    if may_check() and ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= num_embeddings):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise RecembError(f"id {wrong} is out of range; the table has {num_embeddings} ids, 0 to {num_embeddings - 1}.")
    return ids


def weighted_pool(vectors: Tensor, weights: Tensor, lengths: Tensor, mean: bool) -> Tensor:
    """Add up vectors, each times its weight, or average those that have a weight.

    Args:
        vectors: (N, D).
        weights: (N,) float32.
        lengths: (B,) of the bags, N together.
        mean: whether to average.

    Returns:
        (B, D).
    """
    bags = lengths.shape[0]
    bag = torch.repeat_interleave(lengths)
    pooled = vectors.new_zeros(bags, vectors.shape[1]).index_add(0, bag, vectors * weights.unsqueeze(1))
    if not mean:
        return pooled
    counts = weights.new_zeros(bags).index_add(0, bag, weights)
    return pooled / counts.clamp(min=1).unsqueeze(1)


def _check_offsets(offsets: Tensor, count: int, include_last: bool) -> None:
    numbers = offsets.tolist()
    if include_last and not numbers:
        raise RecembError("offsets are empty; with include_last_offset they end with the number of ids.")
    if numbers and numbers[0] != 0:
        raise RecembError(f"offsets must begin with 0, where the first bag does, not with {numbers[0]}.")
    if any(after < before for before, after in itertools.pairwise(numbers)):
        raise RecembError("offsets must not fall: each is where a bag begins, one after the other.")
    last = numbers[-1] if numbers else 0
    if last > count or (last != count and (include_last or not numbers)):
        raise RecembError(f"offsets end at {last}, and there are {count} ids.")
