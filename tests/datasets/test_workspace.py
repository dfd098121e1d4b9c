import json
import logging
import os
import resource
import signal
import time
from pathlib import Path

import criteo_samples as samples
import pytest
from command_line import server

from recemb.datasets import CriteoConfig, PreparedDataset, SyntheticConfig, prepare
from recemb.datasets.workspace import workspace
from recemb.options import RecembError


def prepare_in_child(config, largest_file, answers):
    # A shell starts background jobs with Ctrl-C ignored, and the children of tests inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        prepare(config, progress=False)
        answers.send("finished")
    except RecembError as error:
        answers.send(str(error))
    except KeyboardInterrupt:
        answers.send("interrupted")


def start(config, largest_file=0):
    answers, theirs = server.Pipe(duplex=False)
    child = server.Process(target=prepare_in_child, args=(config, largest_file, theirs))
    child.start()
    theirs.close()
    return child, answers


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing_and_can_be_run_again(tmp_path, how):
    config = SyntheticConfig(path=str(tmp_path / "new" / "out"), rows=20_000_000)
    partial = tmp_path / "new" / ".out.partial"
    child, answers = start(config)
    try:
        while not (partial / "spool" / "label").exists():
            assert child.is_alive()
            time.sleep(0.02)
        with pytest.raises(RecembError, match="Another process is preparing"):
            prepare(config, progress=False)
    finally:
        os.kill(child.pid, how)
        child.join()
    assert partial.exists() == (how == signal.SIGKILL)
    assert not (tmp_path / "new" / "out").exists()
    if how == signal.SIGINT:
        assert answers.recv() == "interrupted"
    config.rows = 1000
    assert prepare(config, progress=False).num_rows("train") == 857
    assert samples.names(tmp_path / "new") == ["out"]


def test_a_full_disk_is_one_sentence(tmp_path):
    child, answers = start(SyntheticConfig(path=str(tmp_path / "my out"), rows=2_000_000), largest_file=1 << 20)
    assert answers.recv() == (
        f"There is no room left to write {tmp_path}/my out (about 629 MiB are needed); "
        "free some, or choose another dataset.path."
    )
    child.join()
    assert samples.names(tmp_path) == []


@pytest.fixture
def config(tmp_path):
    source = samples.write(tmp_path / "train.txt", samples.make_rows(60))
    return CriteoConfig(path=str(tmp_path / "out"), source=source)


def contents(folder):
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(folder.rglob("*"))}


def test_the_same_data_set_is_not_made_twice(config, tmp_path, caplog):
    first = prepare(config, progress=False)
    before = contents(tmp_path)
    caplog.set_level(logging.INFO)
    again = prepare(config, overwrite=True, progress=False)
    assert again.meta == first.meta
    assert contents(tmp_path) == before
    assert "holds this data set already" in caplog.text


def test_another_data_set_is_refused_and_the_difference_named(config, tmp_path):
    first = prepare(config, progress=False)
    before = contents(tmp_path / "out")
    other_source = samples.write(tmp_path / "other.txt", samples.make_rows(70))
    touched = Path(config.source).stat().st_mtime_ns
    changes = [
        ({"min_count": 5}, "min_count=2 (asked for: 5)"),
        ({"protocol": "random"}, "protocol=last_day (asked for: random)"),
        ({"min_counts": {"C1": 9}}, "min_counts={} (asked for: {'C1': 9})"),
        ({"source": other_source}, "other source files: train.txt of "),
    ]
    for options, words in changes:
        wanted = CriteoConfig(**({"path": config.path, "source": config.source} | options))
        with pytest.raises(RecembError) as caught:
            prepare(wanted, progress=False)
        assert words in str(caught.value)
        assert "overwrite=true" in str(caught.value)
    os.utime(config.source, ns=(touched, touched + 10))
    with pytest.raises(RecembError, match="other source files"):
        prepare(config, progress=False)
    with pytest.raises(RecembError, match=r"dataset=criteo \(asked for: synthetic\)"):
        prepare(SyntheticConfig(path=config.path), progress=False)
    assert contents(tmp_path / "out") == before
    config.min_count = 5
    second = prepare(config, overwrite=True, progress=False)
    assert second.fingerprint != first.fingerprint
    assert samples.names(tmp_path) == ["other.txt", "out", "train.txt"]


