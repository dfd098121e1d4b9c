"""What a report says of runs that come with predictions: baselines, intervals, resolution, calibration, changes."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_samples import predicted, record

from recemb.cli import main
from recemb.options import RecembError
from recemb.report import write_report
from recemb.report.analysis import baselines
from recemb.report.grouping import group
from recemb.report.records import check, find_records

SKILLS = {("full", 1): 1.0, ("hashing", 1 / 4): 0.9, ("hashing", 1 / 16): 0.5, ("frequency", 1 / 4): 0.95}


def sweep(folder, seeds=3, skills=SKILLS, **changes):
    for (method, share), skill in skills.items():
        for seed in range(seeds):
            name = f"{method}-{round(1 / share)}-seed{seed}"
            predicted(folder / name, record(method, share, seed, **changes), skill=skill)
    return folder


@pytest.fixture
def runs(tmp_path):
    return sweep(tmp_path / "runs")


def section_of(folder):
    (section,), _ = group([check(each) for each in find_records([folder])])
    return section


def by_label(section, name):
    labels = {point.anchor: point.label for point in section.points}
    return {labels[anchor]: other.label for anchor, other in baselines(section, name).items()}


def test_a_baseline_is_a_point_or_the_table_of_the_same_budget(runs):
    section = section_of(runs)
    others = ["frequency 1/4", "hashing 1/4", "hashing 1/16"]
    assert by_label(section, "full") == dict.fromkeys(others, "full")
    assert by_label(section, "hashing 1/16") == dict.fromkeys(["full", *others[:2]], "hashing 1/16")
    assert by_label(section, "hashing") == {"frequency 1/4": "hashing 1/4"}
    assert by_label(section, "frequency") == {"hashing 1/4": "frequency 1/4"}
    assert by_label(section, "nonsense") == {}


def test_a_baseline_that_is_not_there_is_an_error_that_lists_what_is(runs, tmp_path):
    with pytest.raises(
        RecembError, match=r"--baseline 'hash'; choose one of: full, frequency, hashing, .*hashing 1/16"
    ):
        write_report([runs], tmp_path / "out", baseline="hash")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", [0, 1, 75, float("nan")])
def test_a_target_that_is_no_auc_is_an_error(runs, tmp_path, target):
    with pytest.raises(RecembError, match="is no AUC"):
        write_report([runs], tmp_path / "out", targets=[target])


def test_the_summary_says_what_can_be_told_apart(runs, tmp_path):
    text = " ".join(write_report([runs], tmp_path / "out").summary)
    assert re.search(r"Against the full table in AUC, by 95 % intervals: .*worse \(.*hashing 1/16.*\)", text)
    assert re.search(
        r"Differences under 0\.\d+ AUC or 0\.\d+ logloss to the full table cannot be told apart here \(paired "
        r"bootstrap over 2,000 test rows and 3 seeds\); with many more seeds these rows would resolve 0\.\d+ AUC",
        text,
    )
    assert "Hypervolume, the mean AUC above 0.5" in text
    assert re.search(r"Fewest bytes for AUC 0\.\d{4} \(full − 0\.001\): ", text)
    assert "Mean prediction over observed rate" in text
    assert "predictions are missing" not in text


def test_one_seed_has_an_interval_of_the_rows_alone_and_says_so(tmp_path):
    text = " ".join(write_report([sweep(tmp_path / "runs", seeds=1)], tmp_path / "out").summary)
    assert "what other seeds would show is not in it" in text


def test_results_hold_what_points_come_to(runs, tmp_path):
    report = write_report([runs], tmp_path / "out", targets=[0.6, 0.99])
    frame = pd.read_parquet(report.parquet).set_index("run")
    row = frame.loc["hashing-16-seed1"]
    same = frame[frame["point"] == "hashing 1/16"]
    assert len(same) == 3
    assert row["baseline"] == "full"
    assert row["auc_mean"] == pytest.approx(same["test_auc"].mean())
    assert row["auc_mean_low"] < row["auc_mean"] < row["auc_mean_high"]
    full = frame[frame["point"] == "full"]
    assert row["auc_to_baseline"] == pytest.approx(same["test_auc"].mean() - full["test_auc"].mean())
    assert row["auc_to_baseline_low"] < row["auc_to_baseline"] < row["auc_to_baseline_high"] < 0
    assert row["logloss_to_baseline_low"] < row["logloss_to_baseline"] < row["logloss_to_baseline_high"]
    assert 0 < row["expected_calibration_error"] < 0.3
    assert row["calibration_ratio"] == pytest.approx(1, abs=0.3)
    assert json.loads(row["bytes_to_reach"]) == {"AUC 0.6": 2**23, "AUC 0.99": None}
    assert pd.isna(full["auc_to_baseline"]).all()
    assert (frame["hypervolume"].isna() == (frame["method"] == "full")).all()  # it is the upper bound itself


def break_predictions(folder, how):
    file = folder / "predictions.parquet"
    table = pq.read_table(file)
    labels, probability = (table.column(name).to_numpy() for name in ("label", "probability"))
    match how:
        case "missing":
            file.unlink()
        case "no parquet":
            file.write_bytes(b"PAR1")
        case "folder":
            file.unlink()
            file.mkdir()
        case "columns":
            pq.write_table(table.rename_columns(["label", "logit"]), file)
        case "texts":
            pq.write_table(pa.table({"label": labels, "probability": [str(p) + "x" for p in probability]}), file)
        case "nulls":
            pq.write_table(pa.table({"label": labels, "probability": [None, *probability[1:]]}), file)
        case "not probabilities":
            pq.write_table(pa.table({"label": labels, "probability": probability * 3}), file)
        case "cut off":
            pq.write_table(table.slice(0, 1000), file)
        case "of another run":
            pq.write_table(pa.table({"label": labels, "probability": probability[::-1].copy()}), file)
        case "of other rows":
            order = np.argsort(probability, kind="stable")
            pq.write_table(table.take(order), file)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "there is no predictions.parquet"),
        ("folder", "there is no predictions.parquet"),
        ("no parquet", "cannot be read"),
        ("columns", "cannot be read"),
        ("texts", "cannot be read"),
        ("nulls", "holds something else than labels and probabilities"),
        ("not probabilities", "holds something else than labels and probabilities"),
        ("cut off", "has 1,000 rows and the record 2,000"),
        ("of another run", "and the record"),
        ("of other rows", "its test labels are not those of the other runs"),
    ],
)
def test_broken_predictions_cost_a_point_its_interval_and_nothing_else(runs, tmp_path, how, reason):
    break_predictions(runs / "hashing-4-seed1", how)
    report = write_report([runs], tmp_path / "out")
    frame = pd.read_parquet(report.parquet).set_index("run")
    assert reason in frame.loc["hashing-4-seed1", "no_interval"]
    assert any("1 run cannot be used" in line and reason in line for line in report.summary)
    assert pd.isna(frame.loc["hashing-4-seed0", "auc_to_baseline_low"])
    assert pd.notna(frame.loc["hashing-4-seed0", "auc_to_baseline"])
    assert frame.loc["hashing-16-seed0", "auc_to_baseline_high"] < 0
    assert (report.points, report.left_out) == (4, ())


def test_the_page_shows_intervals_bands_calibration_and_ranks(runs, tmp_path):
    page = write_report([runs], tmp_path / "out").html.read_text()
    assert re.search(r">full table ± 0\.\d+: not told apart</text>", page)
    assert "mean ± std</text>" not in page
    assert re.search(r'<span class="interval apart">\[−0\.\d+, −0\.\d+\]</span>', page)
    assert 'aria-label="Reliability diagrams' in page
    assert "Bytes for 0." in page
    assert "Calibration error" in page


def test_a_baseline_of_one_budget_each_has_a_band_along_its_line(tmp_path):
    skills = SKILLS | {("frequency", 1 / 16): 0.6}
    page = write_report(
        [sweep(tmp_path / "runs", skills=skills)], tmp_path / "out", baseline="frequency"
    ).html.read_text()
    assert "AUC to baseline" in page
    assert "frequency of the same size" in page


def test_configs_are_linked_where_they_lie_below_the_page(runs, tmp_path):
    inside = write_report([runs], runs).html.read_text()
    assert 'href="hashing-4-seed0/config.yaml"' in inside
    assert "config.yaml" not in write_report([runs], tmp_path / "out").html.read_text()


def test_before_and_after_are_compared_point_by_point(runs, tmp_path):
    after = sweep(tmp_path / "after", skills=SKILLS | {("hashing", 1 / 4): 0.5, ("low_rank", 1 / 8): 0.9})
    for seed in range(3):
        shutil.rmtree(after / f"frequency-4-seed{seed}")
        made = json.loads((after / f"hashing-16-seed{seed}" / "run.json").read_text())
        made["bytes"]["tables_serving"] //= 2
        made["config"]["trainer"]["new_option"] = True  # as another version of the program writes it
        (after / f"hashing-16-seed{seed}" / "run.json").write_text(json.dumps(made))
    report = write_report([after], tmp_path / "out", before=[runs])
    rows = pd.read_csv(report.changes).set_index("point")
    rows = rows.rename({"hashing (new_option=true) 1/16": "hashing 1/16"})
    assert set(rows.index) == {"full", "hashing 1/4", "hashing 1/16", "low_rank 1/8", "frequency 1/4"}
    assert rows.loc["hashing 1/4", "auc_change_high"] < 0
    assert rows.loc["full", ["auc_change", "auc_change_low", "auc_change_high"]].tolist() == [0, 0, 0]
    assert rows.loc["hashing 1/16", "bytes_ratio"] == 0.5
    assert pd.isna(rows.loc["low_rank 1/8", "auc_before"])
    assert pd.isna(rows.loc["frequency 1/4", "auc_after"])
    text = " ".join(report.summary)
    assert "3 points of both folders compared." in text
    assert "1 worse (hashing 1/4), 2 cannot be told apart" in text
    assert "Serving bytes changed for 1." in text
    assert "Only before: 1 point (frequency 1/4)." in text
    assert "Only after: 1 point (low_rank 1/8)." in text
    page = report.html.read_text()
    assert "Before and after" in page
    assert "−50.0%" in page


def test_other_test_rows_are_never_compared(runs, tmp_path):
    after = sweep(tmp_path / "after", dataset_fingerprint="another")
    report = write_report([after], tmp_path / "out", before=[runs])
    assert "No point stands in both folders" in " ".join(report.summary)
    assert len(pd.read_csv(report.changes)) == 8


def test_the_same_runs_give_the_same_numbers(runs, tmp_path):
    one, two = (write_report([runs], tmp_path / name) for name in ("one", "two"))
    assert one.parquet.read_bytes() == two.parquet.read_bytes()
    assert one.html.read_bytes() == two.html.read_bytes()


def test_the_command_line_takes_baseline_targets_and_an_earlier_folder(runs, tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["--baseline", "hashing 1/16", "--target", "0.6", "--target", "0.7", "--before", str(runs)]
    assert main(["report", str(runs), "--out", str(out), *asked]) == 0
    frame = pd.read_csv(out / "results.csv")
    assert set(frame["baseline"].dropna()) == {"hashing 1/16"}
    assert set(json.loads(frame["bytes_to_reach"][0])) == {"AUC 0.6", "AUC 0.7"}
    assert (out / "changes.csv").is_file()
    assert main(["report", str(runs), "--baseline", "nothing"]) == 2
    assert "choose one of" in capsys.readouterr().err
