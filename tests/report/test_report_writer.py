import json
import re

import pandas as pd
import pytest
from report_samples import baselines, record, write

from recemb.options import RecembError
from recemb.report import write_report
from recemb.report.results import COLUMNS
from recemb.report.words import kept_share, times_smaller


@pytest.fixture
def runs(tmp_path):
    return baselines(tmp_path / "runs", seeds=2)


def test_a_report_writes_everything_and_says_what_it_did(runs, tmp_path):
    report = write_report([runs], tmp_path / "new" / "out")
    assert sorted(file.name for file in (tmp_path / "new" / "out").iterdir()) == sorted(f.name for f in report.files)
    assert [f.name for f in report.files] == [
        "report.html", "results.csv", "results.parquet", "results.md", "tradeoff.png", "tradeoff.svg",
    ]  # fmt: skip
    assert (report.runs, report.points, report.left_out) == (22, 11, ())
    assert report.html.stat().st_size < 150_000


def test_the_summary_says_in_words_what_matters(runs, tmp_path):
    for seed in range(2):
        good = record("full", 1, seed)["metrics"]
        write(runs / f"free-{seed}", record("frequency", 1 / 8, seed, metrics=good))
    summary = " ".join(write_report([runs], tmp_path / "out").summary)
    assert "24 completed runs of 3 methods on one data set and backbone." in summary
    assert "Smallest table within the full table's noise" in summary
    assert "frequency 1/8" in summary
    assert "kept 0.1250, 8.0x smaller" in summary
    assert "With 7,801 test rows (25.5% positive) the standard error of one AUC is 0.0065" in summary


def test_one_seed_of_the_full_table_makes_no_claim_about_noise(tmp_path):
    write(tmp_path / "runs" / "full", record("full", 1))
    write(tmp_path / "runs" / "small", record("frequency", 1 / 4, metrics=record("full", 1)["metrics"]))
    report = write_report([tmp_path / "runs"], tmp_path / "out")
    assert "noise is unknown" in " ".join(report.summary)
    assert "±" not in " ".join(report.summary)


def test_tables_hold_one_row_per_record_whatever_became_of_it(runs, tmp_path):
    write(runs / "zz-failed", record(status="failed", error="out of memory"))
    write(runs / "zz-broken", "{")
    write(runs / "zz-odd", {"schema": 1, "status": 7, "bytes": [], "seed": 10**40, "kept": float("nan")})
    write(runs / "zz-strange", record(command='a "b", c\nd', seed=5))
    report = write_report([runs], tmp_path / "out")
    csv, parquet = pd.read_csv(report.csv), pd.read_parquet(report.parquet)
    assert tuple(csv.columns) == tuple(parquet.columns) == COLUMNS
    assert len(csv) == len(parquet) == report.runs == 26
    assert list(parquet["run"]) == sorted(parquet["run"])
    row = parquet.set_index("run").loc["hashing-16-seed1"]
    expected = record("hashing", 1 / 16, 1)
    assert row["test_auc"] == expected["metrics"]["test"]["auc"]
    assert row["bytes_tables_serving"] == expected["bytes"]["tables_serving"]
    assert row["times_smaller"] == 16
    assert json.loads(row["config"]) == expected["config"]
    statuses = parquet.set_index("run")["status"]
    assert list(statuses.loc[["zz-broken", "zz-failed", "zz-odd"]]) == ["unreadable", "failed", "unknown"]
    assert csv.set_index("run").loc["zz-strange", "command"] == 'a "b", c\nd'
    assert set(parquet[parquet["left_out"].notna()]["run"]) == {"zz-broken", "zz-failed", "zz-odd"}


def test_left_out_runs_stand_in_the_page_with_their_reasons(runs, tmp_path):
    write(runs / "failed", record(status="failed", error="out of <memory>"))
    write(runs / "again", record("hashing", 1 / 4, 1, started="2030-01-01T00:00:00"))
    report = write_report([runs], tmp_path / "out")
    page = report.html.read_text()
    assert "Not in the charts" in page
    assert "failed: out of &lt;memory&gt;" in page
    assert "run again with the same config and seed as again" in page
    assert [left.run for left in report.left_out] == ["failed", "hashing-4-seed1"]


