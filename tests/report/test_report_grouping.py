import copy
import random

import pytest
from report_samples import FULL_BYTES, record

from recemb.report.analysis import baselines
from recemb.report.grouping import NARROWER, group, options_of_run
from recemb.report.records import Record, Run, check


def run_of(made, name="run"):
    run = check(Record(name, made))
    assert isinstance(run, Run)
    return run


def grouped(*records):
    return group([run_of(made, f"run-{number}") for number, made in enumerate(records)])


def changed(made, option, value):
    """Change one option of a record's config, given by its dotted name."""
    made = copy.deepcopy(made)
    inner = made["config"]
    *path, last = option.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = value
    return made


def test_runs_that_differ_in_seed_and_paths_alone_are_one_point():
    runs = [changed(record(seed=seed), "out_dir", f"somewhere/{seed}") for seed in range(3)]
    runs = [changed(made, "trainer.log", f"/tmp/{made['seed']}.txt") for made in runs]
    runs = [changed(made, "dataset", {"name": "criteo", "source": f"day_{made['seed']}"}) for made in runs]
    runs = [changed(made, "overwrite", made["seed"] == 1) for made in runs]
    (section,), replaced = grouped(*runs)
    (point,) = section.points
    assert [run.seed for run in point.runs] == [0, 1, 2]
    assert point.auc.n == 3
    assert not replaced


def test_runs_that_were_resumed_or_made_on_another_machine_are_one_point():
    runs = [record(seed=seed) for seed in range(5)]
    runs[1] = changed(runs[1], "resume", True)
    runs[2] = changed(changed(runs[2], "trainer.device", "cuda"), "trainer.checkpoint_minutes", 1.0)
    runs[3] = changed(runs[3], "plan", "plans/best.json")
    runs[4] = changed(runs[4], "trainer.device", "cpu")
    (section,), replaced = grouped(*runs)
    (point,) = section.points
    assert point.auc.n == 5
    assert not replaced
    # Only the trainer's options of these names are free.
    (section,), _ = grouped(*(changed(record(seed=seed), "table.device", seed) for seed in range(2)))
    assert len(section.points) == 2


@pytest.mark.parametrize(
    "other",
    [
        record(dataset_fingerprint="another"),
        record(model="deepfm"),
        record(dataset="avazu"),
        record(data=record()["data"] | {"protocol": "random"}),
        record(data=record()["data"] | {"min_count": 10}),
        record(data=record()["data"] | {"rows": {"test": 50}}),
    ],
)
def test_what_cannot_be_compared_is_never_in_one_section(other):
    sections, _ = grouped(record(), other)
    assert len(sections) == 2
    assert all(len(section.points) == 1 for section in sections)


def test_without_a_fingerprint_the_options_of_the_data_set_tell_data_apart():
    runs = [changed(record(dataset_fingerprint=None), "dataset", {"rows": rows}) for rows in (10, 20)]
    assert len(grouped(*runs)[0]) == 2


def test_training_configs_make_separate_series_that_say_what_differs():
    fast = changed(record(), "trainer.learning_rate", 0.5)
    (section,), _ = grouped(record(), fast, record("frequency"))
    labels = [point.label for point in section.points]
    assert labels == ["frequency 1/4", "hashing (learning_rate=0.1) 1/4", "hashing (learning_rate=0.5) 1/4"]


def test_one_line_never_joins_points_that_were_trained_differently():
    (section,), _ = grouped(record(share=1 / 4), changed(record(share=1 / 16), "trainer.learning_rate", 0.5))
    assert len({point.series for point in section.points}) == 2


def test_table_options_of_one_size_make_series_but_sizes_do_not():
    one = changed(changed(record(share=1 / 4), "table.rows", 1000), "table.combine", "add")
    two = changed(changed(record(share=1 / 16), "table.rows", 250), "table.combine", "add")
    rival = changed(changed(record(share=1 / 16), "table.rows", 250), "table.combine", "multiply")
    (section,), _ = grouped(one, two, rival)
    assert {point.series for point in section.points} == {"hashing (combine=add)", "hashing (combine=multiply)"}


def test_what_a_budget_made_of_the_options_makes_no_series():
    runs = []
    for probes in (1, 2):
        for share in (1 / 4, 1 / 16):
            run = record(share=share, asked_table={"name": "hashing", "rows": None, "threshold": 200, "probes": probes})
            run["config"]["table"] |= {
                "rows": int(4000 * share * probes),
                "threshold": int(800 * share),
                "probes": probes,
            }
            runs.append(run)
    (section,), _ = grouped(*runs)
    assert {point.series for point in section.points} == {"hashing (probes=1)", "hashing (probes=2)"}
    assert section.points[0].options["table.rows"] == "1000"


