"""Logical tables and batches that the table tests share."""

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import TableSpec

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
        values.append(ids)
    return KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=lengths.flatten())
