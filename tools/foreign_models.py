"""Compress real models of DeepCTR-Torch, FuxiCTR and RecBole with `recemb.compress`, and say what works.

    python tools/foreign_models.py    # installs the libraries first, into build/foreign
    python tools/foreign_models.py --venv DIR --out DIR  # their environment, and where the table goes
    python tools/foreign_models.py --models RecBole/BPR FuxiCTR

Each model is built and trained by its library on a small planted click log, compressed in two ways, and then checked:
that it predicts what the trained model predicts whose tables hold the compressed vectors, that it copies, saves and
loads, and that its library trains the rest on while the tables stay as they are. Writes foreign_models.md and .csv.
Nothing is downloaded but packages, by pip, from wherever pip is set up to take them. Exits 1 when something fails.
"""

import argparse
import copy
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from setup_env import ROOT, TRIPLES, find_device

LIBRARIES = ("deepctr-torch==0.3.0", "fuxictr==2.3.10", "recbole==1.2.1")
# What the libraries import, beside what recemb needs; why not what they ask for is in foreign_zoo.NOTES.
REQUIREMENTS = (
    "pandas>=2.2,<3",  # RecBole fills columns in place, which pandas 3 no longer lets it
    "ray>=2.52",  # imported by FuxiCTR's loaders
    "polars", "h5py", "pydantic", "requests",  # FuxiCTR and DeepCTR-Torch
    "texttable", "tabulate", "colorama", "colorlog", "psutil", "plotly", "thop",  # RecBole
)  # fmt: skip
LISTED = ("torch", "torchrec", "numpy", "pandas", "scipy", "ray")


@dataclass
class Row:
    """What one model did in one way of compressing it; a column of the table each.

    Attributes:
        change: largest absolute change of a score.
        relative_change: that, over the scores' standard deviation before.
        ranking: AUC, or the share of rows whose next item is among the ten highest.
        same_top: share of the ten highest items that stay among them.
        oracle: largest difference from the model whose tables hold the compressed vectors, over the scores' spread.
        loss: of the library, when compressed, and after its other parameters were trained on.
        failed: what failed and why; empty when nothing did.
    """

    library: str
    model: str
    version: str
    way: str
    tables: str = ""
    table_bytes_before: int = 0
    table_bytes_after: int = 0
    model_bytes_before: int = 0
    model_bytes_after: int = 0
    file_bytes_before: int = 0
    file_bytes_after: int = 0
    change: float = float("nan")
    relative_change: float = float("nan")
    ranking: str = ""
    ranking_before: float = float("nan")
    ranking_after: float = float("nan")
    same_top: float = float("nan")
    oracle: float = float("nan")
    loss_before: float = float("nan")
    loss_after: float = float("nan")
    failed: str = ""


