"""Finds the tables of a model, the names they go by, and which modules hold one weight between them."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from recemb.options import RecembError
from recemb.packing.packing import Packing

COLLECTIONS = (EmbeddingBagCollection, FusedEmbeddingBagCollection, EmbeddingCollection)
TABLES = (nn.Embedding, nn.EmbeddingBag, *COLLECTIONS)


@dataclass(frozen=True)
class Target:
    """A table, or a collection of tables, that is to be replaced.

    Attributes:
        module: what is replaced; of modules that hold one weight, the first.
        packing: how its rows shall be held.
        names: where the module is in the model; the first one names it in reports.
        tied: other modules that hold the same weight, with all their names: further tables, and linear layers.
    """

    module: nn.Module
    packing: Packing
    names: list[str]
    tied: list[tuple[nn.Module, list[str]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def other_names(self) -> list[str]:
        """All names but the first."""
        return self.names[1:] + [name for _, names in self.tied for name in names]


def find_targets(model: nn.Module, patterns: Mapping[str, Packing]) -> list[Target]:
    """Choose the tables of a model by patterns of their names, with all that hold their weights.

    Raises:
        RecembError: a pattern matches nothing, a table does more than look up, or something else needs its weight.
    """
    names = _names_by_module(model)
    tables = {key: (module, known) for key, (module, known) in names.items() if isinstance(module, TABLES)}
    inner = {id(part) for module, _ in tables.values() if isinstance(module, COLLECTIONS) for part in module.modules()}
    tables = {key: found for key, found in tables.items() if key not in inner or isinstance(found[0], COLLECTIONS)}
    packings = {key: packing for key, (_, known) in tables.items() if (packing := _packing_of(known, patterns))}
    _check_patterns(patterns, [known for _, known in tables.values()])
    for key in packings:
        _refuse_what_would_be_lost(*tables[key])
    targets: list[Target] = []
    done: set[int] = set()
    for key, packing in packings.items():
        if key in done:
            continue
        module, known = tables[key]
        if isinstance(module, COLLECTIONS):
            _refuse_shared(known[0], module, names)
            targets.append(Target(module, packing, known))
            continue
        tied = _tied(module, known[0], packing, names, packings)
        done |= {id(one) for one, _ in tied}
        targets.append(Target(module, packing, known, tied))
    return targets


def _names_by_module(model: nn.Module) -> dict[int, tuple[nn.Module, list[str]]]:
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), (module, []))[1].append(name)
    return found


def _packing_of(names: list[str], patterns: Mapping[str, Packing]) -> Packing | None:
    """Return what the first pattern that matches says; a module is replaced under all of its names."""
    chosen = {
        name: packing
        for name in names
        if (packing := next((one for key, one in patterns.items() if fnmatch.fnmatchcase(name, key)), None))
    }
    packings = list(chosen.values())
    if any(packing != packings[0] for packing in packings):
        raise RecembError(f"{' and '.join(chosen)} are one module, and the plan holds them in different ways.")
    if packings and "" in names:
        raise RecembError("the model itself is a table and cannot be replaced in place; put it into a module.")
    return packings[0] if packings else None


def _check_patterns(patterns: Mapping[str, Packing], tables: list[list[str]]) -> None:
    names = [name for known in tables for name in known]
    for key in patterns:
        if not any(fnmatch.fnmatchcase(name, key) for name in names):
            known = ", ".join(name or "(the model itself)" for name in names) or "none"
            raise RecembError(f"no table of the model is called like {key!r}; its tables: {known}.")


def _tied(
    module: nn.Module,
    name: str,
    packing: Packing,
    names: Mapping[int, tuple[nn.Module, list[str]]],
    packings: Mapping[int, Packing],
) -> list[tuple[nn.Module, list[str]]]:
    """Find the other modules that hold a table's weight."""
    tied = []
    for key, (other, known) in names.items():
        if other is module or not any(one is module.weight for one in other._parameters.values()):
            continue
        if isinstance(other, nn.Embedding | nn.EmbeddingBag):
            if packings.get(key) != packing:
                raise RecembError(
                    f"{name} and {known[0]} hold one weight, and the plan has {known[0]} "
                    f"{'in another way' if key in packings else 'left out'}; give both the same, or untie them."
                )
        elif type(other).forward is nn.Linear.forward and other._parameters.get("weight") is module.weight:
            _refuse_what_would_be_lost(other, known)
        else:
            raise RecembError(
                f"the weight of {name} is also that of {known[0]} ({type(other).__name__}), which cannot read a "
                "compressed table; leave it out of the plan, or untie them."
            )
        tied.append((other, known))
    return tied


def _refuse_shared(name: str, collection: nn.Module, names: Mapping[int, tuple[nn.Module, list[str]]]) -> None:
    """Raise where the weight of a table of a collection is held elsewhere too."""
    own = {id(part) for part in collection.modules()}
    weights = {id(one) for one in collection.parameters()}
    for key, (other, known) in names.items():
        if key not in own and any(id(one) in weights for one in other._parameters.values() if one is not None):
            raise RecembError(
                f"a table of {name} is also the weight of {known[0]}, which would keep it, so that nothing would be "
                "saved; leave it out of the plan, or untie them."
            )


def _refuse_what_would_be_lost(module: nn.Module, names: list[str]) -> None:
    """Raise where a module does more than the class of torch or torchrec whose place it has."""
    kind = next(kind for kind in (*TABLES, nn.Linear) if isinstance(module, kind))
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        getattr(module, "parametrizations", None), "forward" in vars(module),
    )  # fmt: skip
    if type(module).forward is not kind.forward or any(hooks):
        raise RecembError(
            f"{names[0]} ({type(module).__name__}) does more than a {kind.__name__} does, by a forward of its own, "
            "hooks or parametrizations, which would be lost; leave it out of the plan."
        )
    if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        raise RecembError(f"{names[0]} takes the largest of a bag's vectors; only sums and means can be compressed.")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        raise RecembError(f"{names[0]} renormalises its rows (max_norm), which compressed tables do not.")
