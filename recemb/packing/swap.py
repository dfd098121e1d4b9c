"""Compresses the tables of any PyTorch model in place: nn.Embedding, nn.EmbeddingBag and torchrec's collections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from recemb.budget import format_bytes
from recemb.options import RecembError
from recemb.packing.packing import Packing
from recemb.packing.serving import ServingTables
from recemb.packing.standins import CompressedEmbedding, CompressedEmbeddingBag, CompressedLinear
from recemb.packing.ties import COLLECTIONS, Target, find_targets
from recemb.packing.torchrec_standins import CompressedCollection, CompressedUnpooledCollection
from recemb.plan import sized
from recemb.tables.base import TableSpec
from recemb.tables.registry import check_approximates, config_from_dict


class Swapped(NamedTuple):
    """One module that was replaced.

    Attributes:
        name: its name in the model.
        table: the method.
        bytes_before: of its weights, as the model held them.
        bytes_after: every byte that serving needs now.
        error: root of the mean squared difference of a vector's entries, over the root of their mean square; ids count
            as often as they are looked up where counts were given.
        tied: other names of the module, and of modules that hold the same weight.
    """

    name: str
    table: str
    bytes_before: int
    bytes_after: int
    error: float
    tied: tuple[str, ...] = ()

    def __str__(self) -> str:
        before, after = (format_bytes(size) for size in (self.bytes_before, self.bytes_after))
        smaller = self.bytes_before / self.bytes_after
        also = f" (also {', '.join(self.tied)})" if self.tied else ""
        return (
            f"{self.name}{also}: {self.table}, {before} -> {after} ({smaller:.3g}x smaller), relative error "
            f"{self.error:.4f}"
        )


def compress(
    model: nn.Module,
    plan: Packing | Mapping[str, Packing],
    *,
    counts: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> list[Swapped]:
    """Replace a model's tables by compressed ones that give nearly the same vectors, without training.

    The new modules take the same inputs and give the same shapes, in the model's dtype and on its device; their rows
    are no parameters any more, so they serve and do not learn. Gradients still reach whatever is behind them. Their
    `weight` can be read: all vectors, made anew each time. How near the vectors are is in the result: look at it, for a
    method that does not suit a table may lose most of it.

    A module is replaced under all of its names. Tables that hold one weight are compressed together or not at all, and
    a linear layer that is tied to a table scores against the compressed one.

    Args:
        model: any module with `nn.Embedding`, `nn.EmbeddingBag` (sum or mean) or torchrec's `EmbeddingBagCollection`,
            `FusedEmbeddingBagCollection` or `EmbeddingCollection` inside; it is changed in place.
        plan: how to hold the tables, by patterns of module names (`*.emb_*`, as in a shell), the first that matches
            counts; one `Packing` alone is for all of them.
        counts: how often each id was looked up, (V,) by name: the module's, or module.table of a collection. Popular
            ids then come out nearer. `frequency`, `mixed_dimension` and `magnitude` take them only if they fall from
            id 1 on (ids numbered by frequency, id 0 being the one that rare ids share), and the first two need them.
        seed: of what is random, such as k-means.

    Returns:
        What was replaced.

    Raises:
        RecembError: model or plan are of another kind, nothing matches, a budget cannot be met, a method cannot be made
            from trained tables, or a module cannot be compressed; the model is then as it was.

    Example::

        model = nn.Sequential(nn.EmbeddingBag(100_000, 16), nn.Linear(16, 1))
        compress(model, {"0": Packing(table="low_rank", budget="1/8", precision="int8")})
    """
    if not isinstance(model, nn.Module):
        raise RecembError(f"model is a {type(model).__name__}; give the nn.Module that holds the tables.")
    targets = find_targets(model, _patterns(plan))
    # All are made before the first one is put in, so that an error leaves the model as it was.
    _check_counts(counts or {}, targets)
    replacements: list[tuple[str, nn.Module]] = []
    report = []
    for target in targets:
        tables, swapped = _compressed(target, counts or {}, seed)
        report.append(swapped)
        holders = [(target.module, target.names), *target.tied]
        zero_row = _zero_row([module for module, _ in holders])
        for module, names in holders:
            replacement = _stand_in(module, tables, zero_row).train(module.training)
            replacements += [(name, replacement) for name in names]
    for name, replacement in replacements:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement)
    return report


_ORDERED = ("frequency", "mixed_dimension", "magnitude")
"""Methods that take counts only of ids that are numbered by them."""


def _patterns(plan: object) -> dict[str, Packing]:
    """Return a plan as packings by pattern."""
    if isinstance(plan, Packing):
        return {"*": plan}
    if not isinstance(plan, Mapping):
        raise RecembError(
            f"plan is a {type(plan).__name__}; give a Packing, such as Packing(precision='int8'), or a dict of them by "
            "patterns of module names."
        )
    for key, packing in plan.items():
        if not isinstance(key, str) or not isinstance(packing, Packing):
            raise RecembError(
                f"plan holds {packing!r} for {key!r}; it takes a Packing for each pattern of module names, such as "
                "{'*emb*': Packing(precision='int8')}."
            )
    if not plan:
        raise RecembError("plan names no table; give a Packing for each pattern of module names.")
    return dict(plan)


def _compressed(target: Target, counts: Mapping[str, Tensor], seed: int) -> tuple[ServingTables, Swapped]:
    """Make the tables that take a module's place."""
    name, packing = target.name, target.packing
    specs, held = _tables_of(name, target.module, packing, counts)
    weights = [weight.float().cpu() for weight in held]
    config = config_from_dict({"name": packing.table, **packing.options})
    check_approximates(config)
    if packing.table in ("frequency", "mixed_dimension") and any(spec.counts is None for spec in specs):
        raise RecembError(
            f"{name}: table={packing.table} needs to know how often each id is looked up; pass counts, with ids "
            "numbered by falling frequency."
        )
    made = sized(config, packing.budget, specs)
    tables = ServingTables(*made.approximate(specs, weights, seed)[:2])
    relative = _relative_error(tables, specs, weights)
    before = sum(weight.nbytes for weight in held)
    swapped = Swapped(name, packing.table, before, tables.serving_bytes, relative, tuple(target.other_names))
    return tables.to(held[0].device), swapped


