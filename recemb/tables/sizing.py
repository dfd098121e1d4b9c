"""What several methods share when they choose sizes: which tables are too small to be worth compressing."""

from collections.abc import Callable, Sequence

from recemb.tables.base import TableSpec


def affordable_threshold(
    specs: Sequence[TableSpec], threshold: int, budget_bytes: int, least_bytes: Callable[[int], int]
) -> int:
    """Lower a threshold, below which tables stay whole, until a budget can pay for them.

    Tables of a few ids cost next to nothing whole, and every id of theirs is seen often. Whole tables may take up to
    half of the budget, and the others must fit beside them.

    Args:
        specs: the logical tables.
        threshold: tables of at most this many ids should stay whole.
        budget_bytes: the budget, in bytes.
        least_bytes: the fewest serving bytes at a threshold.

    Returns:
        The largest threshold, at most the given one, that fits; 0 where none does.
    """
    sizes = sorted({spec.num_embeddings for spec in specs if spec.num_embeddings <= threshold}, reverse=True)
    for candidate in [threshold, *sizes[1:]]:
        whole = sum(spec.full_bytes for spec in specs if spec.num_embeddings <= candidate)
        if 2 * whole <= budget_bytes and least_bytes(candidate) <= budget_bytes:
            return candidate
    return 0
