"""Tables that two processes share, in every way that is offered, train as those of one process do."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from command_line import run_ranks
from parameters import mostly_wide
from tables_samples import VARIANTS

# After five steps, whatever is compared: losses, rows, other weights, moments and accumulators; and what is saved.
TOLERANCE = 1e-6


# Before a commit: one method whose lookups are blocks of ids, one whose are several, and one that is still pruned.
FEW = ["mixed_dimension", "compositional", "pep"]
each_variant = pytest.mark.parametrize("variant", mostly_wide(VARIANTS, *FEW, name=lambda variant: variant.name))
each_sharding = pytest.mark.parametrize(
    "sharding", mostly_wide(["auto", "table_wise", "row_wise", "column_wise", "data_parallel"], "row_wise")
)


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, list[dict[str, Any]]]:
    """What each process found in each case; of a few cases where only those are asked for."""
    wide = any(item.get_closest_marker("wide") for item in request.session.items if item.path == request.path)
    worker = str(Path(__file__).parent / "parity_worker.py")
    done = run_ranks(2, "chosen", *([] if wide else FEW), cwd=Path(__file__).parent, script=worker)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "were not pipelined" not in done.stderr  # which torchrec leaves at a warning
    cases = defaultdict(list)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            cases[entry.pop("case")].append(entry)
    return cases


@each_sharding
@each_variant
def test_two_processes_train_as_one(found: dict[str, list[dict[str, Any]]], variant, sharding: str):
    mine = {case: entries for case, entries in found.items() if case.split()[:2] == [variant.name, sharding]}
    assert mine
    for case, entries in mine.items():
        assert sorted(entry["process"] for entry in entries) == [0, 1]
        for entry in entries:
            if "rowwise" in case and sharding == "column_wise":
                assert "an accumulator of its own, which is another optimizer" in entry["refused"]
                continue
            assert set(entry) == {"process", "loss", "rows", "rest", "moments", "accumulators", "saved"}
            for name, difference in entry.items():
                assert name == "process" or difference < TOLERANCE, (case, name)
                assert difference == difference, (case, name)


@pytest.mark.wide
def test_every_method_was_tried_with_bags_and_while_it_learns_what_to_keep(found: dict[str, list[dict[str, Any]]]):
    words = [case.split() for case in found]
    assert {one[0] for one in words if "multi" in one} == {variant.name for variant in VARIANTS}
    assert {one[0] for one in words if "learning" in one} >= {"optembed", "pep", "magnitude"}
    assert {one[0] for one in words if "pipelined" in one} == {variant.name for variant in VARIANTS}