def _relative_error(tables: ServingTables, specs: Sequence[TableSpec], weights: Sequence[Tensor]) -> float:
    error = size = 0.0
    with torch.no_grad():
        for index, (spec, weight) in enumerate(zip(specs, weights, strict=True)):
            popularity = spec.popularity.unsqueeze(1)
            error += float(((tables.vectors(index, torch.arange(len(weight))) - weight).square() * popularity).sum())
            size += float((weight.square() * popularity).sum())
    return (error / size) ** 0.5 if size else 0.0


def _stand_in(module: nn.Module, tables: ServingTables, zero_row: int | None) -> nn.Module:
    """Make the module that takes another one's place; one row may have to stay zero."""
    if isinstance(module, EmbeddingCollection):
        return CompressedUnpooledCollection(tables, module.embedding_configs(), module.need_indices())
    if isinstance(module, EmbeddingBagCollection | FusedEmbeddingBagCollection):
        return CompressedCollection(tables, module.embedding_bag_configs(), module.is_weighted())
    if isinstance(module, nn.EmbeddingBag):
        return CompressedEmbeddingBag(
            tables, module.mode, module.include_last_offset, module.padding_idx, module.weight, zero_row
        )
    if isinstance(module, nn.Linear):
        return CompressedLinear(tables, module.bias, module.weight, zero_row)
    assert isinstance(module, nn.Embedding)
    return CompressedEmbedding(tables, module.padding_idx, module.weight, zero_row)


def _zero_row(modules: Sequence[nn.Module]) -> int | None:
    """Return the padding id of tables that hold one weight, unless somebody has given it a vector."""
    for module in modules:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            return None if bool(module.weight[module.padding_idx].any()) else module.padding_idx
    return None


def _tables_of(
    name: str, module: nn.Module, packing: Packing, counts: Mapping[str, Tensor]
) -> tuple[list[TableSpec], list[Tensor]]:
    """Describe a module's tables, and give their weights (V, D) as it holds them."""
    if isinstance(module, COLLECTIONS):
        parts = _configs_of(module)
        inner = module.embeddings if isinstance(module, EmbeddingCollection) else module.embedding_bags
        described = [(one.name, one.feature_names, f"{name}.{one.name}", inner[one.name].weight) for one in parts]
    else:
        described = [("table", ["table"], name, module.weight)]
    specs: list[TableSpec] = []
    for table, features, full_name, weight in described:
        _check_weight(full_name, weight)
        count = torch.as_tensor(counts[full_name]).long() if full_name in counts else None
        if count is not None and count.shape != weight.shape[:1]:
            raise RecembError(f"counts of {full_name} have shape {tuple(count.shape)}, not ({weight.shape[0]},).")
        ordered = packing.table in _ORDERED
        specs.append(
            _Weighed(
                name=table, num_embeddings=weight.shape[0], embedding_dim=weight.shape[1], feature_names=list(features),
                counts=count if ordered else None, looked_up=None if ordered else count, precision=packing.precision,
            )
        )  # fmt: skip
    return specs, [weight.detach() for *_, weight in described]


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise RecembError(f"{name} has no values yet (it is on the meta device); load the weights before compressing.")
    if not weight.is_floating_point():
        raise RecembError(f"{name} holds {weight.dtype}; only tables of floats can be compressed.")
    if not bool(torch.isfinite(weight).all()):
        raise RecembError(f"{name} holds NaN or infinite numbers, from a training that diverged; it is left as it is.")


def _configs_of(module: nn.Module) -> list[Any]:
    """The configs of a collection's tables."""
    if isinstance(module, EmbeddingCollection):
        return list(module.embedding_configs())
    configs = list(module.embedding_bag_configs())  # type: ignore[operator]
    if isinstance(module, FusedEmbeddingBagCollection) and len({(one.pooling, one.data_type) for one in configs}) > 1:
        raise RecembError(
            "a FusedEmbeddingBagCollection whose tables differ in pooling or data type gives its features in an order "
            "of its own; split it into one collection for each."
        )
    return configs


def _check_counts(counts: Mapping[str, Tensor], targets: Sequence[Target]) -> None:
    known = []
    for target in targets:
        name, module = target.name, target.module
        known += [f"{name}.{one.name}" for one in _configs_of(module)] if isinstance(module, COLLECTIONS) else [name]
    for name, count in counts.items():
        if name not in known:
            raise RecembError(f"counts are given for {name!r}, which is none of the tables: {', '.join(known)}.")
        values = torch.as_tensor(count)
        if values.is_floating_point() or values.is_complex() or bool((values < 0).any()):
            raise RecembError(f"counts of {name} must be whole numbers that are not negative, not {values.dtype}.")


@dataclass(kw_only=True)
class _Weighed(TableSpec):
    """A table whose ids are in any order, and how often each is looked up."""

    looked_up: Tensor | None = None

    @property
    def popularity(self) -> Tensor:
        """(V,) float64, as in `TableSpec`."""
        return super().popularity if self.looked_up is None else self.looked_up.double() + 1
