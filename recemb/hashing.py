"""Integer hashes on tensors: seeded, salted by name, the same on every platform and in every version.

The mixing function is the finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), written in wrapping 64-bit integer arithmetic, which eager torch, `torch.export` and ONNX
share. `HASH_VERSION` is part of every salt: trained rows are worthless under another hash, so a change of the function
must change the version.
"""

import hashlib

import torch
from torch import Tensor

from recemb.fusing import fused

HASH_VERSION = 1

KEEPS_IDS = 0
"""The salt that stands for a table whose ids are its row numbers, beside tables that are hashed."""

# The constants of SplitMix64 as signed 64-bit integers.
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64
_LARGEST = 2**63 - 1


def salt_of(name: str, probe: int = 0) -> int:
    """Give the 64-bit salt of a table's name and a probe number.

    Salting by name, not by position, keeps every other table's rows in place when a table is added or removed.

    Returns:
        A signed 64-bit integer.
    """
    text = f"recemb:{HASH_VERSION}:{probe}:{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers arithmetically; masking the copies of the sign bit makes the shift a logical one.
    return (values >> bits) & (_LARGEST >> (bits - 1))


def mix(ids: Tensor, salt: Tensor | int) -> Tensor:
    """Hash 64-bit integers.

    Args:
        ids: (N,) int64, any value.
        salt: int64, broadcast against `ids`.

    Returns:
        (N,) int64 spread over `0..2**63 - 1`.
    """
    mixed = ids ^ salt
    mixed = (mixed ^ _shift_right(mixed, 30)) * _MULTIPLIER_1
    mixed = (mixed ^ _shift_right(mixed, 27)) * _MULTIPLIER_2
    return (mixed ^ _shift_right(mixed, 31)) & _LARGEST


def hash_to_rows(ids: Tensor, salt: Tensor | int, rows: Tensor | int) -> Tensor:
    """Hash ids into `0..rows - 1`.

    Args:
        ids: (N,) int64.
        salt: int64, from `salt_of`, broadcast against `ids`.
        rows: int64, at least 1, broadcast against `ids`.

    Returns:
        (N,) int64 row numbers. The modulus' bias is below rows / 2**63.
    """
    return torch.remainder(mix(ids, salt), rows)


@fused
def hash_or_keep(ids: Tensor, salts: Tensor, rows: Tensor) -> Tensor:
    """Hash ids as `hash_to_rows` does, but for those with the salt `KEEPS_IDS`, which stay as they are."""
    return torch.where(salts == KEEPS_IDS, ids, hash_to_rows(ids, salts, rows))
