"""Avazu, KDD Cup 2012 and Criteo's terabyte, from a few invented rows in their forms."""

import gzip
import random

import criteo_samples
import numpy as np
import pandas as pd
import pytest
from pyarrow import feather

from recemb.cli import main
from recemb.datasets import AvazuConfig, CriteoConfig, CriteoTerabyteConfig, KddCup2012Config, PreparedDataset, prepare
from recemb.datasets.criteo_terabyte import CriteoDays
from recemb.datasets.raw_values import RawValues
from recemb.options import RecembError

SPLITS = ("train", "valid", "test")
AVAZU = [
    "id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain",
    "app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type", "C14", "C15", "C16",
    "C17", "C18", "C19", "C20", "C21",
]  # fmt: skip
KDD12 = [
    "DisplayURL", "AdID", "AdvertiserID", "Depth", "Position", "QueryID", "KeywordID", "TitleID", "DescriptionID",
    "UserID",
]  # fmt: skip


def texts_of(dataset, split, feature):
    """The raw texts of a column of prepared ids; None where missing or unknown."""
    listed = [None, *feather.read_table(dataset.path / "vocabulary" / f"{feature}.arrow")["value"].to_pylist()]
    return [listed[i] for i in feather.read_table(dataset.path / f"{split}.arrow")[feature].to_pylist()]


def avazu(path, days=10, rows=30, **changes):
    """Write rows of several days from Tuesday, 21 October 2014 on; each has its number in device_ip."""
    draw = random.Random(0)
    frame = pd.DataFrame(
        {
            name: [
                f"{draw.randrange(20):08x}" if name[0] in "sad" else str(draw.randrange(-1, 9))
                for _ in range(days * rows)
            ]
            for name in AVAZU
        }
    )
    frame["id"] = [str(10**19 + i) for i in range(len(frame))]
    frame["click"] = [draw.randint(0, 1) for _ in range(len(frame))]
    frame["hour"] = [f"1410{21 + i // rows}{i % rows * 24 // rows:02d}" for i in range(len(frame))]
    frame["device_ip"] = [f"{i:08x}" for i in range(len(frame))]
    for name, value in changes.items():
        frame.loc[7, name] = value
    frame.to_csv(path, index=False)
    return str(path)


def test_avazu_splits_by_the_last_day_and_takes_hours_apart(tmp_path):
    config = AvazuConfig(path=str(tmp_path / "out"), source=avazu(tmp_path / "train.csv.gz"), min_count=1)
    dataset = prepare(config, progress=False)
    assert {split: dataset.num_rows(split) for split in SPLITS} == {"train": 270, "valid": 15, "test": 15}
    assert (dataset.meta["protocol"], dataset.dense_names) == ("last_day", [])
    names = [feature.name for feature in dataset.features]
    assert names == ["hour_of_day", "weekday", *[name for name in AVAZU if name not in ("id", "click", "hour")]]
    frame = pd.read_csv(config.source, dtype=str)
    train = frame[:270]
    assert texts_of(dataset, "train", "hour_of_day") == [str(int(hour[6:])) for hour in train["hour"]]
    assert texts_of(dataset, "train", "weekday") == [str((int(hour[4:6]) - 20) % 7) for hour in train["hour"]]
    for name in ("device_ip", "C1", "C20", "site_id"):
        assert texts_of(dataset, "train", name) == train[name].tolist()
    labels = [feather.read_table(dataset.path / f"{split}.arrow")["label"].to_pylist() for split in SPLITS]
    assert [label for part in labels for label in part] == frame["click"].astype(int).tolist()
    values = RawValues.of(dataset)
    assert values.ids("hour_of_day", [23, "23", "2"]).tolist() == [values.ids("hour_of_day", ["23"])[0]] * 2 + [
        values.ids("hour_of_day", [2])[0]
    ]


def test_avazu_at_random_and_in_one_day(tmp_path):
    source = avazu(tmp_path / "train.csv", days=1, rows=300)
    dataset = prepare(
        AvazuConfig(path=str(tmp_path / "a"), source=source, protocol="random", seed=3, min_count=1), progress=False
    )
    assert dataset.meta["protocol"] == "random"
    assert 210 < dataset.num_rows("train") < 270
    with pytest.raises(RecembError, match=r"leaves no row for training: .* needs two days.*dataset.protocol=random"):
        prepare(AvazuConfig(path=str(tmp_path / "b"), source=source), progress=False)


@pytest.mark.parametrize("hour", ["14103", "1410205", "141025xx", "14102524", "", "14132500", "2014-10-21 00:00:00"])
def test_an_hour_that_is_none_is_a_bad_row(tmp_path, hour):
    config = AvazuConfig(path=str(tmp_path / "out"), source=avazu(tmp_path / "train.csv", hour=hour))
    shown = repr(hour) if hour else "a missing value"
    with pytest.raises(RecembError, match=rf"train.csv line 9, column hour: {shown} is not .* written YYMMDDHH"):
        prepare(config, progress=False)
    dataset = prepare(config, on_bad_rows="skip", progress=False)
    assert dataset.meta["skipped"] == {"hour": 1}
    assert dataset.num_rows("train") == 269


def kdd12(path, rows=400, **options):
    draw = random.Random(0)
    lines = []
    for number in range(rows):
        clicks = draw.choice([0, 0, 0, 1, 3])
        values = [
            draw.choice(["12057878999086460853", "007", '"', "5"]) if j == 0 else draw.randrange(9) for j in range(10)
        ]
        lines.append([clicks, clicks + draw.randint(1, 5), *values[:9], number])
    path.write_bytes(gzip.compress(b"".join("\t".join(map(str, line)).encode() + b"\n" for line in lines)))
    return str(path), lines