def test_rows_left_out_are_not_silently_reused(config):
    with Path(config.source).open("ab") as file:
        file.write(b"bad\n")
    prepare(config, on_bad_rows="skip", progress=False)
    assert prepare(config, on_bad_rows="skip", progress=False).meta["skipped"] == {"fields": 1}
    with pytest.raises(RecembError, match="1 bad rows skipped"):
        prepare(config, progress=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_prepared_data_set_is_never_touched(config, tmp_path, overwrite):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(RecembError, match="other things in it, which will not be touched"):
        prepare(config, overwrite=overwrite, progress=False)
    (out / "meta.json").write_text("{}")
    with pytest.raises(RecembError, match="other things in it, which will not be touched"):
        prepare(config, overwrite=overwrite, progress=False)
    assert (out / "thesis.tex").read_text() == "years of work"
    config.path = config.source
    with pytest.raises(RecembError, match="is a file"):
        prepare(config, overwrite=overwrite, progress=False)
    config.path = config.source + "/below"
    with pytest.raises(RecembError, match="cannot be created"):
        prepare(config, overwrite=overwrite, progress=False)


def test_an_empty_folder_and_a_link_to_one_are_fine(config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    prepare(config, progress=False)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "elsewhere" / "meta.json").exists()


def test_a_folder_that_may_not_be_written(unprivileged):
    source = samples.write(unprivileged / "train.txt", samples.make_rows(60))
    config = CriteoConfig(path=str(unprivileged / "deep" / "out"), source=source)
    unprivileged.chmod(0o555)
    with pytest.raises(RecembError, match=r"out cannot be written \(Permission denied\); choose another dataset.path"):
        prepare(config, progress=False)


def test_a_finished_data_set_in_a_read_only_folder_is_opened(unprivileged):
    source = samples.write(unprivileged / "train.txt", samples.make_rows(60))
    config = CriteoConfig(path=str(unprivileged / "out"), source=source)
    made = prepare(config, progress=False)
    unprivileged.chmod(0o555)
    assert prepare(config, progress=False).fingerprint == made.fingerprint


def test_a_replacement_cut_short_is_mended(config, tmp_path):
    prepare(config, progress=False)
    before = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    prepare(config, progress=False)
    assert contents(tmp_path / "out") == before
    assert samples.names(tmp_path) == ["out", "train.txt"]


def test_a_live_process_keeps_its_place(config, tmp_path):
    with workspace(tmp_path / "out", "out") as partial:
        (partial / "work").write_text("going on")
        with pytest.raises(RecembError, match="Another process is preparing"):
            prepare(config, progress=False)
        assert (partial / "work").exists()
    prepare(config, progress=False)


def test_opening_what_cannot_be_opened(config, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RecembError, match=r"There is no prepared data set at .*out; run recemb prepare"):
        PreparedDataset.open(out)
    prepare(config, progress=False)
    meta = (out / "meta.json").read_text()
    train = (out / "train.arrow").read_bytes()
    for name, content, words in (
        ("train.arrow", train[:-100], "train.arrow is missing or damaged"),
        ("train.arrow", train[: len(train) // 2], "train.arrow is missing or damaged"),
        ("train.arrow", (out / "test.arrow").read_bytes(), "rows instead of"),
        ("train.arrow", b"", "train.arrow is missing or damaged"),
        ("meta.json", meta[:50].encode(), "meta.json cannot be read"),
        ("meta.json", b"[]", "meta.json cannot be read"),
        ("meta.json", b'{"schema": 1}', "it has no rows"),
        (
            "meta.json",
            json.dumps(json.loads(meta) | {"schema": 99}).encode(),
            "in form 99, and this recemb reads form 1",
        ),
    ):
        good = (out / name).read_bytes()
        (out / name).write_bytes(content)
        with pytest.raises(RecembError) as caught:
            PreparedDataset.open(out)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(RecembError):
            prepare(config, progress=False)
        (out / name).write_bytes(good)
    (out / "meta.json").unlink()
    with pytest.raises(RecembError, match=r"is not a prepared data set \(it has no meta.json\)"):
        PreparedDataset.open(out)
    (out / "meta.json").write_bytes(b"spoiled")
    assert prepare(config, overwrite=True, progress=False).meta == json.loads(meta)


def test_overwriting_never_takes_along_what_is_not_ours(tmp_path):
    path = tmp_path / "out"
    prepare(SyntheticConfig(path=str(path), rows=100), progress=False)
    (path / "raw.txt").write_text("mine")
    with pytest.raises(RecembError, match=r"holds raw\.txt beside a prepared data set"):
        prepare(SyntheticConfig(path=str(path), rows=200), overwrite=True, progress=False)
    assert (path / "raw.txt").read_text() == "mine"


def test_a_folder_with_a_private_name_is_not_swept(tmp_path):
    mine = tmp_path / ".out.partial"
    mine.mkdir()
    (mine / "mine").write_text("mine")
    with pytest.raises(RecembError, match="is in the way"):
        prepare(SyntheticConfig(path=str(tmp_path / "out"), rows=100), progress=False)
    assert (mine / "mine").read_text() == "mine"


def test_a_missing_vocabulary_is_damage(tmp_path):
    config = SyntheticConfig(path=str(tmp_path / "out"), rows=100)
    prepare(config, progress=False)
    (tmp_path / "out" / "vocabulary" / "C3.arrow").unlink()
    with pytest.raises(RecembError, match=r"C3\.arrow is missing"):
        prepare(config, progress=False)
    prepare(config, overwrite=True, progress=False)


def test_a_path_that_leads_nowhere_is_one_sentence(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RecembError, match="cannot be"):
        prepare(SyntheticConfig(path=str(tmp_path / "loop" / "x"), rows=100), progress=False)
