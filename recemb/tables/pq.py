"""Product quantization: a vector is cut into parts, and each part is one of at most 256 shared ones, named by a byte.

Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011, section 2.2; on embedding tables
e.g. Chen, Li & Sun, "Differentiable Product Quantization for End-to-End Embedding Compression", ICML 2020, arXiv
1908.09756. An id costs a byte a part, whatever the width of the vectors; the codebooks, which are trained like any
rows, hold the floats.

Codes are not trained by gradients. `product_quantize` finds them for vectors that are trained already, by k-means; a
table made from its config alone has codes drawn by a hash of the id, and trains the codebooks under them.

Differs from the papers: a codebook has fewer than `centroids` rows where it would outweigh the codes, so that tables of
a few thousand ids shrink too; parts may differ in width by one; a budget is spent part by part, so tables may differ in
their number of parts by one, smaller tables first; tables that codes and codebooks would not make smaller stay whole.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from recemb.budget import FLOAT32_BYTES
from recemb.hashing import hash_to_rows, salt_of
from recemb.options import RecembError, option
from recemb.tables.base import Approximation, CompressedTable, Layout, PhysicalTable, TableConfig, TableSpec
from recemb.tables.registry import register
from recemb.tables.sizing import fit_table_by_table, running_ids, smallest_first

MOST_CENTROIDS = 256
"""What a code of one byte can tell apart."""

_WHOLE = -1
_START_BYTES = 8
_HASHED_AT_ONCE = 1 << 20
_ASSIGNED_AT_ONCE = 1 << 14
_FITTED_ROWS = 1 << 16
_ITERATIONS = 25


class Quantizer(NamedTuple):
    """How a table is held: in `len(widths)` parts, `centroids` rows in the codebook of each."""

    widths: list[int]
    centroids: int


@dataclass(kw_only=True)
class PQConfig(TableConfig):
    """Options of product-quantized tables."""

    parts: float | None = option(
        None,
        "m, parts of a vector, a byte an id each; 3.4 gives 4 to the smallest tables, to 40 % of the ids at most, and "
        "3 to the others; tables narrower than that stay whole",
    )
    centroids: int = option(
        MOST_CENTROIDS, "rows of a codebook at most, 2 to 256; fewer where codebooks would outweigh the codes"
    )

    def __post_init__(self) -> None:
        if self.parts is not None and not 1 <= self.parts < 2**31:
            raise RecembError(f"table.parts is {self.parts}; it must be at least 1.")
        if not 2 <= self.centroids <= MOST_CENTROIDS:
            raise RecembError(f"table.centroids is {self.centroids}; it must be 2 to {MOST_CENTROIDS}.")

    def quantizers(self, specs: Sequence[TableSpec]) -> list[Quantizer | None]:
        """Give how each table is cut; None stands for a whole table."""
        if self.parts is None:
            return [None] * len(specs)
        widest = max(spec.embedding_dim for spec in specs)
        if int(self.parts) > widest:
            raise RecembError(
                f"table.parts={self.parts:g} is more than the width of the vectors, {widest} (model.embedding_dim)."
            )
        more = (self.parts - int(self.parts)) * sum(spec.num_embeddings for spec in specs)
        chosen: list[Quantizer | None] = [None] * len(specs)
        for index, ids in zip(smallest_first(specs), running_ids(specs), strict=True):
            chosen[index] = self._quantizer(specs[index], int(self.parts) + (ids <= more), len(specs))
        return chosen

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold codebooks as rows, codes and where those of each lookup begin as constants.

        The codes are on the meta device: they are as large as tables are, and a layout allocates none.
        """
        tables: list[PhysicalTable] = []
        lookups: list[list[int]] = []
        starts: list[int] = []
        codes = 0
        for spec, quantizer in zip(specs, self.quantizers(specs), strict=True):
            held = _tables(spec, quantizer)
            lookups.append(list(range(len(tables), len(tables) + len(held))))
            tables += held
            for _ in held:
                starts.append(_WHOLE if quantizer is None else codes)
                codes += 0 if quantizer is None else spec.num_embeddings
        return Layout(
            tables=tables,
            lookups=lookups,
            dims=[spec.embedding_dim for spec in specs],
            constants={
                "codes": torch.empty(codes, dtype=torch.uint8, device="meta"),
                "starts": torch.tensor(starts, dtype=torch.int64),
            }
            if codes
            else {},
        )

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Take the most parts: one more for one table after the other, smallest first; whole ones after the last."""
        widest = max(spec.embedding_dim for spec in specs)
        return fit_table_by_table(self, "parts", specs, budget_bytes, widest * len(specs) - 1, "table=pq")

    def approximate(self, specs: Sequence[TableSpec], vectors: Sequence[Tensor], seed: int = 0) -> Approximation:
        """Find codebooks and codes by k-means, popular ids counting more."""
        codes: list[Tensor | None] = []
        weights: list[Tensor] = []
        for spec, vector, quantizer in zip(specs, vectors, self.quantizers(specs), strict=True):
            codebooks, of_table = [vector], None
            if quantizer is not None:
                codebooks, of_table = product_quantize(
                    vector, spec.popularity - 1, quantizer.widths, quantizer.centroids, seed
                )
            weights += codebooks
            codes.append(of_table)
        return Approximation(PQTable(self, specs, with_codes(self.layout(specs), codes)), weights)

    def _quantizer(self, spec: TableSpec, parts: int, num_tables: int) -> Quantizer | None:
        """Cut one table into parts, if that makes it smaller."""
        ids, dim = spec.num_embeddings, spec.embedding_dim
        if parts > dim:
            return None
        # Codebooks of as many bytes as the codes at most: more is better spent on another part. A table that is too
        # small for that with one part stays whole with several too, for its bytes must not fall as parts grow.
        if ids // (dim * FLOAT32_BYTES) < 2:
            return None
        centroids = min(self.centroids, ids * parts // (dim * FLOAT32_BYTES))
        quantizer = Quantizer(_even_widths(dim, parts), centroids)
        spec = dataclasses.replace(spec, precision="fp32")  # a config means the same tables in every precision
        # It must pay for the starts of whole tables too, which would be none if all tables were whole.
        beside = ids * parts + _START_BYTES * (parts + num_tables)
        held = sum(table.bytes for table in _tables(spec, quantizer)) + beside
        return quantizer if held < spec.physical(ids, dim).bytes else None


def _tables(spec: TableSpec, quantizer: Quantizer | None) -> list[PhysicalTable]:
    if quantizer is None:
        return [spec.physical(spec.num_embeddings, spec.embedding_dim)]
    return [
        spec.physical(quantizer.centroids, width, f"{spec.name}:part{number}")
        for number, width in enumerate(quantizer.widths)
    ]


def _even_widths(dim: int, parts: int) -> list[int]:
    """Cut a width into parts that differ by one at most, wider ones first."""
    return [dim // parts + (number < dim % parts) for number in range(parts)]


def with_codes(layout: Layout, codes: Sequence[Tensor | None]) -> Layout:
    """Fill the codes of a layout in.

    Args:
        layout: of `PQConfig.layout`.
        codes: for each logical table (m, V) uint8, as `product_quantize` gives them; None for whole tables.

    Raises:
        RecembError: they are of another shape than the layout's, or name rows that codebooks do not have.
    """
    if not layout.constants:
        return layout
    starts = layout.constants["starts"].tolist()
    flat: list[Tensor] = []
    position = lookup = 0
    for indices, one in zip(layout.lookups, codes, strict=True):
        whole = starts[lookup] == _WHOLE
        lookup += len(indices)
        if whole and one is None:
            continue
        following = [start for start in starts[lookup:] if start != _WHOLE]
        end = following[0] if following else layout.constants["codes"].numel()
        fits = not whole and one is not None and one.shape == (len(indices), (end - position) // len(indices))
        if one is None or not fits or int(one.max()) >= min(layout.tables[index].rows for index in indices):
            raise RecembError(f"the codes of {layout.tables[indices[0]].name} do not fit its codebooks.")
        flat.append(one.flatten())
        position = end
    return dataclasses.replace(layout, constants={**layout.constants, "codes": torch.cat(flat)})


def _hashed_codes(layout: Layout, specs: Sequence[TableSpec]) -> Tensor:
    """Draw the codes of all tables by the hash of table, part and id: (n,) uint8."""
    codes = torch.empty(layout.constants["codes"].numel(), dtype=torch.uint8)
    starts = iter(layout.constants["starts"].tolist())
    for spec, indices in zip(specs, layout.lookups, strict=True):
        for part, index in enumerate(indices):
            start = next(starts)
            if start == _WHOLE:
                continue
            salt = salt_of(spec.name, part)
            for first in range(0, spec.num_embeddings, _HASHED_AT_ONCE):
                ids = torch.arange(first, min(first + _HASHED_AT_ONCE, spec.num_embeddings))
                place = start + first
                codes[place : place + len(ids)] = hash_to_rows(ids, salt, layout.tables[index].rows)
    return codes


@register(
    "pq",
    PQConfig,
    summary="vectors of parts from small codebooks, a byte an id and part",
    paper="Jégou et al., Product Quantization for Nearest Neighbor Search, TPAMI 2011",
)
class PQTable(CompressedTable):
    """Puts the rows side by side that the codes of an id name.

    Args:
        config: the options.
        specs: the logical tables.
        layout: what is held, codes included (`with_codes`); where it has none, or is not given, a hash draws them.
    """

    codes: Tensor
    starts: Tensor

    def __init__(self, config: PQConfig, specs: Sequence[TableSpec], layout: Layout | None = None) -> None:
        layout = layout or config.layout(specs)
        if layout.constants and layout.constants["codes"].is_meta:
            constants = {**layout.constants, "codes": _hashed_codes(layout, specs)}
            layout = dataclasses.replace(layout, constants=constants)
        super().__init__(config, specs, layout)

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """Read the code of each id for the part that is looked up; the row of an id of a whole table is the id."""
        if not self.layout.constants:
            return ids
        starts = self.starts[lookup]
        whole = starts == _WHOLE
        # Every id reads a code, since shapes must not depend on values; those of whole tables read any, in range.
        code = self.codes[torch.where(whole, 0, starts + ids)]
        return torch.where(whole, ids, code.long())


def product_quantize(
    vectors: Tensor, counts: Tensor | None, widths: Sequence[int], centroids: int, seed: int
) -> tuple[list[Tensor], Tensor]:
    """Find codebooks and codes for vectors: k-means of each part, then for each row the nearest centroid of each part.

    With counts the squared error is weighted by how often an id is seen, plus one so that unseen ids count too. Of more
    than 65,536 rows k-means sees as many draws with replacement, in proportion to their weight, and weighs all draws
    alike: any draw is then one from the weighted distribution itself. Uniform draws, weighted, would have the same
    expectation and far more variance, since most of them would be rare ids of next to no weight and many of the few
    ids that make up most of the weight would be missed.

    Where a part has no more than `centroids` distinct values, these are its codebook, repeated to fill it, and the
    error is zero.

    Args:
        vectors: (V, D).
        counts: (V,) how often each id is seen, or None for equal weights.
        widths: of the parts, D in sum.
        centroids: k, at most 256.
        seed: of the draws and the first centroids; the result is the same for the same seed.

    Returns:
        For each part its codebook (k, width) float32, and codes (m, V) uint8.

    Raises:
        RecembError: widths do not add up to D, k is not 1 to 256, or a number is not finite.
    """
    if sum(widths) != vectors.shape[1] or min(widths) < 1:
        raise RecembError(f"parts of widths {list(widths)} do not make up vectors of width {vectors.shape[1]}.")
    if not 1 <= centroids <= MOST_CENTROIDS:
        raise RecembError(f"centroids={centroids} is not possible: a code is one byte, so take 1 to {MOST_CENTROIDS}.")
    vectors = vectors.detach().float().cpu()
    if not bool(vectors.isfinite().all()):
        raise RecembError("vectors with numbers that are not finite cannot be quantized; look at why training failed.")
    random = np.random.default_rng(seed)
    drawn, weights = _draw(len(vectors), counts, random)
    codebooks = []
    codes = torch.empty(len(widths), len(vectors), dtype=torch.uint8)
    for number, part in enumerate(vectors.split(list(widths), dim=1)):
        state = int(random.integers(2**31))  # drawn for every part, so that one's form does not change the next
        rows = part.numpy()
        codebook = _distinct(rows, centroids)
        if codebook is None:
            codebook = _centroids(rows if drawn is None else rows[drawn], weights, centroids, state)
        # np.resize repeats whole rows from the first on until there are k.
        codebooks.append(torch.from_numpy(np.resize(codebook, (centroids, rows.shape[1]))))
        for start in range(0, len(part), _ASSIGNED_AT_ONCE):
            some = part[start : start + _ASSIGNED_AT_ONCE]
            # The faster way by a matrix product rounds: it may take a row's own value for farther than another.
            distances = torch.cdist(some, codebooks[-1], compute_mode="donot_use_mm_for_euclid_dist")
            codes[number, start : start + len(some)] = distances.argmin(dim=1)
    return codebooks, codes


def _draw(size: int, counts: Tensor | None, random: np.random.Generator) -> tuple[np.ndarray | None, np.ndarray]:
    """Choose the rows that k-means sees.

    Returns:
        (n,) their numbers, each once; None for all of `size`. And (n,) float64, their weights.
    """
    weights = np.ones(size) if counts is None else counts.detach().cpu().double().numpy() + 1
    if size <= _FITTED_ROWS:
        return None, weights
    ends = np.cumsum(weights)
    draws = np.searchsorted(ends, random.random(_FITTED_ROWS) * ends[-1], side="right")
    # A row that is drawn several times weighs as many draws, and is looked at once.
    drawn, times = np.unique(draws.clip(max=size - 1), return_counts=True)
    return drawn, times.astype(np.float64)


def _distinct(rows: np.ndarray, most: int) -> np.ndarray | None:
    """Give the distinct rows of (n, d), or None as soon as there are more than `most`."""
    found = rows[:0]
    for start in range(0, len(rows), _FITTED_ROWS):
        found = np.unique(np.concatenate([found, rows[start : start + _FITTED_ROWS]]), axis=0)
        if len(found) > most:
            return None
    return found


def _centroids(rows: np.ndarray, weights: np.ndarray, count: int, state: int) -> np.ndarray:
    """Find up to `count` centroids (k, d) of rows (n, d) with weights (n,)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    points, which = np.unique(rows, axis=0, return_inverse=True)
    if len(points) <= count:
        return points
    weight = np.bincount(which.reshape(-1), weights=weights)
    means = KMeans(count, init="k-means++", n_init=1, max_iter=_ITERATIONS, random_state=state)
    # Threads add up in the order in which they finish, which would make the last bits differ from run to run.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Points that differ by less than rounding can leave a centroid without any: a code less, and no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means.fit(points, sample_weight=weight)
    return means.cluster_centers_.astype(np.float32)