def test_the_same_records_give_the_same_bytes_wherever_they_lie(tmp_path):
    one = write_report([baselines(tmp_path / "one", seeds=1)], tmp_path / "out-one")
    two = write_report([baselines(tmp_path / "else" / "two", seeds=1)], tmp_path / "out-two")
    for first, second in zip(one.files, two.files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_hostile_records_leave_no_markup_behind(tmp_path):
    evil = '"><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'
    made = record(evil, 1 / 4, command=evil, dataset=evil, model=evil, budget=evil, dataset_fingerprint=evil)
    made["config"] = {evil: evil, "table": {evil: evil}}
    made["bytes"]["parts"] = {evil: 5}
    made["bytes"]["per_table"] = {evil: 5}
    made["data"]["protocol"] = evil
    write(tmp_path / "runs" / "evil", made)
    write(tmp_path / "runs" / "mean", record(status="failed", error=evil))
    page = write_report([tmp_path / "runs"], tmp_path / "out", title=evil).html.read_text()
    assert page.count("<script") == 1
    assert "<img" not in page


def test_unlike_data_gets_a_section_and_a_picture_each(tmp_path):
    runs = write(tmp_path / "runs" / "only", record()).parent
    write(runs / "second", record(seed=1))
    write(runs / "other-a", record("full", 1, dataset="Avazu!", model="dcn/v2"))
    write(runs / "other-b", record("full", 1, dataset="Avazu!", model="dcn/v2", dataset_fingerprint="x"))
    report = write_report([runs], tmp_path / "out")
    names = [picture.name for picture in report.pictures if picture.suffix == ".png"]
    assert names == ["tradeoff.png", "tradeoff-avazu-dcn-v2.png", "tradeoff-avazu-dcn-v2-3.png"]
    assert len(set(names)) == report.html.read_text().count('<section id="section-')


def test_nothing_completed_is_an_error_that_says_what_was_found(tmp_path):
    write(tmp_path / "a", record(status="failed", error="no memory"))
    write(tmp_path / "b", "{")
    with pytest.raises(RecembError, match=r"2 records found .*1 failed, 1 unreadable.* a: failed: no memory"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    runs = write(tmp_path / "runs" / "only", record()).parent
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RecembError, match="cannot write the report to"):
            write_report([runs], out)


def test_a_file_that_cannot_be_replaced_leaves_no_unfinished_one(tmp_path):
    runs = write(tmp_path / "runs" / "only", record()).parent
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    with pytest.raises(RecembError, match="cannot write"):
        write_report([runs], tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_shares_are_written_both_ways():
    assert (kept_share(0.0625), times_smaller(0.0625)) == ("0.0625", "16.0x")
    assert (kept_share(None), times_smaller(None)) == ("–", "–")
    assert (kept_share(1e-5), times_smaller(1e-5)) == ("1e-05", "100,000x")


def test_markdown_has_a_row_a_point_and_hostile_names_stay_in_their_cell(tmp_path):
    for seed in (0, 1):
        write(tmp_path / "runs" / f"full{seed}", record(method="full", budget=None, seed=seed))
        write(tmp_path / "runs" / f"odd{seed}", record(method="a|<b>", seed=seed))
    text = write_report([tmp_path / "runs"], tmp_path / "out").markdown.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 3
    assert len({len(re.split(r"(?<!\\)[|]", row)) for row in rows}) == 1
    assert "a\\|&lt;b>" in text


def test_completed_runs_that_cannot_be_shown_are_not_told_to_finish(tmp_path):
    undefined = record()
    undefined["metrics"]["test"]["auc"] = None
    undefined["data"]["positive_rate"]["test"] = 0.0
    write(tmp_path / "runs" / "a", record(status="interrupted"))
    write(tmp_path / "runs" / "b", undefined)
    with pytest.raises(RecembError) as caught:
        write_report([tmp_path / "runs"], tmp_path / "out")
    said = str(caught.value)
    assert "(1 completed, 1 interrupted); the first, b: completed, but all its test rows have the same label" in said
    assert "finish" not in said
    write(tmp_path / "runs" / "b", record(status="failed"))
    with pytest.raises(RecembError, match="finish at least one run"):
        write_report([tmp_path / "runs"], tmp_path / "out")
