import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import FEATURE, kept, record, stages, structure, write

from recemb.report.records import Record, Run, check, read_record
from recemb.report.structure import Stage, mean_stages, mean_structure, read_stages, read_structure
from recemb.report.words import what_was_kept

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def one(**changes):
    """Read a structure of one feature, some of its fields changed."""
    return read_structure(
        {"unit": "row", "pruned_ids": "zero", "map": "bitmap", "per_table": {"C1": FEATURE | changes}}
    )


def test_a_run_carries_what_pruning_kept_and_its_stages(tmp_path):
    made = record("optembed", structure=structure(), stages=stages())
    run = check(read_record(write(tmp_path, made) / "run.json", "run"))
    assert isinstance(run, Run)
    assert (run.structure.unit, run.structure.pruned_ids, run.structure.map) == ("row", "zero", "bitmap")
    assert len(run.structure.per_table) == 26
    assert run.structure.per_table["C3"] == tuple(made["structure"]["per_table"]["C3"].values())
    assert run.stages == (
        Stage("supernet", 12.0, steps=782, best_step=700, valid_auc=0.765),
        Stage("search", 60.1, evaluated=612, rounds=30, best_after=420, valid_auc=0.7712),
        Stage("retrain", 11.5, steps=782, best_step=700, valid_auc=0.765),
    )


def test_other_runs_carry_neither():
    run = check(Record("run", record()))
    assert run.structure is None
    assert run.stages == ()


def test_features_come_in_the_order_of_their_ids():
    tables = {name: FEATURE | {"ids": ids, "kept": 1} for name, ids in (("b", 5), ("big", 99), ("a", 5), ("c", 7))}
    assert list(read_structure({"per_table": tables}).per_table) == ["big", "c", "a", "b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": 0, "kept": 0},
        {"ids": -5},
        {"ids": 10.5},
        {"ids": None},
        {"ids": "1460"},
        {"ids": True, "kept": 0},
        {"ids": 10**30},
        {"kept": 1461},
        {"kept": -1},
        {"kept": [812]},
        {"kept": None},
        {"width": 16.1},
        {"width": -0.1},
        {"width": "12"},
        {"width": None},
        {"dim": 0, "width": 0},
        {"dim": None},
        {"dim": 16.5},
        {"cells": 1.1},
        {"cells": -0.1},
        {"cells": "all"},
    ],
)
def test_an_implausible_feature_is_dropped_and_the_others_stay(changes):
    assert one(**changes) is None
    found = read_structure({"per_table": {"C1": FEATURE | changes, "C2": FEATURE, "C3": [], "C4": None}})
    assert list(found.per_table) == ["C2"]


def test_what_need_not_be_known_may_be_absent():
    assert one(cells=None).cells is None
    assert one(kept=0, width=None, cells=0).per_table["C1"] == (1460, 0, 0, 16, 0)
    assert one(kept=1460, width=16, cells=1).share == 1
    found = read_structure({"per_table": {"C1": FEATURE}})
    assert (found.unit, found.pruned_ids, found.map) == ("", "", "")


def test_words_that_are_not_known_here_are_left_out():
    found = read_structure({"unit": ["row"], "pruned_ids": "<b>", "map": "new\nform", "per_table": {"C1": FEATURE}})
    assert (found.unit, found.pruned_ids, found.map) == ("", "", "new form")


@pytest.mark.parametrize("found", [None, 5, "row", [], {}, {"per_table": None}, {"per_table": [FEATURE]}])
def test_what_is_no_structure_is_none(found):
    assert read_structure(found) is None


def test_implausible_numbers_of_a_stage_are_dropped_and_no_stage_is_none():
    odd = {"seconds": -1, "training": {"steps": 5, "best_step": 6}, "valid": {"auc": 1.5}, "rounds": 2.5}
    history = [[10, 0.7], [20, "high"], [-5, 0.8, 1], 3, [30, 1.7], [40, 0.7]]
    found = read_stages(
        [
            {"name": "supernet"} | odd,
            {"name": "search", "evaluated": 9, "history": [[10, 0.7]], "best": float("nan")},
            {"name": "search", "evaluated": 99, "history": history, "seconds": 1e300},
            {"seconds": 5},
            "retrain",
        ]
    )
    assert found == (
        Stage("supernet", steps=5),
        Stage("search", evaluated=9),
        Stage("search 2", evaluated=99, best_after=10),
    )
    assert read_stages({"name": "search"}) == read_stages(5) == ()


@given(JSON, JSON, st.sampled_from(["ids", "kept", "width", "dim", "cells"]))
def test_nothing_in_a_record_ends_the_report(value, other, field):
    for found in (value, {"unit": value, "map": value, "per_table": {"C1": FEATURE | {field: other}, "C2": value}}):
        run = check(Record("run", record(structure=found, stages=[{"name": "search", "history": value, field: other}])))
        assert isinstance(run, Run)
        if run.structure:
            assert 0 <= run.structure.share <= 1
            assert what_was_kept(run.structure)


def test_seeds_are_averaged_feature_by_feature():
    mean = mean_structure(
        [
            kept(C1=(100, 10, 4.0, 16, 0.5), C2=(5, 5, 16.0, 16, 1.0)),
            kept(C1=(100, 31, 7.0, 16, 0.8), C3=(9, 0, 0.0, 16, None)),
        ]
    )
    assert mean.per_table == {
        "C1": (100, 20.5, 5.5, 16, pytest.approx(0.65)),
        "C3": (9, 0, 0, 16, None),
        "C2": (5, 5, 16, 16, 1),
    }
    assert list(mean.per_table) == ["C1", "C3", "C2"]
    assert mean_structure([]) is None


def test_a_seed_that_keeps_no_row_says_nothing_about_widths():
    mean = mean_structure([kept(C1=(100, 0, 0.0, 16, 0.0)), kept(C1=(100, 10, 8.0, 16, 0.4))])
    assert mean.per_table["C1"] == (100, 5, 8, 16, 0.2)


def test_seeds_that_disagree_name_every_map_and_claim_nothing_else():
    other = kept(C1=(1, 1, 1.0, 1, 1.0))._replace(unit="entry", pruned_ids="shared", map="keys16")
    mean = mean_structure([other, kept(C1=(1, 1, 1.0, 1, 1.0))])
    assert (mean.unit, mean.pruned_ids, mean.map) == ("", "", "bitmap or keys16")


def test_stages_are_averaged_by_name():
    found = mean_stages([read_stages(stages(0)), read_stages(stages(1)), [Stage("search")], []])
    assert [stage.name for stage in found] == ["supernet", "search", "retrain"]
    assert found[0] == Stage("supernet", 12.5, steps=782, best_step=700, valid_auc=pytest.approx(0.7655))
    assert found[1].seconds == pytest.approx(60.1)
