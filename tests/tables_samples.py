"""Logical tables, batches and method variants that the table tests share."""

from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import TableSpec, get_table, list_tables
from recemb.tables.base import TableConfig


class Variant(NamedTuple):
    """A method with some of its options set.

    Attributes:
        name: for the test's name.
        method: as registered.
        options: what differs from the defaults.
        divides: the vector's width must be a multiple of it.
        coarse: its sizes come in large steps, so that much of a budget may stay unused.
    """

    name: str
    method: str
    options: dict[str, Any] = MappingProxyType({})  # type: ignore[assignment]
    divides: int = 1
    coarse: bool = False

    def config(self) -> TableConfig:
        return get_table(self.method).config(**self.options)


# A part more of pq is a byte more for every id of a table.
VARIANTS = [Variant(method.name, method.name, coarse=method.name == "pq") for method in list_tables()] + [
    Variant("auto-projected", "auto", {"project": True}),
    Variant("hashing-plain", "hashing", {"threshold": 0}),
    Variant("mixed_dimension-feature", "mixed_dimension", {"blocks": "feature"}),
    Variant("mixed_dimension-powers", "mixed_dimension", {"power_of_two": True, "num_blocks": 16}, coarse=True),
    Variant("mixed_dimension-every-id", "mixed_dimension", {"least_width": 1, "num_blocks": 16}),
    Variant("mixed_dimension-alpha", "mixed_dimension", {"alpha": 0.3}),
    Variant("compositional-quotient", "compositional", {"large": "quotient", "threshold": 0}, coarse=True),
    Variant("compositional-add", "compositional", {"combine": "add"}),
    Variant("compositional-concat", "compositional", {"combine": "concat"}, divides=2, coarse=True),
    Variant("compositional-path", "compositional", {"combine": "path", "hidden": 1}),
    Variant("compositional-radix3", "compositional", {"scheme": "mixed_radix", "partitions": 3}),
    Variant("compositional-chinese", "compositional", {"scheme": "chinese_remainder", "partitions": 3}),
    Variant("magnitude-shared", "magnitude", {"pruned": "shared"}),
    Variant("multiplexed-plain", "multiplexed", {"threshold": 0}),
    Variant("multiplexed-probes", "multiplexed", {"probes": 2}, divides=2),
    Variant("pq-centroids", "pq", {"centroids": 16}, coarse=True),
]

SIZES = {"gender": 3, "city": 307, "item": 5000, "user": 1201}


def zipf_counts(num_embeddings: int) -> torch.Tensor:
    """Frequencies of ids numbered by descending frequency; id 0 was seen a few times."""
    counts = (10 * num_embeddings / torch.arange(1, num_embeddings + 1)).long().clamp(min=1)
    return torch.cat([torch.tensor([7]), counts[: num_embeddings - 1]])


def make_specs(dim: int = 16, max_length: int | None = None, counts: bool = True) -> list[TableSpec]:
    return [
        TableSpec(
            name=name,
            num_embeddings=size,
            embedding_dim=dim,
            counts=zipf_counts(size) if counts else None,
            max_length=max_length,
        )
        for name, size in SIZES.items()
    ]


def make_batch(specs: list[TableSpec], bags: int = 7, seed: int = 0, empty: bool = True) -> KeyedJaggedTensor:
    """A batch with bags of 0 to 3 ids (of 0 or 1 where tables take one id), the last id of every table included."""
    random = torch.Generator().manual_seed(seed)
    keys = [feature for spec in specs for feature in spec.feature_names]
    sizes = [spec.num_embeddings for spec in specs for _ in spec.feature_names]
    longest = 1 if all(spec.max_length == 1 for spec in specs) else 3
    lengths = torch.randint(0 if empty else 1, longest + 1, (len(keys), bags), generator=random)
    lengths[:, 0] = longest
    values = []
    for size, row in zip(sizes, lengths, strict=True):
        ids = torch.randint(0, size, (int(row.sum()),), generator=random)
        ids[0] = size - 1
        ids[1:2] = 0
        values.append(ids)
    return KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=lengths.flatten())