def install(folder: Path) -> Path:
    """Make an environment with recemb and the libraries, unless it is there; return its Python."""
    python, stamp = folder / "bin" / "python", folder / "foreign_models.json"
    versions = TRIPLES[os.environ.get("RECEMB_TORCH") or "2.13"]
    device = find_device()
    fbgemm = f"fbgemm-gpu{'' if device == 'cuda' else '-cpu'}=={versions['fbgemm']}"
    steps: list[Sequence[str]] = [
        [f"torch=={versions['torch']}"],
        ["-e", f"{ROOT}[{device}]", fbgemm, "pandas>=2.2,<3"],
        ["--no-deps", f"torchrec=={versions['torchrec']}"],
        ["--no-deps", *LIBRARIES],
        REQUIREMENTS,
    ]
    wanted = json.dumps(steps)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"foreign_models: {folder} holds something else; name a folder of its own with --venv.")
    print(f"foreign_models: installing into {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    for step in steps:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step]
        if (answer := subprocess.run(command, check=False)).returncode:
            raise SystemExit(f"foreign_models: pip failed ({answer.returncode}) at: pip install {' '.join(step)}")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def model_bytes(model: Any) -> int:
    """Count the bytes of a model's parameters and buffers, each once."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()] if tensor.numel()}
    return sum(held.values())


def ranking(scores: Any, targets: Any) -> tuple[str, float]:
    """Measure scores: AUC of (B,) and labels, or the share of (B, I) with the target among the ten highest."""
    from sklearn.metrics import roc_auc_score

    if scores.dim() == 1:
        return "AUC", float(roc_auc_score(targets, scores.numpy()))
    top = scores.topk(10, dim=1).indices
    return "hit@10", float((top.numpy() == targets[:, None]).any(axis=1).mean())


def plans(model: Any) -> dict[str, Any]:
    """Give the ways to compress a model: every table in int8, and its larger ones by factors at 1/8."""
    from torch import nn

    from recemb import Packing

    large = {
        name: Packing(table="low_rank", budget="1/8")
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.embedding_dim >= 8 and len(module.weight) > 500
    }
    return {"int8": Packing(precision="int8"), "low_rank 1/8": large}


def compare(row: Row, before: Any, after: Any, targets: Any) -> None:
    """Write how scores moved."""
    row.change = float((after - before).abs().max())
    row.relative_change = row.change / float(before.std())
    row.ranking, row.ranking_before = ranking(before, targets)
    row.ranking_after = ranking(after, targets)[1]
    if before.dim() == 2:
        tops = [scores.topk(10, dim=1).indices for scores in (before, after)]
        row.same_top = float((tops[0].unsqueeze(2) == tops[1].unsqueeze(1)).any(dim=2).float().mean())


def with_vectors(trained: Any, compressed: Any, names: Sequence[str]) -> Any:
    """Copy the trained model, with each table's rows set to the vectors that the compressed one looks up."""
    import torch

    expected = copy.deepcopy(trained)
    with torch.no_grad():
        for name in names:
            table = expected.get_submodule(name)
            table.weight.copy_(compressed.get_submodule(name)(torch.arange(table.num_embeddings)))
    return expected


def saved_bytes(model: Any) -> int:
    """Count the bytes of a model saved whole."""
    import torch

    file = io.BytesIO()
    torch.save(model, file)
    return file.tell()


def check_copies(foreign: Any, compressed: Any, scores: Any) -> None:
    """Raise where a copy of the model, its state or its file does not predict what it does."""
    import torch

    def same(model: Any, what: str) -> None:
        if not torch.equal(foreign.score(model), scores):
            raise AssertionError(f"{what} predicts something else")

    same(copy.deepcopy(compressed), "a deep copy")
    file = io.BytesIO()
    torch.save(compressed.state_dict(), file)
    fresh = copy.deepcopy(compressed)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    same(fresh, "a loaded state_dict")
    file = io.BytesIO()
    torch.save(compressed, file)
    file.seek(0)
    same(torch.load(file, weights_only=False), "a loaded file")


def table_states(model: Any, names: Sequence[str]) -> dict[str, Any]:
    """Copy the state of the tables."""
    states = {name: model.get_submodule(name).state_dict() for name in names}
    return {f"{name}.{key}": value.clone() for name, state in states.items() for key, value in state.items()}


def train_on(row: Row, foreign: Any, compressed: Any, names: Sequence[str]) -> None:
    """Train the rest of a compressed model by its library; raise where a table moves or nothing else does."""
    import torch

    tables = table_states(compressed, names)
    rest = {name: parameter.detach().clone() for name, parameter in compressed.named_parameters()}
    row.loss_before = foreign.loss(compressed)
    if not any(parameter.requires_grad for parameter in compressed.parameters()):
        return  # a model of nothing but tables
    foreign.fit(compressed)
    row.loss_after = foreign.loss(compressed)
    if any(not torch.equal(value, tables[name]) for name, value in table_states(compressed, names).items()):
        raise AssertionError("a compressed table changed in training")
    moved = [name for name, parameter in compressed.named_parameters() if not torch.equal(parameter, rest[name])]
    if not moved:
        raise AssertionError("no parameter moved in training")
    if not row.loss_after < row.loss_before:
        raise AssertionError(f"the loss did not fall: {row.loss_before:.5f} to {row.loss_after:.5f}")


def examine(row: Row, foreign: Any, trained: Any, plan: Any) -> None:
    """Compress a copy of a trained model and do all checks, each though another failed."""
    import recemb

    failures: list[str] = []

    def attempt(what: str, check: Callable[[], None]) -> None:
        try:
            check()
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            failures.append(f"{what}: {type(error).__name__}: {text}")

    before = foreign.score(trained)
    row.model_bytes_before, row.file_bytes_before = model_bytes(trained), saved_bytes(trained)
    model = copy.deepcopy(trained)
    names: list[str] = []

    def compress() -> None:
        report = recemb.compress(model, plan)
        names.extend(swapped.name for swapped in report)
        row.tables = f"{len(report)}"
        row.table_bytes_before = sum(swapped.bytes_before for swapped in report)
        row.table_bytes_after = sum(swapped.bytes_after for swapped in report)
        row.model_bytes_after = model_bytes(model)

    def predict() -> None:
        after = foreign.score(model)
        compare(row, before, after, foreign.targets)
        if not row.change > 0:
            raise AssertionError("the scores do not depend on the tables, so that nothing was compared")
        row.oracle = float((after - foreign.score(with_vectors(trained, model, names))).abs().max() / before.std())
        if not row.oracle < 1e-3:
            raise AssertionError(f"differs by {row.oracle:.3g} from the model with the same vectors in its own tables")

    attempt("compress", compress)
    if not failures:
        attempt("predict", predict)
        attempt("copy and save", lambda: check_copies(foreign, model, foreign.score(model)))
        attempt("train on", lambda: train_on(row, foreign, model, names))
        # By now the old optimizer, which held on to the old tables, has made way for that of the rest.
        row.file_bytes_after = saved_bytes(model)
    row.failed = "; ".join(failures)


def run(wanted: Sequence[str], rows: int, seed: int) -> list[Row]:
    """Examine the models that are asked for."""
    import foreign_zoo

    foreign_zoo.install_shims()
    log = foreign_zoo.ClickLog.make(rows, seed)
    results: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for library, name in chosen(wanted):
            version = foreign_zoo.library_version(library)
            with foreign_zoo.quiet():
                foreign = foreign_zoo.build(library, name, log, Path(folder) / library / name)
                foreign.fit(foreign.module)
            for way, plan in plans(foreign.module).items():
                row = Row(library, name, version, way)
                with foreign_zoo.quiet():
                    examine(row, foreign, foreign.module, plan)
                results.append(row)
                print(f"{library} {name} {way}: {row.failed or 'works'}", flush=True)
        os.chdir(ROOT)
    return results


def chosen(wanted: Sequence[str]) -> list[tuple[str, str]]:
    """List library and model of those asked for, by `library` or `library/model`; all where nothing is."""
    from foreign_zoo import MODELS

    known = [(library, name) for library, (_, names) in MODELS.items() for name in names]
    for word in wanted:
        if not any(word in (library, f"{library}/{name}") for library, name in known):
            listing = ", ".join(f"{library}/{name}" for library, name in known)
            raise SystemExit(f"foreign_models: no model is called {word!r}; there are {listing}.")
    return [(one, name) for one, name in known if not wanted or one in wanted or f"{one}/{name}" in wanted]


def as_text(value: Any) -> str:
    """Write a cell: four digits of a fraction, – for what was not measured."""
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value) or "–"


