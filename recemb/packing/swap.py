"""Compresses the tables of any PyTorch model in place: nn.Embedding, nn.EmbeddingBag and torchrec's collections."""

import fnmatch
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recemb.budget import format_bytes
from recemb.options import RecembError
from recemb.packing.serving import ServingTables
from recemb.packing.standins import CompressedCollection, CompressedEmbedding, CompressedEmbeddingBag
from recemb.plan import sized
from recemb.tables.base import TableSpec, total_full_bytes
from recemb.tables.precision import check_precision
from recemb.tables.registry import check_approximates, config_from_dict


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How tables shall be held.

    Attributes:
        table: the method; rows stay as they are, but for their precision, when not given.
        budget: serving bytes of each matched module, as a share of its fp32 tables (1/8) or a size (64MiB); what the
            options say when not given.
        precision: how rows are held: fp32, fp16, int8, int4 or int2.
        options: of the method, by name.
    """

    table: str = "full"
    budget: str | int | float | None = None
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.precision)


class Swapped(NamedTuple):
    """One module that was replaced.

    Attributes:
        name: its name in the model.
        table: the method.
        bytes_before: of its weights.
        bytes_after: every byte that serving needs now.
        error: root of the mean squared difference of a vector's entries, over the root of their mean square; ids count
            as often as they are looked up where counts were given.
    """

    name: str
    table: str
    bytes_before: int
    bytes_after: int
    error: float

    def __str__(self) -> str:
        before, after = (format_bytes(size) for size in (self.bytes_before, self.bytes_after))
        smaller = self.bytes_before / self.bytes_after
        return (
            f"{self.name}: {self.table}, {before} -> {after} ({smaller:.3g}x smaller), relative error {self.error:.4f}"
        )


def compress(
    model: nn.Module,
    plan: Packing | Mapping[str, Packing],
    *,
    counts: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> list[Swapped]:
    """Replace a model's tables by compressed ones that give nearly the same vectors, without training.

    The new modules take the same inputs and give the same shapes; their rows are no parameters any more, so they serve
    and do not learn. Gradients still reach whatever is behind them. How near the vectors are is in the result: look at
    it, for a method that does not suit a table may lose most of it.

    Args:
        model: any module with `nn.Embedding`, `nn.EmbeddingBag` (sum or mean) or torchrec `EmbeddingBagCollection`
            inside; it is changed in place.
        plan: how to hold the tables, by patterns of module names (`*.emb_*`, as in a shell), the first that matches
            counts; one `Packing` alone is for all of them.
        counts: how often each id was looked up, (V,) by name: the module's, or module.table of a collection. Popular
            ids then come out nearer. `frequency`, `mixed_dimension` and `magnitude` take them only if they fall from
            id 1 on (ids numbered by frequency, id 0 being the one that rare ids share), and the first two need them.
        seed: of what is random, such as k-means.

    Returns:
        What was replaced.

    Raises:
        RecembError: nothing matches, a budget cannot be met, a method cannot be made from trained tables, or a module
            cannot be compressed; the model is then as it was.

    Example::

        model = nn.Sequential(nn.EmbeddingBag(100_000, 16), nn.Linear(16, 1))
        compress(model, {"0": Packing(table="low_rank", budget="1/8", precision="int8")})
    """
    patterns = {"*": plan} if isinstance(plan, Packing) else dict(plan)
    found = [
        (name, module) for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, _KINDS)
    ]
    chosen = [
        (name, module, packing)
        for name, module in found
        if not any(name.startswith(f"{outer}.") for outer, one in found if isinstance(one, EmbeddingBagCollection))
        if (packing := next((one for key, one in patterns.items() if fnmatch.fnmatchcase(name, key)), None))
    ]
    names = ", ".join(name or "(the model itself)" for name, _ in found) or "none"
    for key in patterns:
        if not any(fnmatch.fnmatchcase(name, key) for name, _, _ in chosen):
            raise RecembError(f"no table of the model is called like {key!r}; its tables: {names}.")
    if any(name == "" for name, _, _ in chosen):
        raise RecembError("the model itself is a table and cannot be replaced in place; put it into a module.")
    # All are made before the first one is put in, so that an error leaves the model as it was.
    _check_counts(counts or {}, chosen)
    used = Counter(id(one) for module in model.modules() for one in module._parameters.values() if one is not None)
    made: dict[int, nn.Module] = {}
    report = []
    for name, module, packing in chosen:
        _refuse_what_would_be_lost(name, module, used)
        if id(module) not in made:
            replacement, swapped = _packed(name, module, packing, counts or {}, seed)
            made[id(module)] = replacement.train(module.training)
            report.append(swapped)
    for name, module, _ in chosen:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(module)])
    return report


_KINDS = (nn.Embedding, nn.EmbeddingBag, EmbeddingBagCollection)
_ORDERED = ("frequency", "mixed_dimension", "magnitude")
"""Methods that take counts only of ids that are numbered by them."""


def _packed(
    name: str, module: nn.Module, packing: Packing, counts: Mapping[str, Tensor], seed: int
) -> tuple[nn.Module, Swapped]:
    """Make the module that takes another one's place."""
    specs, weights = _tables_of(name, module, packing, counts)
    config = config_from_dict({"name": packing.table, **packing.options})
    check_approximates(config)
    if packing.table in ("frequency", "mixed_dimension") and any(spec.counts is None for spec in specs):
        raise RecembError(
            f"{name}: table={packing.table} needs to know how often each id is looked up; pass counts, with ids "
            "numbered by falling frequency."
        )
    made = sized(config, packing.budget, specs)
    tables = ServingTables(*made.approximate(specs, weights, seed)[:2])
    error = size = 0.0
    with torch.no_grad():
        for index, (spec, weight) in enumerate(zip(specs, weights, strict=True)):
            popularity = spec.popularity.unsqueeze(1)
            error += float(((tables.vectors(index, torch.arange(len(weight))) - weight).square() * popularity).sum())
            size += float((weight.square() * popularity).sum())
    relative = (error / size) ** 0.5 if size else 0.0
    swapped = Swapped(name, packing.table, total_full_bytes(specs), tables.serving_bytes, relative)
    if isinstance(module, EmbeddingBagCollection):
        return CompressedCollection(tables, module.embedding_bag_configs(), module.is_weighted()), swapped
    if isinstance(module, nn.EmbeddingBag):
        return CompressedEmbeddingBag(tables, module.mode, module.include_last_offset, module.padding_idx), swapped
    assert isinstance(module, nn.Embedding)
    padding = module.padding_idx
    # Unless somebody has given the padding id a vector.
    padding = None if padding is not None and bool(module.weight[padding].any()) else padding
    return CompressedEmbedding(tables, padding), swapped


