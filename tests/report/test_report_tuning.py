"""What a report says of runs whose learning rates were tuned."""

from typing import Any

import pandas as pd
from report_samples import record, write

import recemb.report.records
from recemb.report import write_report

RANGES = {"lr": [3e-4, 2e-2], "table_lr": [5e-3, 5e-1]}


def tuned(trials: int, **options: Any) -> dict[str, Any]:
    """Make the record of a run that chose its rates by so many trials."""
    made = record(**options)
    tried = [{"lr": 0.003, "table_lr": 0.02 * n, "valid": {"auc": 0.7, "logloss": 0.5}, "seconds": 1.0}
             for n in range(1, trials + 1)]  # fmt: skip
    best = {"trial": 2, "lr": 0.003, "table_lr": 0.04}
    tuning = {"trials": trials, "ranges": RANGES, "monitor": "logloss", "tried": tried, "best": best}
    return made | {"tuning": tuning, "config": made["config"] | {"tune": {"trials": trials, **RANGES}}}


def test_a_report_says_that_rates_were_tuned_and_by_how_many_trials(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"full-{seed}", tuned(8, method="full", share=1, seed=seed))
        write(tmp_path / f"hashing-{seed}", tuned(8, seed=seed))
    report = write_report([tmp_path], tmp_path / "out")
    said = "The learning rates of every run were chosen by 8 trials on validation rows."
    assert said in report.summary
    assert said in report.html.read_text()
    assert said in report.markdown.read_text()
    results = pd.read_csv(report.csv)
    assert list(results["trials"]) == [8] * 4
    assert list(results["tuned_lr"]) == [0.003] * 4
    assert list(results["tuned_table_lr"]) == [0.04] * 4
    assert report.points == 2  # rates that differ by seed make no points of their own


def test_unequal_numbers_of_trials_are_warned_of(tmp_path):
    write(tmp_path / "full", record("full", 1))
    write(tmp_path / "hashing", record())
    for trials in (4, 8):
        write(tmp_path / f"hashing-{trials}", tuned(trials))
    report = write_report([tmp_path], tmp_path / "out")
    (warning,) = [line for line in report.summary if "trials" in line and "different numbers" in line]
    assert warning == (
        "Learning rates were chosen on validation rows by different numbers of trials, so that differences between "
        "points are not those of the methods alone: 0 trials: full, hashing 1/4; 4 trials: hashing (trials=4) 1/4; "
        "8 trials: hashing (trials=8) 1/4."
    )
    assert warning in report.html.read_text()
    assert warning in report.markdown.read_text()


def test_tuned_and_untuned_lines_are_told_apart_by_their_trials(tmp_path):
    write(tmp_path / "given", record())
    write(tmp_path / "tuned", tuned(8))
    report = write_report([tmp_path], tmp_path / "out")
    assert sorted(pd.read_csv(report.csv)["point"]) == ["hashing (trials=8) 1/4", "hashing 1/4"]


def test_without_tuning_nothing_is_said_of_it(tmp_path):
    write(tmp_path / "full", record("full", 1))
    report = write_report([tmp_path], tmp_path / "out")
    assert not [line for line in report.summary if "trial" in line]
    assert pd.read_csv(report.csv)["trials"].isna().all()


def test_ranges_that_differ_are_named(tmp_path):
    write(tmp_path / "one", tuned(8))
    other = tuned(8)
    other["config"]["tune"]["lr"] = [0.001, 0.01]
    write(tmp_path / "other", other)
    report = write_report([tmp_path], tmp_path / "out")
    assert "hashing (lr=[0.001, 0.01])" in report.markdown.read_text()


def test_the_documentation_has_every_name():
    made = tuned(2)["tuning"]
    for key in (*made, *made["tried"][0], *made["best"], *made["ranges"]):
        assert f'"{key}": ' in recemb.report.records.__doc__
