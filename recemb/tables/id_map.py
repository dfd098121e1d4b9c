"""Exact maps from ids to the numbers of those that are kept, in the fewest bytes.

Some of the ids 0 .. V - 1 are kept and numbered 0 .. n - 1 in their order. Three forms tell, for any id, whether it is
kept and its number; which of them is smallest depends on V and n alone:

- `bitmap`: a bit for each id, and for every word of 64 bits how many are set before it (rank, as in Jacobson,
  "Space-efficient Static Trees and Graphs", FOCS 1989): 0.1875 bytes an id.
- `keys8`, `keys16`, `keys32`: the kept ids in order without their high bits, and for every value of the high bits where
  its ids begin; 1, 2 or 4 bytes a kept id.

A key of 16 bits is held as two bytes, the lower one first: DistributedDataParallel broadcasts every buffer, and no
backend of torch.distributed takes 16-bit integers. Saved it is one number; `split_keys` and `joined_keys` go between
the two.

All of it is integer arithmetic on whole tensors.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from recemb.fusing import fused

_WORD = 64
_KEYS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def map_bytes(num_ids: int, num_kept: int) -> int:
    """Bytes of the smallest map for n kept of V ids."""
    return min(_sizes(num_ids, num_kept).values())


def map_form(num_ids: int, num_kept: int) -> str:
    """Name of the smallest map for n kept of V ids."""
    sizes = _sizes(num_ids, num_kept)
    return min(sizes, key=sizes.__getitem__)


def make_map(kept: Tensor, num_ids: int) -> dict[str, Tensor]:
    """Make the smallest map.

    Args:
        kept: (n,) int64, n >= 1, the kept ids in ascending order, each once.
        num_ids: V.

    Returns:
        The tensors that `find` reads.
    """
    form, counting = map_form(num_ids, len(kept)), _counting(len(kept))
    if form == "bitmap":
        bits = np.zeros(-(-num_ids // _WORD) * _WORD, dtype=bool)
        bits[kept.numpy()] = True
        words = torch.from_numpy(np.packbits(bits, bitorder="little").view("<i8"))
        per_word = torch.from_numpy(bits.reshape(-1, _WORD).sum(axis=1))
        return {"words": words, "ranks": (per_word.cumsum(0) - per_word).to(counting)}
    bits_of_key = int(form.removeprefix("keys"))
    buckets = torch.arange(-(-num_ids // 2**bits_of_key) + 1) << bits_of_key
    keys = kept & (2**bits_of_key - 1)
    signed = keys if bits_of_key == 8 else keys - ((keys >> (bits_of_key - 1)) << bits_of_key)
    found = split_keys(signed.to(_KEYS[bits_of_key]))
    return {"buckets": torch.searchsorted(kept, buckets).to(counting), "keys": found}


def split_keys(keys: Tensor) -> Tensor:
    """Write keys (n,) int16 as (n, 2) uint8, in the same memory; leave others as they are."""
    return keys.contiguous().view(torch.uint8).view(-1, 2) if keys.dtype == torch.int16 else keys


def joined_keys(keys: Tensor) -> Tensor:
    """Undo `split_keys`, in the same memory."""
    return keys.view(torch.int16).squeeze(1) if keys.dim() == 2 else keys


def longest_bucket(tensors: Mapping[str, Tensor]) -> int:
    """The most kept ids that share their high bits: how far `find` searches among keys."""
    return int(tensors["buckets"].diff().max()) if "buckets" in tensors else 0


def find(tensors: Mapping[str, Tensor], ids: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Look ids up.

    Args:
        tensors: of `make_map`.
        ids: int64, each in 0 .. V - 1, of any shape.
        longest: of `longest_bucket`.

    Returns:
        How many kept ids are smaller, which is the number of an id that is kept, int64; and whether it is, bool.
    """
    if "words" in tensors:
        return _find_bit(ids, tensors["words"], tensors["ranks"])
    halvings = longest.bit_length()
    if ids.is_cuda:  # where every number is compiled for; more than are needed find the same
        halvings = -(-halvings // 4) * 4
    keys = tensors["keys"]
    if not torch.compiler.is_exporting():  # ONNX has no other view of the same bytes
        keys = joined_keys(keys)
    return _find_key(ids, keys, tensors["buckets"], halvings)


@fused
def _find_bit(ids: Tensor, words: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    word, bit = ids >> 6, ids & (_WORD - 1)
    bits = words[word]
    # Functions where shifts differ from element to element: ONNX knows these, and not the operators.
    below = bits & (torch.bitwise_left_shift(torch.ones_like(bit), bit) - 1)
    return ranks[word] + _count_bits(below), (torch.bitwise_right_shift(bits, bit) & 1).bool()


@fused
def _find_key(ids: Tensor, keys: Tensor, buckets: Tensor, halvings: int) -> tuple[Tensor, Tensor]:
    bits_of_key = keys.element_size() * 8 * (keys.shape[1] if keys.dim() == 2 else 1)
    bucket, wanted = ids >> bits_of_key, ids & (2**bits_of_key - 1)
    low, end = buckets[bucket].long(), buckets[bucket + 1].long()
    high, last = end, len(keys) - 1
    for _ in range(halvings):
        middle = (low + high) >> 1
        smaller = (_unsigned(keys, middle.clamp(max=last)) < wanted) & (low < high)
        low, high = torch.where(smaller, middle + 1, low), torch.where(smaller, high, middle)
    return low, (low < end) & (_unsigned(keys, low.clamp(max=last)) == wanted)


def _sizes(num_ids: int, num_kept: int) -> dict[str, int]:
    count = _counting(num_kept).itemsize
    words = -(-num_ids // _WORD)
    sizes = {"bitmap": words * (8 + count)}
    for bits in _KEYS:
        sizes[f"keys{bits}"] = num_kept * bits // 8 + (-(-num_ids // 2**bits) + 1) * count
    return sizes


def _counting(num_kept: int) -> torch.dtype:
    """The smaller type of numbers of kept ids that takes n."""
    return torch.int32 if num_kept < 2**31 else torch.int64


def _unsigned(keys: Tensor, places: Tensor) -> Tensor:
    """Read the keys at some places as numbers that are not negative, int64."""
    if keys.dim() == 2:
        low, high = keys[places].long().unbind(-1)
        return low + (high << 8)
    return keys[places].long() & (2 ** (keys.element_size() * 8) - 1)


def _count_bits(words: Tensor) -> Tensor:
    """Count the set bits of 64-bit integers: in pairs, in fours, in bytes, then all bytes by one product."""
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((words * 0x0101010101010101) >> 56) & 0xFF