HEADINGS = (
    "library", "model", "compressed to", "tables", "table bytes", "model bytes", "saved file",
    "largest change of a score", "over their spread", "ranking", "top 10 kept", "loss, trained on", "failed",
)  # fmt: skip


def as_markdown(rows: Sequence[Row]) -> str:
    """Write the table."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * 3 + "--:|" * (len(HEADINGS) - 4) + "---|"]
    for row in rows:
        pairs = (
            (row.table_bytes_before, row.table_bytes_after),
            (row.model_bytes_before, row.model_bytes_after),
            (row.file_bytes_before, row.file_bytes_after),
            (row.ranking_before, row.ranking_after),
            (row.loss_before, row.loss_after),
        )
        tables, model, file, rank, loss = (" → ".join(map(as_text, pair)) for pair in pairs)
        cells = (row.library, row.model, row.way, row.tables or "–", tables, model, file, as_text(row.change),
                 as_text(row.relative_change), f"{row.ranking} {rank}", as_text(row.same_top), loss,
                 row.failed.replace("|", "\\|") or "–")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def as_page(rows: Sequence[Row]) -> str:
    """Write the page of results."""
    from importlib.metadata import version

    from foreign_zoo import NOTES

    versions = ", ".join(f"{name.split('=')[0]} {version(name.split('=')[0])}" for name in (*LIBRARIES, *LISTED))
    works = sum(not row.failed for row in rows)
    models = len({(row.library, row.model) for row in rows})
    int8 = [row.relative_change for row in rows if row.way == "int8"]
    return f"""# Models of other libraries, compressed

{models} models of DeepCTR-Torch, FuxiCTR and RecBole, each built and trained by its library on a small planted click
log and compressed in two ways: {works} of {len(rows)} runs work. A run works if the model gives the scores of the
trained model whose tables hold the compressed vectors, if its deep copy, loaded `state_dict` and loaded file give them
too, and if the library trains the rest on while the tables stay as they are. int8 moves no score by more than
{max(int8):.3f} of the scores' standard deviation. What `low_rank` at 1/8 does to a score says little:
trained for seconds, these tables are still mostly the noise they began with. For what compressing costs in quality,
see [compress.md](compress.md).

    python tools/foreign_models.py --out docs/results

{versions}. Every digit: [foreign_models.csv](foreign_models.csv).

{as_markdown(rows)}
{NOTES}"""


def as_csv(rows: Sequence[Row]) -> str:
    """Write the table with every column and digit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in fields(Row)]
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return out.getvalue()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "foreign", help="the libraries' own environment")
    parser.add_argument("--out", type=Path, help="folder for foreign_models.md and foreign_models.csv")
    parser.add_argument("--models", nargs="+", default=[], metavar="LIBRARY[/MODEL]", help="only these")
    parser.add_argument("--rows", type=int, default=8192, help="of the planted click log (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the click log (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Install where needed, start again inside the environment, and run."""
    options = parse(arguments)
    folder = options.venv.resolve()
    if Path(sys.prefix).resolve() != folder:
        python = install(folder)
        asked = list(sys.argv[1:] if arguments is None else arguments)
        return subprocess.run([str(python), __file__, *asked], check=False).returncode
    out = options.out and options.out.resolve()
    rows = run(options.models, options.rows, options.seed)
    text = as_markdown(rows)
    print(text)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "foreign_models.csv").write_text(as_csv(rows), encoding="utf-8")
        (out / "foreign_models.md").write_text(as_page(rows), encoding="utf-8")
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
