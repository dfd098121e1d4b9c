"""Places the names of lines beside the lines, so that a chart needs no legend where there is room for them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

GAP = 9.0  # pixels from the middle of a marker to the nearest edge of its label
MARKER = 6.0  # pixels that a marker reaches from its middle
FARTHEST = 16.0  # pixels that a name may be moved up or down from the height of its marker


class Box(NamedTuple):
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """Area shared with another rectangle, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def covers(self, x: float, y: float) -> bool:
        """Whether a place is inside."""
        return self.left <= x <= self.right and self.bottom <= y <= self.top


class Line(NamedTuple):
    """One line of a chart: its points in pixels from left to right, and the size of its label in pixels."""

    points: Sequence[tuple[float, float]]
    label_size: tuple[float, float]


class Place(NamedTuple):
    """Where a label goes: beside which point, and the offset of the label's lower left corner from it in pixels."""

    point: int
    dx: float
    dy: float


def place_labels(
    lines: Sequence[Line], frame: Box, taken: Sequence[Box] = (), others: Sequence[Sequence[tuple[float, float]]] = ()
) -> list[Place] | None:
    """Find a free place for the label of every line.

    Lines that begin in one column are named in a column to its left, pushed apart where they are close. The others
    choose in turn: a line with few points has few places to choose from and comes first.

    Args:
        lines: what to label.
        frame: labels stay inside of it.
        taken: rectangles where no label may be.
        others: further strokes that a label had better not cross.

    Returns:
        A place per line, or None when some label would cover a marker, another label or much of a line.
    """
    markers = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for line in lines for x, y in line.points]
    blocked = [*markers, *taken]
    drawn = [*(line.points for line in lines), *others]
    strokes = [spot for points in drawn for one, two in pairwise(points) for spot in _dots(one, two)]
    places: dict[int, Place] = {}

    def try_out(index: int, candidates: Sequence[tuple[Place, Box]], dearest: float) -> None:
        best: tuple[float, Place, Box] | None = None
        for preference, (place, box) in enumerate(candidates):
            inside = frame.left <= box.left and box.right <= frame.right
            inside = inside and frame.bottom <= box.bottom and box.top <= frame.top
            if not inside or any(box.overlap(other) for other in blocked):
                continue
            cost = preference + 4.0 * sum(box.covers(x, y) for x, y in strokes)
            if cost <= dearest and (best is None or cost < best[0]):
                best = (cost, place, box)
        if best is not None:
            places[index] = best[1]
            blocked.append(best[2])

    for index, candidate in _first_column(lines):
        try_out(index, [candidate], dearest=0)
    for index in sorted(range(len(lines)), key=lambda i: (len(lines[i].points), i)):
        if index not in places:
            try_out(index, _candidates(lines[index]), dearest=50)
    return [places[index] for index in range(len(lines))] if len(places) == len(lines) else None


def push_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Move ascending positions as little as possible (least squares) until neighbours are `gap` apart.

    Example:
        >>> push_apart([0.0, 1.0, 9.0], gap=3.0)
        [-1.0, 2.0, 9.0]
    """
    blocks: list[tuple[float, int]] = []  # mean of (wanted - rank * gap) over a block, and its length
    for rank, position in enumerate(wanted):
        mean, count = position - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            earlier, length = blocks.pop()
            mean, count = (earlier * length + mean * count) / (length + count), length + count
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    return [mean + rank * gap for rank, mean in enumerate(means)]


def _first_column(lines: Sequence[Line]) -> list[tuple[int, tuple[Place, Box]]]:
    """Name the lines that begin at the leftmost place of all, to its left."""
    edge = min((line.points[0][0] for line in lines), default=0.0)
    column = sorted(
        (i for i, line in enumerate(lines) if line.points[0][0] < edge + GAP), key=lambda i: lines[i].points[0][1]
    )
    gap = max((lines[i].label_size[1] for i in column), default=0.0) + 2
    heights = push_apart([lines[i].points[0][1] for i in column], gap)
    found = []
    for index, height in zip(column, heights, strict=True):
        (x, y), (width, tall) = lines[index].points[0], lines[index].label_size
        place = Place(0, -GAP - width, height - y - tall / 2)
        if abs(height - y) <= FARTHEST:
            found.append((index, (place, Box(x + place.dx, y + place.dy, x - GAP, y + place.dy + tall))))
    return found


def _candidates(line: Line) -> list[tuple[Place, Box]]:
    """List places in order of preference: lines fan out towards few bytes, so their left end is the clearest."""
    width, height = line.label_size
    order = sorted(range(len(line.points)), key=lambda i: (min(i, len(line.points) - 1 - i), i))
    found = []
    for index in order:
        x, y = line.points[index]
        for dx, dy in (
            (-GAP - width, -height / 2),
            (GAP, -height / 2),
            (-width / 2, GAP),
            (-width / 2, -GAP - height),
            (GAP / 2, GAP / 2),
            (GAP / 2, -GAP / 2 - height),
            (-GAP / 2 - width, GAP / 2),
            (-GAP / 2 - width, -GAP / 2 - height),
        ):
            box = Box(x + dx, y + dy, x + dx + width, y + dy + height)
            found.append((Place(index, dx, dy), box))
    return found


def _dots(one: tuple[float, float], two: tuple[float, float], step: float = 4.0) -> list[tuple[float, float]]:
    """Stand for a stroke by places `step` pixels apart."""
    (x1, y1), (x2, y2) = one, two
    count = max(int(max(abs(x2 - x1), abs(y2 - y1)) / step), 1)
    return [(x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(count + 1)]
