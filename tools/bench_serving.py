"""Time of a lookup from tables that serve, over torch's `nn.EmbeddingBag`, as ratios of interleaved runs.

    .venv/bin/python tools/bench_serving.py [--form eager pt2 fbgemm onnx] [--precision fp32 int8] [--ids zipf]

What is compared takes turns in one process and on one thread: a call to get warm, then a few that are timed, each on
ids that it has not just read. The baseline has a full fp32 `nn.EmbeddingBag(mode="sum")` per feature and puts their
vectors side by side. All get equal ids, and the tables are far larger than the caches. Ratios are of the medians and of
the 99th percentiles over the same turns; absolute times of a shared machine mean little.

The full table is served in fp32, int8 and int4, and every other method at a quarter of the fp32 bytes, in each
`--precision`; rows are random, and what is pruned is what the method prunes of random rows.

- eager: the module called from Python, which checks the ids and offsets first.
- pt2: written by `torch.export`, loaded, and called; such a program checks nothing.
- fbgemm: `collection.quantized()`, the same rows in FBGEMM's inference kernels inside torchrec, ids checked.
- onnx: onnxruntime, one thread, fed with and giving numpy arrays.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from tqdm import tqdm

from recemb import TableSpec, get_table
from recemb.packing.programs import capture, write_onnx, write_pt2
from recemb.packing.serving import ServingTables
from recemb.tables.base import CompressedTable, total_full_bytes
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.full import FullConfig, FullTable
from recemb.tables.initial import init_orthogonal_
from recemb.tables.pruned import PackedTable, PrunedConfig
from recemb.tables.registry import create_table, list_tables

FORMS = ("eager", "pt2", "fbgemm", "onnx")
SHARE = 1 / 4
WARM, TIMED = 1, 4
TURNS = {1: 250, 64: 250, 4096: 50}
"""Turns of each batch size, of `TIMED` calls each."""
POOL_IDS = 1 << 23
VARIANTS: dict[str, dict[str, Any]] = {
    "compositional combine=concat": {"combine": "concat"},
    "mixed_dimension blocks=feature": {"blocks": "feature"},
    "magnitude unit=entry": {"unit": "entry"},
}


class Batch(NamedTuple):
    """Ids of one call, as `ServingTables` takes them, and the same cut up for the baselines."""

    values: Tensor
    offsets: Tensor
    ids: list[Tensor]
    starts: list[Tensor]
    shifts: Tensor
    """For each id, the rows of the features before its own."""


class Measured(NamedTuple):
    """A run: what it is called in the table, the bytes it serves from, and the call."""

    title: str
    nbytes: int
    call: Callable[[Batch], Any]


class Bags(nn.Module):
    """The baseline: an `nn.EmbeddingBag` per feature."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag.from_pretrained(one.clone(), mode="sum") for one in weights)

    def forward(self, ids: list[Tensor], starts: list[Tensor]) -> Tensor:
        return torch.cat([bag(one, at) for bag, one, at in zip(self.bags, ids, starts, strict=True)], dim=1)


