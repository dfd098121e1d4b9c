"""Compresses the tables of any PyTorch model in place: nn.Embedding, nn.EmbeddingBag and torchrec's collections."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recemb.budget import format_bytes
from recemb.options import RecembError
from recemb.packing.serving import ServingTables
from recemb.plan import sized
from recemb.tables.bags import flat_ids
from recemb.tables.base import TableSpec, total_full_bytes
from recemb.tables.precision import check_precision
from recemb.tables.registry import config_from_dict


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
    and do not learn. Gradients still reach whatever is behind them.

    Args:
        model: any module with `nn.Embedding`, `nn.EmbeddingBag` (sum or mean) or torchrec `EmbeddingBagCollection`
            inside; it is changed in place.
        plan: how to hold the tables, by patterns of module names (`*.emb_*`, as in a shell), the first that matches
            counts; one `Packing` alone is for all of them.
        counts: how often each id was looked up, (V,) by name: the module's, or module.table of a collection. Popular
            ids then come out nearer. `frequency` and `mixed_dimension` need them, falling from id 1 on: ids numbered by
            frequency, id 0 being the one that rare ids share.
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
    made: dict[int, nn.Module] = {}
    report = []
    for name, module, packing in chosen:
        if id(module) not in made:
            made[id(module)], swapped = _packed(name, module, packing, counts or {}, seed)
            report.append(swapped)
    for name, module, _ in chosen:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(module)])
    return report


class CompressedEmbedding(nn.Module):
    """Stands in for an `nn.Embedding`: ids of any shape (...) to (..., D)."""

    def __init__(self, tables: ServingTables, padding_idx: int | None) -> None:
        super().__init__()
        self.tables = tables
        self.num_embeddings = tables.specs[0].num_embeddings
        self.embedding_dim = tables.specs[0].embedding_dim
        self.padding_idx = padding_idx

    def forward(self, input: Tensor) -> Tensor:
        """Look up; the padding id, where there is one, reads zeros."""
        ids = input.flatten().long()
        _check_range(ids, self.num_embeddings)
        vectors = self.tables.vectors(0, ids)
        if self.padding_idx is not None:
            vectors = vectors * (ids != self.padding_idx).unsqueeze(1)
        return vectors.view(*input.shape, self.embedding_dim)


class CompressedEmbeddingBag(nn.Module):
    """Stands in for an `nn.EmbeddingBag` that sums or averages, with the same arguments."""

    def __init__(self, tables: ServingTables, mode: str, include_last_offset: bool, padding_idx: int | None) -> None:
        super().__init__()
        self.tables = tables
        self.num_embeddings = tables.specs[0].num_embeddings
        self.embedding_dim = tables.specs[0].embedding_dim
        self.mode = mode
        self.include_last_offset = include_last_offset
        self.padding_idx = padding_idx

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Look up and pool: (B, L) ids, or (N,) ids and (B,) offsets, to (B, D)."""
        if (offsets is None) != (input.dim() == 2):
            raise RecembError("ids must be (B, L), or (N,) with the offsets of their bags.")
        if per_sample_weights is not None and self.mode != "sum":
            raise RecembError("per_sample_weights go with mode='sum' only, as in nn.EmbeddingBag.")
        ids = input.flatten().long()
        _check_range(ids, self.num_embeddings)
        if offsets is None:
            lengths = torch.full((input.shape[0],), input.shape[1])
        else:
            ends = offsets[1:] if self.include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(ids)])])
            lengths = ends - (offsets[:-1] if self.include_last_offset else offsets)
        bag = torch.repeat_interleave(lengths)
        weights = torch.ones(len(ids)) if per_sample_weights is None else per_sample_weights.flatten()
        if self.padding_idx is not None:
            weights = weights * (ids != self.padding_idx)
        return _pooled(self.tables.vectors(0, ids), weights, bag, len(lengths), self.mode == "mean")


class CompressedCollection(nn.Module):
    """Stands in for torchrec's `EmbeddingBagCollection`: KeyedJaggedTensor in, KeyedTensor out."""

    def __init__(self, tables: ServingTables, configs: list[EmbeddingBagConfig], weighted: bool) -> None:
        super().__init__()
        self.tables = tables
        self._configs = configs
        self._weighted = weighted
        self._spec_of_feature = [index for index, config in enumerate(configs) for _ in config.feature_names]

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The logical tables, as they were."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether ids come with weights."""
        return self._weighted

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool, weighted if the collection was: (B, D) for each feature."""
        keys = self.tables.features
        widths = [self._configs[spec].embedding_dim for spec in self._spec_of_feature]
        means = [self._configs[spec].pooling == PoolingType.MEAN for spec in self._spec_of_feature]
        if not self._weighted and not any(means):
            values, offsets = flat_ids(features, keys)
            return KeyedTensor(keys, widths, self.tables(values.long(), offsets))
        vectors = []
        for name, spec, mean in zip(keys, self._spec_of_feature, means, strict=True):
            jagged = features[name]
            ids, lengths = jagged.values().long(), jagged.lengths()
            _check_range(ids, self._configs[spec].num_embeddings)
            weights = jagged.weights() if self._weighted else torch.ones(len(ids))
            bag = torch.repeat_interleave(lengths)
            vectors.append(_pooled(self.tables.vectors(spec, ids), weights, bag, len(lengths), mean))
        return KeyedTensor(keys, widths, torch.cat(vectors, dim=1))


_KINDS = (nn.Embedding, nn.EmbeddingBag, EmbeddingBagCollection)


def _packed(
    name: str, module: nn.Module, packing: Packing, counts: Mapping[str, Tensor], seed: int
) -> tuple[nn.Module, Swapped]:
    """Make the module that takes another one's place."""
    specs, weights = _tables_of(name, module, packing, counts)
    config = config_from_dict({"name": packing.table, **packing.options})
    if not config.approximates():
        from recemb.packing.compress import approximating_methods

        raise RecembError(
            f"table={packing.table} cannot be made from trained tables, only trained; choose one of "
            f"{', '.join(approximating_methods())}."
        )
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
    specs = []
    for weight, (table, features, full_name) in zip(weights, parts, strict=True):
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise RecembError(
                f"{full_name} holds {weight.dtype} on {weight.device.type}; compress a float32 model on the CPU, and "
                "move it afterwards."
            )
        specs.append(
            TableSpec(
                name=table, num_embeddings=weight.shape[0], embedding_dim=weight.shape[1], feature_names=list(features),
                counts=counts.get(full_name), precision=packing.precision,
            )
        )  # fmt: skip
    return specs, [weight.detach() for weight in weights]


def _check_range(ids: Tensor, num_embeddings: int) -> None:
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= num_embeddings):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise RecembError(f"id {wrong} is out of range; the table has {num_embeddings} ids, 0 to {num_embeddings - 1}.")


def _pooled(vectors: Tensor, weights: Tensor, bag: Tensor, bags: int, mean: bool) -> Tensor:
    """Add up vectors (N, D), each times its weight (N,), by bag (N,); or average those with a weight: (B, D)."""
    pooled = vectors.new_zeros(bags, vectors.shape[1]).index_add(0, bag, vectors * weights.unsqueeze(1))
    if not mean:
        return pooled
    counts = weights.new_zeros(bags).index_add(0, bag, weights)
    return pooled / counts.clamp(min=1).unsqueeze(1)
