"""Work on threads with the results in order and only a few of them alive at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from recemb.datasets.machine import usable_cores

In = TypeVar("In")
Out = TypeVar("Out")


def ordered(
    pool: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], ahead: int = 0
) -> Iterator[Out]:
    """Yield `function(item)` for every item, in order, computed by `pool` at most `ahead` items ahead.

    Args:
        pool: the threads; what is still waiting there is cancelled when the caller stops early.
        function: what to do with an item; an exception surfaces in the item's turn.
        items: read lazily on the caller's thread.
        ahead: results held or in work at one time; 0 = one more than there are cores.
    """
    ahead = ahead or usable_cores() + 1
    pending: deque[Future[Out]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