def _tables_of(
    name: str, module: nn.Module, packing: Packing, counts: Mapping[str, Tensor]
) -> tuple[list[TableSpec], list[Tensor]]:
    """Describe a module's tables, and give their weights (V, D)."""
    if isinstance(module, EmbeddingBagCollection):
        weights = [bag.weight for bag in module.embedding_bags.values()]
        parts = [(one.name, one.feature_names, f"{name}.{one.name}") for one in module.embedding_bag_configs()]
    else:
        if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
            raise RecembError(f"{name} takes the largest of a bag's vectors; only sums and means can be compressed.")
        if module.max_norm is not None:
            raise RecembError(f"{name} renormalises its rows (max_norm), which compressed tables do not.")
        weights, parts = [module.weight], [("table", ["table"], name)]
    specs: list[TableSpec] = []
    for weight, (table, features, full_name) in zip(weights, parts, strict=True):
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise RecembError(
                f"{full_name} holds {weight.dtype} on {weight.device.type}; compress a float32 model on the CPU, and "
                "move it afterwards."
            )
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
    return specs, [weight.detach() for weight in weights]


def _check_counts(counts: Mapping[str, Tensor], chosen: list[tuple[str, nn.Module, Packing]]) -> None:
    known = []
    for name, module, _ in chosen:
        collected = module.embedding_bag_configs() if isinstance(module, EmbeddingBagCollection) else None
        known += [name] if collected is None else [f"{name}.{one.name}" for one in collected]
    for name, count in counts.items():
        if name not in known:
            raise RecembError(f"counts are given for {name!r}, which is none of the tables: {', '.join(known)}.")
        values = torch.as_tensor(count)
        if values.is_floating_point() or values.is_complex() or bool((values < 0).any()):
            raise RecembError(f"counts of {name} must be whole numbers that are not negative, not {values.dtype}.")


def _refuse_what_would_be_lost(name: str, module: nn.Module, used: Mapping[int, int]) -> None:
    """Raise where a module does more than look up, or where others hold its weight too."""
    (kind,) = [kind for kind in _KINDS if isinstance(module, kind)]
    hooks = (module._forward_hooks, module._forward_pre_hooks, getattr(module, "parametrizations", None))
    if type(module).forward is not kind.forward or any(hooks):
        raise RecembError(
            f"{name} ({type(module).__name__}) does more than a {kind.__name__} does, by a forward of its own, hooks "
            "or parametrizations, which would be lost; leave it out of the plan."
        )
    if any(used[id(one)] > 1 for one in module.parameters()):
        raise RecembError(
            f"the weight of {name} is also that of another module, which would keep it, so that nothing would be "
            "saved; leave it out of the plan, or untie them."
        )


@dataclass(kw_only=True)
class _Weighed(TableSpec):
    """A table whose ids are in any order, and how often each is looked up."""

    looked_up: Tensor | None = None

    @property
    def popularity(self) -> Tensor:
        """(V,) float64, as in `TableSpec`."""
        return super().popularity if self.looked_up is None else self.looked_up.double() + 1