class MergedBag(nn.Module):
    """One `nn.EmbeddingBag` that holds the rows of all features, one feature after the other."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.features = len(weights)
        self.bag = nn.EmbeddingBag.from_pretrained(torch.cat(list(weights)), mode="sum")

    def forward(self, values: Tensor, shifts: Tensor, offsets: Tensor) -> Tensor:
        vectors = self.bag(values + shifts, offsets[:, :-1].flatten())
        return vectors.view(self.features, -1, vectors.shape[1]).transpose(0, 1).flatten(1)


def draw(options: argparse.Namespace, bags: int, random: torch.Generator) -> Batch:
    """Draw the ids of a batch; bags of a mean length above 1 hold 0 to twice that many."""
    features, rows = options.features, options.rows
    lengths = torch.ones(features, bags, dtype=torch.int64)
    if options.length > 1:
        lengths = torch.randint(0, 2 * options.length + 1, (features, bags), generator=random)
    ends = lengths.flatten().cumsum(0).view(features, bags)
    offsets = torch.cat([ends[:, :1] - lengths[:, :1], ends], dim=1)
    count = int(ends[-1, -1])
    if options.ids == "zipf":
        values = (rows ** torch.rand(count, generator=random, dtype=torch.float64)).long().clamp(max=rows - 1)
    else:
        values = torch.randint(0, rows, (count,), generator=random)
    of_features = lengths.sum(1)
    return Batch(
        values=values,
        offsets=offsets,
        ids=[one.clone() for one in values.split(of_features.tolist())],
        starts=[(one[:-1] - one[0]).clone() for one in offsets],
        shifts=(torch.arange(features) * rows).repeat_interleave(of_features),
    )


def make_specs(options: argparse.Namespace, precision: str) -> list[TableSpec]:
    counts = (options.rows * 10 // torch.arange(1, options.rows + 1)).clamp(min=1)
    return [
        TableSpec(
            name=f"C{index + 1}", num_embeddings=options.rows, embedding_dim=options.dim, counts=counts,
            max_length=1 if options.length == 1 else None, precision=precision,
        )
        for index in range(options.features)
    ]  # fmt: skip


def make_method(title: str, specs: list[TableSpec], random: torch.Generator) -> CompressedTable:
    """Make a method's table at its share of the fp32 bytes, what is learned and its parameters random."""
    known = get_table(title.split()[0])
    config = known.config(**VARIANTS.get(title, {})).fit(specs, int(total_full_bytes(specs) * SHARE))
    if isinstance(config, PrunedConfig):
        pruning = config.pruning_table(specs)
        rows = [torch.randn(spec.num_embeddings, spec.embedding_dim, generator=random) * 0.05 for spec in specs]
        pruning.after_step(rows.copy, config.ramp)
        widths = None
        if pruning.searches:
            widest = specs[0].embedding_dim
            widths = torch.randint(widest // 2, widest + 1, (len(specs),), generator=random).tolist()
        assert issubclass(known.table, PackedTable)
        return known.table(config, specs, pruning.structure(rows, widths).layout(specs))
    method = create_table(config, specs)
    for parameter in method.layout.parameters:
        init_orthogonal_(getattr(method, parameter.name).data, parameter.init_std, parameter.name, 0)
    return method


def load_forms(
    title: str, served: ServingTables, rows: list[Tensor], forms: list[str], folder: Path, example: Batch
) -> list[Measured]:
    """Make the calls of the forms of tables; `rows` are those that were packed."""
    found: list[tuple[str, Callable[..., Any]]] = []
    program = None
    if {"pt2", "onnx"} & set(forms):
        program = capture(served, {"values": example.values, "offsets": example.offsets})
    for form in forms:
        if form == "eager":
            found.append((form, served))
        elif form == "fbgemm":
            found.append((form, in_torchrec(CompressedEmbeddingBagCollection(served.specs, served.method, rows=rows))))
        elif form == "pt2":
            assert program is not None
            write_pt2(program, folder / "tables.pt2")
            found.append((form, torch.export.load(folder / "tables.pt2").module()))
        else:
            assert program is not None
            write_onnx(program, folder / "tables.onnx", "vectors")
            found.append((form, load_onnx(folder / "tables.onnx")))
    return [
        Measured(
            f"{title}, {form}" if len(forms) > 1 else title,
            served.serving_bytes,
            lambda batch, call=call: call(values=batch.values, offsets=batch.offsets),  # type: ignore[misc]
        )
        for form, call in found
    ]


def in_torchrec(collection: CompressedEmbeddingBagCollection) -> Callable[..., Any]:
    """Feed a collection with a KeyedJaggedTensor, as torchrec's models do."""

    def call(values: Tensor, offsets: Tensor) -> Tensor:
        features = KeyedJaggedTensor(collection.features, values, lengths=offsets.diff(dim=1).flatten())
        return collection(features).values()

    return call


def load_onnx(path: Path) -> Callable[..., Any]:
    """Load tables in onnxruntime to run on one thread, which `run_onnx` has no option for."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return lambda values, offsets: session.run(None, {"values": values.numpy(), "offsets": offsets.numpy()})[0]


def make_runs(options: argparse.Namespace, folder: Path) -> list[Measured]:
    """Make everything that is measured, the baseline first."""
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(options.rows, options.dim, generator=random) * 0.05 for _ in range(options.features)]
    full_bytes = sum(one.nbytes for one in weights)
    bags, merged = Bags(weights), MergedBag(weights)
    runs = [
        Measured("nn.EmbeddingBag fp32, one a feature", full_bytes, lambda batch: bags(batch.ids, batch.starts)),
        Measured(
            "nn.EmbeddingBag fp32, merged",
            full_bytes,
            lambda batch: merged(batch.values, batch.shifts, batch.offsets),
        ),
    ]
    example = draw(options, 64, random)
    full = [(precision, "full") for precision in ("fp32", "int8", "int4")]
    others = [one.name for one in list_tables() if one.name != "full"] + list(VARIANTS)
    others = [title for title in others if not options.only or title.split()[0] in options.only]
    for precision, title in tqdm([*full, *itertools.product(options.precision, others)], desc="making tables"):
        specs = make_specs(options, precision)
        if title == "full":
            rows = weights
            served = ServingTables(FullTable(FullConfig(), specs), rows)
        else:
            method = make_method(title, specs, random)
            rows = [torch.randn(one.rows, one.dim, generator=random) * 0.05 for one in method.layout.tables]
            served = ServingTables(method, rows)
        runs += load_forms(f"{title} {precision}", served, rows, options.form, folder, example)
    # The same vectors, or the comparison means nothing.
    torch.testing.assert_close(torch.as_tensor(runs[2].call(example)), runs[0].call(example))
    torch.testing.assert_close(runs[1].call(example), runs[0].call(example))
    return runs


def interleave(runs: list[Measured], batches: list[Batch], turns: int, title: str) -> list[list[float]]:
    """Let the runs take turns and return the seconds of each one's timed calls."""
    seconds: list[list[float]] = [[] for _ in runs]
    upcoming = itertools.cycle(batches)
    for turn in tqdm(range(turns + 1), desc=title):
        mine = list(itertools.islice(upcoming, WARM + TIMED))
        for place in range(len(runs)):
            number = (place + turn) % len(runs)
            call = runs[number].call
            for position, batch in enumerate(mine):
                batch.values.sum()  # ids come fresh from whoever made them
                clock = time.perf_counter()
                call(batch)
                if turn and position >= WARM:  # the first turn touches memory for the first time
                    seconds[number].append(time.perf_counter() - clock)
    return seconds


def percentiles(seconds: list[float]) -> tuple[float, float]:
    return statistics.median(seconds), statistics.quantiles(seconds, n=100, method="inclusive")[98]


def print_table(runs: list[Measured], measured: dict[int, list[list[float]]]) -> None:
    """Print a line a run: p50 and p99 over the baseline's, and p50 in microseconds."""
    heads = [f"{what} {bags:,}" for bags in measured for what in ("p50", "p99", "µs at")]
    print(f"| tables | MB | {' | '.join(heads)} |")
    print(f"|---|--:|{'--:|' * len(heads)}")
    for number, run in enumerate(runs):
        cells = []
        for seconds in measured.values():
            (base50, base99), (own50, own99) = percentiles(seconds[0]), percentiles(seconds[number])
            cells += [f"{own50 / base50:.2f}", f"{own99 / base99:.2f}", f"{own50 * 1e6:,.0f}"]
        print(f"| {run.title} | {run.nbytes / 1e6:.1f} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", nargs="+", choices=FORMS, default=["eager"], help="what is called")
    parser.add_argument(
        "--precision", nargs="*", choices=("fp32", "int8", "int4"), default=["fp32"], help="of methods other than full"
    )
    parser.add_argument("--only", nargs="*", help="these methods beside full, instead of all")
    parser.add_argument("--ids", choices=("uniform", "zipf"), default="uniform", help="how ids are distributed")
    parser.add_argument("--length", type=int, default=1, help="ids in a bag, on average")
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of each full table")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=list(TURNS), help="bags of a feature in a call")
    parser.add_argument("--turns", type=int, help="turns of each batch size, instead of what is usual for it")
    parser.add_argument("--quick", action="store_true", help="small tables and few turns: whether it runs at all")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.features, options.turns = min(options.rows, 2_000), min(options.features, 4), 2
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = make_runs(options, Path(folder))
        measured = {}
        for bags in options.batches:
            turns = options.turns or TURNS.get(bags, 50)
            wanted = (turns + 1) * (WARM + TIMED)
            pool = min(wanted, max(64, POOL_IDS // (bags * options.features * options.length)))
            batches = [draw(options, bags, random) for _ in range(pool)]
            measured[bags] = interleave(runs, batches, turns, f"batch {bags:,}")
    print(
        f"{options.features} tables x {options.rows:,} x {options.dim}, {options.ids} ids, {options.length} a bag, "
        f"one thread, torch {torch.__version__}"
    )
    print_table(runs, measured)


if __name__ == "__main__":
    main()