def test_kdd12_takes_a_row_as_clicked_or_not(tmp_path):
    source, lines = kdd12(tmp_path / "training.txt.gz")
    dataset = prepare(KddCup2012Config(path=str(tmp_path / "out"), source=source, min_count=1), progress=False)
    assert [feature.name for feature in dataset.features] == KDD12
    assert dataset.meta["protocol"] == "random"
    assert sum(dataset.num_rows(split) for split in SPLITS) == 400
    rows = [int(text) for text in texts_of(dataset, "train", "UserID")]
    assert rows == sorted(rows)
    assert 280 < len(rows) < 360
    labels = feather.read_table(dataset.path / "train.arrow")["label"].to_pylist()
    assert labels == [int(lines[row][0] > 0) for row in rows]
    assert texts_of(dataset, "train", "DisplayURL") == [str(lines[row][2]) for row in rows]
    assert texts_of(dataset, "train", "DescriptionID") == [str(lines[row][10]) for row in rows]
    with pytest.raises(RecembError, match="those of KDD Cup 2012 have none"):
        KddCup2012Config(protocol="last_day")


def terabyte(folder, days=(0, 1, 2, 9, 10), rows=40):
    folder.mkdir()
    written = []
    for day in days:
        part = criteo_samples.make_rows(rows, seed=day)
        criteo_samples.write(folder / f"day_{day}{'.gz' if day % 2 else ''}", part, zipped=day % 2 == 1)
        written += part
    return written


@pytest.mark.parametrize("how", ["folder", "glob", "list"])
def test_the_terabyte_splits_by_days(tmp_path, how):
    rows = terabyte(tmp_path / "days")
    (tmp_path / "days" / "day_1_notes.txt").write_text("not a day")
    files = [str(path) for path in (tmp_path / "days").glob("day_*") if path.suffix != ".txt"]
    source = {"folder": str(tmp_path / "days"), "glob": f"{tmp_path}/days/day_*[0-9z]", "list": files}[how]
    dataset = prepare(CriteoTerabyteConfig(path=str(tmp_path / "out"), source=source), progress=False)
    frames, _ = criteo_samples.expected(rows, [0] * 160 + [1] * 20 + [2] * 20, lambda name: 2)
    for split, frame in zip(SPLITS, frames, strict=True):
        pd.testing.assert_frame_equal(pd.read_feather(dataset.path / f"{split}.arrow"), frame, rtol=1e-6)
    assert (dataset.meta["protocol"], dataset.meta["dataset"]) == ("last_day", "criteo_terabyte")


def test_the_terabyte_in_small_blocks_and_at_random(tmp_path):
    rows = terabyte(tmp_path / "days")

    class Small(CriteoTerabyteConfig):
        def open(self, *, on_bad_rows):
            return CriteoDays(self.source, self.protocol, on_bad_rows, block_bytes=300)

    source = str(tmp_path / "days")
    whole = prepare(CriteoTerabyteConfig(path=str(tmp_path / "a"), source=source), progress=False)
    assert prepare(Small(path=str(tmp_path / "b"), source=source), progress=False).fingerprint == whole.fingerprint
    same = criteo_samples.write(tmp_path / "train.txt", rows)
    kaggle = prepare(CriteoConfig(path=str(tmp_path / "c"), source=same, protocol="random"), progress=False)
    drawn = prepare(CriteoTerabyteConfig(path=str(tmp_path / "d"), source=source, protocol="random"), progress=False)
    assert drawn.fingerprint == kaggle.fingerprint


def test_days_that_are_none_are_told(tmp_path):
    terabyte(tmp_path / "days", days=(3,))
    (tmp_path / "empty").mkdir()
    for source, words in (
        (None, "dataset.source is not given"),
        (str(tmp_path / "empty"), "has no files day_0, day_1"),
        (str(tmp_path / "days"), "leaves no row for training: a split by the last day needs two days"),
    ):
        with pytest.raises(RecembError, match=words):
            prepare(CriteoTerabyteConfig(path=str(tmp_path / "out"), source=source), progress=False)
    day = tmp_path / "days" / "day_3.gz"
    for name, words in (("training.txt", "does not say which day it is"), ("day_03.gz", "are both day 3")):
        (tmp_path / "days" / name).write_bytes(day.read_bytes())
        with pytest.raises(RecembError, match=words):
            CriteoTerabyteConfig(source=f"{tmp_path}/days/*").open(on_bad_rows="error")
        (tmp_path / "days" / name).unlink()


@pytest.mark.parametrize("name", ["avazu", "kdd12"])
def test_it_trains_and_serves_from_the_command_line(tmp_path, name):
    source = avazu(tmp_path / "train.csv") if name == "avazu" else kdd12(tmp_path / "training.txt")[0]
    data = [f"dataset={name}", f"dataset.path={tmp_path}/data"]
    assert main(["prepare", *data, f"dataset.source={source}"]) == 0
    small = ["trainer.batch_size=64", "trainer.epochs=1", "model.embedding_dim=4", "table=hashing", "budget=1/2"]
    assert main(["train", *data, *small, f"hydra.run.dir={tmp_path}/run"]) == 0
    RawValues.of(PreparedDataset.open(tmp_path / "data")).save(tmp_path / "export")
    values = RawValues.load(tmp_path / "export")
    assert np.all(values.ids("banner_pos" if name == "avazu" else "Position", [1, "1"]) > 0)
