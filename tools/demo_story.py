"""End `make demo`: export a compressed run, ask it for a prediction, and say what the report found.

.venv/bin/python tools/demo_story.py demo      # the folder with runs/ and report/; writes demo/export/
"""

import csv
import math
import statistics
import sys
from pathlib import Path

import recemb
from recemb.budget import format_bytes, parse_budget
from recemb.cli import main as run_recemb
from recemb.options import RecembError
from recemb.report.words import fineness, plural

Row = dict[str, str]
_FULL_BYTES = 1 << 62  # shares of it are compared, not bytes


def read_results(report: Path) -> list[Row]:
    """Return the runs that are in the report's charts, a mapping of results.csv's columns each.

    Raises:
        RecembError: there is no report, or not both a full table and compressed ones in it.
    """
    path = report / "results.csv"
    if not path.is_file():
        raise RecembError(f"there is no {path}; write a report first: recemb report RUNS --out {report}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "completed" and not row["left_out"]]
    if not any(row["point"] == "full" for row in rows) or not any(row["budget"] for row in rows):
        raise RecembError(f"{path} needs a run of the full table and one within a budget; train both and report again.")
    return rows


def smallest(rows: list[Row]) -> list[Row]:
    """Return the runs of the smallest budget, the best on validation rows first."""
    least = min(parse_budget(row["budget"], _FULL_BYTES) for row in rows if row["budget"])
    rivals = [row for row in rows if row["budget"] and parse_budget(row["budget"], _FULL_BYTES) == least]
    return sorted(rivals, key=lambda row: -float(row["valid_auc"]))


def findings(rows: list[Row]) -> list[str]:
    """Say in three lines what the runs found; every number is the report's."""
    full = next(row for row in rows if row["point"] == "full")
    best, *others = smallest(rows)
    compared = [row for row in rows if row["auc_to_baseline_low"]]
    ceiling = f" (the best achievable is {float(full['ceiling_auc']):.4f})" if full["ceiling_auc"] else ""
    rivals = ", ".join(f"{row['method']} {float(row['test_auc']):.4f}" for row in others)
    lines = [
        f"{_described(full)}{ceiling}",
        f"{_described(best)}, {float(best['times_smaller']):.1f}x smaller; in the same bytes {rivals}",
    ]
    if not compared:
        return [*lines, "no predictions to compare, so it is unknown which of these differences are significant"]
    ends = [(float(row["auc_to_baseline_low"]), float(row["auc_to_baseline_high"])) for row in compared]
    band = statistics.median((high - low) / 2 for low, high in ends)
    worse = sum(high < 0 for _, high in ends)
    over = f"{int(full['rows_test']):,} test rows and {plural(len({row['seed'] for row in compared}), 'seed')}"
    return [
        *lines,
        f"differences to full under {fineness(band)} cannot be told apart by {over}; "
        f"{worse} of {len(ends)} smaller tables are significantly worse than full",
    ]


def predict_from_export(folder: Path) -> str:
    """Load an exported model, predict from the most frequent raw values, and return the call with its answer.

    Raises:
        RecembError: the export is damaged, or the answer is no probability.
    """
    model = recemb.load(folder)
    row = {name: model.raw_values.texts(name, 1)[0] for name in model.raw_values.features}
    probability = float(model.predict(row))
    if not (math.isfinite(probability) and 0 < probability < 1):
        raise RecembError(f"the model in {folder} predicts {probability}, which is no probability; export it again.")
    return f">>> recemb.load({str(folder)!r}).predict({row})\n{probability:.4f}"


def _described(row: Row) -> str:
    return f"{row['point']} {format_bytes(float(row['bytes_tables_serving']))}: test AUC {float(row['test_auc']):.4f}"


def tell(demo: Path) -> None:
    """Export the best run of the smallest budget and print the end of the demo."""
    rows = read_results(demo / "report")
    best = smallest(rows)[0]
    run, export = demo / "runs" / best["run"], demo / "export"
    if run_recemb(["export", str(run), "--out", str(export), "--to", "safetensors", "--overwrite"]):
        raise RecembError(f"{run} was not exported.")
    print(f"\nThe best of the smallest on validation rows, {best['point']}, exported and loaded again:")
    print(predict_from_export(export))
    print("\nFound:", *findings(rows), sep="\n  ")
    print(f"The page: {(demo / 'report' / 'report.html').resolve()}\n\nNext, with data of your own:")
    print("  .venv/bin/recemb prepare dataset=tabular dataset.source=clicks.csv dataset.columns=clicks.yaml \\")
    print('      dataset.path=data/clicks    # README, "Your own data", says what clicks.yaml holds')
    print("  .venv/bin/recemb train -m experiment=tradeoff dataset=tabular dataset.path=data/clicks")


if __name__ == "__main__":
    try:
        tell(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
    except RecembError as error:
        raise SystemExit(f"demo: {error}") from error
