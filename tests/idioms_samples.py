"""Modules of every method, however their rows are held, and ways to copy them."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruned_samples import random_structure
from tables_samples import VARIANTS, make_batch, make_specs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, TableSpec, get_table
from recemb.packing.serving import ServingTables
from recemb.tables.bags import flat_ids
from recemb.tables.base import CompressedTable, TableConfig, total_full_bytes
from recemb.tables.magnitude import MagnitudeConfig, MagnitudeTable

PLAIN, FUSED, QUANTIZED, SERVING = "plain", "fused", "quantized", "serving"
FLOATS = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
BROADCAST = {torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.int8, torch.uint8}
"""Types that gloo and NCCL both take."""


def specs_of(size: int | None = None, precision: str = "fp32") -> list[TableSpec]:
    specs = [TableSpec(name="huge", num_embeddings=size, embedding_dim=16)] if size else make_specs()
    for spec in specs:
        spec.precision = precision
    return specs


def packed(unit: str, size: int | None = None, share: float = 0.02) -> CompressedTable:
    """Pruned tables as they are after training; of so many ids, which decides the form of their map."""
    specs = specs_of(size)
    structure = random_structure(specs, unit, share)
    return MagnitudeTable(MagnitudeConfig(unit=unit), specs, structure.layout(specs))


def searching(name: str) -> CompressedTable:
    """Tables as they are while it is learned what of them to keep."""
    specs = specs_of()
    return get_table(name).config().fit(specs, total_full_bytes(specs) // 4).pruning_table(specs)


METHODS: dict[str, Callable[[], TableConfig | CompressedTable]] = {
    variant.name: lambda variant=variant: variant.config().fit(specs_of(), total_full_bytes(specs_of()) // 5)
    for variant in VARIANTS
} | {
    "rows-keys16": lambda: packed("row", 3_000_000, 0.001),
    "entries-keys16": lambda: packed("entry", 3_000_000, 0.001),
    "entries-bitmap": lambda: packed("entry", share=0.3),
    **{f"{name}-search": lambda name=name: searching(name) for name in ("magnitude", "pep", "optembed")},
}
FEW = {
    (PLAIN, "full"), (FUSED, "multiplexed"), (QUANTIZED, "mixed_dimension"), (SERVING, "compositional"),
    (PLAIN, "mixed_dimension"), (FUSED, "mixed_dimension"), (SERVING, "rows-keys16"), (PLAIN, "entries-keys16"),
    (PLAIN, "pep-search"),
}  # fmt: skip


class Subject:
    """A module of recemb's, a batch for it, and the vectors that it gives."""

    def __init__(self, module: nn.Module, batch: KeyedJaggedTensor) -> None:
        self.module = module
        self.batch = batch
        self.wanted = self.of(module).detach().clone()

    def of(self, module: nn.Module) -> Tensor:
        torch.manual_seed(0)  # OptEmbed's search draws widths
        inner = module.module if isinstance(module, DistributedDataParallel) else module
        if isinstance(inner, ServingTables):
            return module(*flat_ids(self.batch, inner.features))
        return module(self.batch).values()


def collection(name: str, **options: Any) -> CompressedEmbeddingBagCollection:
    method = METHODS[name]()
    specs = method.specs if isinstance(method, CompressedTable) else specs_of()
    made = CompressedEmbeddingBagCollection(specs, method, **options)
    # Rows of halves as numbers, so that casts and quantization leave their size alone.
    made.write([torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) for weight in made.weights])
    return made


def subject(storage: str, name: str) -> Subject:
    made = collection(name, optimizer=FusedOptimizer(lr=0.1) if storage == FUSED else None)
    batch = make_batch(made.specs)
    if storage == QUANTIZED:
        return Subject(made.quantized(), batch)
    if storage == SERVING:
        return Subject(ServingTables(made.method, made.weights), batch)
    return Subject(made, batch)


def cases(*storages: str) -> pytest.MarkDecorator:
    """Every method in these storages, most of them only in the wide sweep."""
    return pytest.mark.parametrize(
        ("storage", "name"),
        [
            pytest.param(
                storage, name, marks=() if (storage, name) in FEW else pytest.mark.wide, id=f"{storage}-{name}"
            )
            for storage in storages
            for name in METHODS
            if storage in (PLAIN, FUSED) or not name.endswith("-search")
        ],
    )


def through_torch_save(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, copy.copy, lambda one: pickle.loads(pickle.dumps(one)), through_torch_save]
