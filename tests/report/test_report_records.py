import json

import pytest
from report_samples import record, stages, structure, write

from recemb.options import RecembError
from recemb.report import write_report
from recemb.report.records import LeftOut, Run, check, find_records, read_record


def checked(tmp_path, content):
    return check(read_record(write(tmp_path / "run", content) / "run.json", "run"))


def without(*path):
    made = record()
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return made


def test_a_completed_run_is_read_whole(tmp_path):
    run = checked(tmp_path, record("hashing", 1 / 16, seed=2))
    assert isinstance(run, Run)
    assert (run.method, run.dataset, run.model, run.seed, run.budget) == ("hashing", "criteo", "dlrm", 2, "1/16")
    assert run.bytes_serving == 8 * 2**20
    assert run.kept == pytest.approx(1 / 16)
    assert sum(run.parts.values()) == run.bytes_serving
    assert run.per_table["C26"] == 8 * 2**20 // 26
    assert run.rows["test"] == 7_801
    assert run.test.auc == record("hashing", 1 / 16, seed=2)["metrics"]["test"]["auc"]


def test_what_is_not_essential_may_be_absent(tmp_path):
    made = record()
    essential = {"schema", "status", "method", "dataset", "model", "seed"}
    slim = {key: value for key, value in made.items() if key in essential}
    slim |= {"bytes": {"tables_serving": 100}, "metrics": {"test": {"auc": 0.7, "logloss": 0.5}}}
    run = checked(tmp_path, slim)
    assert isinstance(run, Run)
    assert run.kept is None
    assert run.valid is None
    assert run.config == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (record(status="interrupted"), "interrupted"),
        (record(status="running"), "still running"),
        (record(status="failed", error="out of memory"), "failed: out of memory"),
        (record(status="failed", error=None), "does not say why"),
        (record(status=["completed"]), '"unknown" is not known'),
        (record(schema=2), "schema 2 is not known"),
        (record(schema=True), "schema true is not known"),
        (without("schema"), "schema null is not known"),
        ("{broken", "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "holds a list"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 10_000, "not JSON"),
        (without("method"), "method is missing"),
        (without("seed"), "seed is missing"),
        (record(seed=True), "seed is missing"),
        (record() | {"seed": 0.5}, "seed is missing"),
        (record(metrics=None), "metrics.test.auc is missing"),
        (record(metrics={"test": {"auc": float("nan"), "logloss": 0.4}}), "metrics.test.auc is missing"),
        (record(metrics={"test": {"auc": 0.7, "logloss": float("inf")}}), "metrics.test.logloss is missing"),
        (record(metrics={"test": {"auc": "0.7", "logloss": 0.4}}), "metrics.test.auc is missing"),
        (record(metrics={"test": {"auc": 1.2, "logloss": 0.4}}), "metrics.test.auc is 1.2, outside 0 to 1"),
        (record(metrics={"test": {"auc": 0.7, "logloss": -1}}), "metrics.test.logloss is -1"),
        (record(bytes={"tables_serving": 0}), "bytes.tables_serving is 0"),
        (record(bytes={"tables_serving": 10**30}), "bytes.tables_serving is missing"),
        (record(bytes="many"), "bytes.tables_serving is missing"),
    ],
)
def test_a_run_that_cannot_be_shown_says_why(tmp_path, content, reason):
    left_out = checked(tmp_path, content)
    assert isinstance(left_out, LeftOut)
    assert reason in left_out.reason


def test_texts_are_cleaned_of_what_no_file_format_takes(tmp_path):
    run = checked(tmp_path, record("evil\x00\ud800\n name\ufffe", command="a\x1b[2J\nb"))
    assert run.method == "evil\ufffd\ufffd name\ufffd"
    assert run.command == "a\ufffd[2J\nb"


def test_long_names_are_cut(tmp_path):
    run = checked(tmp_path, record("m" * 10_000))
    assert len(run.method) == 120
    assert run.method.endswith("…")


def test_records_are_found_at_any_depth_once_and_named_from_the_common_root(tmp_path):
    write(tmp_path / "a" / "deep" / "er", record())
    write(tmp_path / "b", record())
    names = [r.name for r in find_records([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "deep"])]
    assert names == ["a/deep/er", "b"]


def test_a_run_folder_itself_may_be_named(tmp_path):
    assert [r.name for r in find_records([write(tmp_path / "mine", record())])] == ["mine"]


def test_a_folder_in_place_of_the_record_is_reported(tmp_path):
    write(tmp_path / "good", record())
    (tmp_path / "odd" / "run.json").mkdir(parents=True)
    assert [r.name for r in find_records([tmp_path])] == ["good"]
    assert "regular file" in read_record(tmp_path / "odd" / "run.json", "odd").unreadable


def test_missing_folders_and_folders_without_records_are_errors(tmp_path):
    with pytest.raises(RecembError, match="nowhere is not a folder"):
        find_records([tmp_path / "nowhere"])
    with pytest.raises(RecembError, match=r"no run\.json under"):
        find_records([tmp_path])
    with pytest.raises(RecembError, match="at least one folder"):
        find_records([])


def test_the_samples_follow_the_schema_in_the_documentation():
    import recemb.report.records as records

    for key in json.loads(json.dumps(record(structure=structure(), stages=stages()))):
        assert f"\n    {key} " in records.__doc__
    for key in (key for part in (structure(), structure()["per_table"]["C1"], *stages()) for key in part):
        assert f'"{key}": ' in records.__doc__


@pytest.mark.parametrize("path", [("seed",), ("training", "steps"), ("data", "rows", "test"), ("bytes", "parts", "a")])
@pytest.mark.parametrize("value", [1e19, 1e300, 2.5])
def test_numbers_that_no_column_holds_do_not_end_the_report(path, value, tmp_path):
    odd = record(seed=1)
    inner = odd
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    write(tmp_path / "runs" / "good", record())
    write(tmp_path / "runs" / "odd", odd)
    write_report([tmp_path / "runs"], tmp_path / "out")


def test_a_name_that_looks_like_a_drawing_is_a_name(tmp_path):
    write(tmp_path / "runs" / "odd", record(method='viewBox="0 0 1 1"'))
    write_report([tmp_path / "runs"], tmp_path / "out")