def test_of_many_lines_each_says_what_is_not_usual():
    runs = [record()]
    for changes in ({"combine": "add"}, {"scheme": "mixed_radix", "partitions": 3}, {"probes_of": {"C1": 2}}):
        runs.append(record())
        runs[-1]["config"]["table"] |= changes
    for run in runs:
        for name, usual in (("combine", "multiply"), ("scheme", "quotient"), ("partitions", 2)):
            run["config"]["table"].setdefault(name, usual)
    (section,), _ = grouped(*runs)
    assert {point.series for point in section.points} == {
        "hashing",
        "hashing (combine=add)",
        "hashing (partitions=3, scheme=mixed_radix)",
        "hashing (probes_of.C1=2)",
    }


def test_without_a_budget_the_size_options_name_the_setting():
    wide, slim = (
        changed(record("full", share, budget=None), "table.width", width) for share, width in ((1 / 2, 8), (1 / 4, 4))
    )
    (section,), _ = grouped(wide, slim)
    assert [point.label for point in section.points] == [f"{NARROWER} width=8", f"{NARROWER} width=4"]


def test_a_narrower_full_table_is_its_own_series_and_not_the_reference():
    (section,), _ = grouped(record("full", 1), record("full", 1 / 2))
    assert [point.series for point in section.points] == ["full", NARROWER]
    assert section.full is section.points[0]
    assert baselines(section, "full") == {section.points[1].anchor: section.full}


def test_a_full_table_in_fewer_bits_is_its_own_series_and_not_the_reference():
    made = changed(record("full", 5 / 16, budget=None), "precision", "int8")
    (section,), _ = grouped(record("full", 1), made)
    assert [point.method for point in section.points] == ["full", "full, int8"]
    assert section.full is section.points[0]


def test_the_reference_is_the_full_table_trained_the_same_way():
    quick = [changed(made, "trainer.learning_rate", 0.5) for made in (record("full", 1), record("hashing", 1 / 4))]
    (section,), _ = grouped(record("full", 1), record("hashing", 1 / 4), *quick)
    for point in section.points:
        full = section.reference(point)
        assert full.method == "full"
        assert full.options["trainer.learning_rate"] == point.options["trainer.learning_rate"]


def test_among_several_full_tables_validation_chooses():
    flattered = changed(record("full", 1), "trainer.learning_rate", 0.5)
    flattered["metrics"] = {"valid": {"auc": 0.70, "logloss": 0.5}, "test": {"auc": 0.95, "logloss": 0.1}}
    (section,), _ = grouped(record("full", 1), flattered)
    assert section.full.options["trainer.learning_rate"] == "0.1"


@pytest.mark.parametrize("latest", [0, 1, 2])
def test_of_the_same_run_twice_the_latest_counts_and_the_others_are_reported(latest):
    # The same moment written in three ways would sort wrongly as text.
    times = ["2025-03-01T09:00:00", "2025-03-01T10:30:00+02:00", "nonsense"]
    times[latest] = "2025-03-01T07:00:00-05:00"
    runs = [record(started=time) for time in times]
    (section,), replaced = grouped(*runs)
    (point,) = section.points
    assert [run.name for run in point.runs] == [f"run-{latest}"]
    assert [left.run for left in replaced] == [f"run-{i}" for i in range(3) if i != latest]
    assert all(f"run-{latest}" in left.reason for left in replaced)


def test_methods_that_learn_their_size_average_it():
    runs = [record(seed=seed) for seed in (0, 1)]
    for made, size in zip(runs, (1000, 3000), strict=True):
        made["bytes"] |= {"tables_serving": size, "parts": {"rows": size}}
    (section,), _ = grouped(*runs)
    (point,) = section.points
    assert point.bytes_serving.mean == 2000
    assert point.bytes_serving.std > 0
    assert point.mean_bytes("parts") == {"rows": 2000}
    assert point.kept == pytest.approx(2000 / FULL_BYTES)


def test_the_fronts_are_of_means_and_differ_by_metric():
    sharp, calm = record("frequency", 1 / 4), record("hashing", 1 / 4)
    sharp["metrics"]["test"] = {"auc": 0.80, "logloss": 0.50}
    calm["metrics"]["test"] = {"auc": 0.79, "logloss": 0.45}
    (section,), _ = grouped(sharp, calm)
    assert section.front("auc") == {section.points[0].anchor}
    assert section.front("logloss") == {section.points[1].anchor}


def test_grouping_does_not_depend_on_the_order_of_the_runs():
    runs = [run_of(record(m, s, seed), f"{m}{s}{seed}") for m in ("a", "b") for s in (1 / 4, 1 / 8) for seed in (0, 1)]
    expected = group(runs)
    random.Random(0).shuffle(runs)
    assert group(runs) == expected


def test_runs_without_a_config_are_told_apart_by_their_size():
    (section,), replaced = grouped(*(record(share=share, budget=None, config={}) for share in (1 / 4, 1 / 8)))
    assert len(section.points) == 2
    assert not replaced


def test_options_are_flat_and_free_of_circumstances():
    config = {"seed": 1, "a": {"b": [1, 2], "data_dir": "x", "c": {}}, "d": "/abs", "e": None, "budget": "1/4"}
    assert options_of_run(config) == {"a.b": "[1, 2]", "a.c": "{}", "e": "null"}
