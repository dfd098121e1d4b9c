"""Writes gpu_suite.md, .svg, .csv and .json of what the GPU tests and the GPU benchmark left in a folder.

    .venv/bin/python tools/gpu_tables.py DIR

DIR holds tests.xml of pytest and bench_gpu.json of tools/bench_gpu.py, or one of them.
"""

import argparse
import json
import math
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

AIM = 1.15
COLUMNS = [
    "method", "kept", "lookups", "step ms", "over plain", "over equal lookups", "rows/s", "peak GiB", "reserved GiB",
    "solve s",
]  # fmt: skip


def tests_of(path: Path) -> dict[str, Any]:
    """Count the tests, and say which failed and why."""
    suite = ET.parse(path).getroot().find("testsuite")
    assert suite is not None
    counts: dict[str, Any] = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    counts["seconds"] = float(suite.get("time", 0))
    failures = [
        {"test": case.get("name"), "why": why.get("message", "")}
        for case in suite
        for kind in ("failure", "error")
        if (why := case.find(kind)) is not None
    ]
    return {"tests": counts, "failures": failures}


def by_width(bench: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], float]]:
    """Give for each width what was measured of plain torchrec, of each method, and milliseconds of plain's step."""
    for plain in bench["plain"]:
        methods = [one for one in bench["methods"] if one["dim"] == plain["dim"]]
        steps = [one["plain_ms"] for one in methods if "plain_ms" in one]
        yield plain, methods, statistics.median(steps or [math.nan])


def frame_of(bench: dict[str, Any]) -> pd.DataFrame:
    """Put all numbers of the benchmark into one table, plain torchrec's split with them."""
    rows = [
        one
        for plain, methods, step in by_width(bench)
        for one in ({"method": "plain", "step_ms": step, **plain}, *methods)
    ]
    flat = [
        {name: value for name, value in row.items() if name != "split_ms"}
        | {f"{part}_ms": value for part, value in row.get("split_ms", {}).items()}
        for row in rows
    ]
    return pd.DataFrame(flat).assign(device=bench["device"])


def row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:300]


def gib(count: float | None) -> str:
    return "n/a" if count is None else f"{count / 2**30:.2f}"


def measured(one: dict[str, Any]) -> list[str]:
    """The columns after the method's name."""
    if "failed" in one:
        return [line(one["failed"]), *[""] * (len(COLUMNS) - 2)]
    times = [f"{one[name]:.2f}" for name in ("step_ms", "over_plain", "over_equal_lookups")]
    memory = [gib(one["peak_bytes"]), gib(one["reserved_bytes"])]
    solve = f"{one['solve_seconds']:.2f}" if "solve_seconds" in one else ""
    return [f"{one['kept']:.4f}", str(one["lookups"]), *times, f"{one['rows_per_second']:,.0f}", *memory, solve]


def tables_of(bench: dict[str, Any]) -> list[str]:
    """Write the benchmark as tables."""
    lines = [f"device: {bench['device']}", ""]
    for part in ("versions", "options"):
        lines += [", ".join(f"{name} {value}" for name, value in bench[part].items()), ""]
    lines += ["![steps over equal lookups](gpu_suite.svg)", ""]
    for plain, rows, step in by_width(bench):
        done = [one for one in rows if "step_ms" in one]
        lines += [
            f"## D = {plain['dim']}: plain torchrec {step:.2f} ms a step, peak {gib(plain['peak_bytes'])} GiB",
            "",
        ]
        lines += [row(COLUMNS), "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
        lines += [row([one["method"], *measured(one)]) for one in rows]
        parts = list(plain["split_ms"])
        lines += ["", "Milliseconds by part:", "", row(["method", *parts]), "|---" + "|--:" * len(parts) + "|"]
        split = [("plain", plain["split_ms"]), *((one["method"], one["split_ms"]) for one in done)]
        lines += [row([name, *(f"{of[part]:.2f}" for part in parts)]) for name, of in split] + [""]
    return lines


def draw(bench: dict[str, Any], path: Path) -> None:
    """Draw each method's step over plain torchrec's with equal lookups, and its memory over plain torchrec's."""
    frame = frame_of(bench)
    methods = [name for name in frame["method"].unique() if name != "plain"][::-1]
    dims = sorted(frame["dim"].unique())
    figure = Figure(figsize=(9, 0.36 * len(methods) + 1.4))
    left, right = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(dims)
    for number, dim in enumerate(dims):
        of_dim = frame[frame["dim"] == dim].set_index("method")
        at = [place + (0.5 * (len(dims) - 1) - number) * height for place in range(len(methods))]
        color = matplotlib.colormaps["viridis"](0.25 + 0.5 * number)
        steps = [of_dim.get("over_equal_lookups", pd.Series(dtype=float)).get(name) for name in methods]
        left.barh(at, [0 if one is None else one for one in steps], height, color=color, label=f"D = {dim}")
        for place, one in zip(at, steps, strict=True):
            if one is not None and one == one:
                behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
                left.text(one + 0.012, place, f"{one:.2f}", va="center", fontsize=6.5, bbox=behind)
        peak = of_dim["peak_bytes"]
        shares = [peak.get(name) / peak["plain"] if peak.get(name) and peak["plain"] else 0 for name in methods]
        right.barh(at, shares, height, color=color)
    left.axvline(1, color="0.3", linewidth=0.8)
    left.axvline(AIM, color="tab:red", linewidth=0.8, linestyle="--", label=f"aim: {AIM}")
    left.set_xlim(right=max(1.4, left.get_xlim()[1]))
    left.set_yticks(range(len(methods)), methods, fontsize=8)
    left.set_xlabel("step over plain torchrec's with equal lookups", fontsize=8)
    right.set_xlabel("peak memory over plain torchrec's, full tables", fontsize=8)
    right.axvline(1, color="0.3", linewidth=0.8)
    for side in (left, right):
        side.tick_params(labelsize=8)
        side.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.07), ncol=3)
    figure.suptitle(f"Training steps of DLRM on {bench['device']}", fontsize=10)
    figure.tight_layout()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "recemb"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where tests.xml and bench_gpu.json are, and what is written goes")
    out = parser.parse_args().folder
    found: dict[str, Any] = {"tests": None, "failures": [], "bench": None}
    if (out / "tests.xml").exists():
        found |= tests_of(out / "tests.xml")
    if (out / "bench_gpu.json").exists():
        found["bench"] = json.loads((out / "bench_gpu.json").read_text())
    (out / "gpu_suite.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = ["# GPU suite", ""]
    if tests := found["tests"]:
        lines += ["tests: " + ", ".join(f"{name} {value:g}" for name, value in tests.items()), ""]
        lines += [f"- {one['test']}: {line(one['why'])}" for one in found["failures"]] + [""]
    if bench := found["bench"]:
        lines += tables_of(bench)
        frame_of(bench).round(5).to_csv(out / "gpu_suite.csv", index=False)
        draw(bench, out / "gpu_suite.svg")
    (out / "gpu_suite.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
