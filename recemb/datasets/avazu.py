"""The Avazu data (Kaggle, avazu-ctr-prediction, 2014): ten days of mobile ads, 22 categories and no dense features.

The hour of a row, written YYMMDDHH, becomes two features, hour_of_day (0 to 23) and weekday (0 = Monday to 6): an hour
as it stands never comes again, so that nothing learned of it would be of use. The id of a row is left out.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

from recemb.datasets.base import DatasetConfig, RowSource
from recemb.datasets.tabular import TabularRows
from recemb.datasets.tabular_columns import Columns
from recemb.datasets.tabular_rows import AS_WRITTEN
from recemb.options import option

IN_FILES = (
    "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id",
    "device_ip", "device_model", "device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22)),
)  # fmt: skip
FEATURES = ("hour_of_day", "weekday", *IN_FILES)
MEMBERS = ("train.csv", "train")
"""What Kaggle's archives call the rows with labels."""
_FIRST_DAY = pd.Timestamp("2000-01-01")


@dataclass(kw_only=True)
class AvazuConfig(DatasetConfig):
    """`train.csv` of the Kaggle release, compressed or not."""

    name: ClassVar[str] = "avazu"
    texts: ClassVar[bool] = True

    path: str = option("data/avazu", "folder of the prepared data set")
    source: Any = option(
        None, "train.csv, plain or compressed, or Kaggle's zip: a file, a glob pattern, or several in a list"
    )
    protocol: str = option(
        "last_day",
        "how rows are split: last_day (all days but the last train, the last is halved into validation and test) or "
        "random",
    )

    def open(self, *, on_bad_rows: str) -> RowSource:
        """Find the files and see that they have the columns."""
        split = ("day", "hour") if self.protocol == "last_day" else ("random", self.seed)
        columns = Columns(label="click", categorical=list(FEATURES), split=split)
        in_files = dataclasses.replace(columns, categorical=["hour", *IN_FILES], split=("random", 0))
        return TabularRows(self.source, columns, on_bad_rows, self.vocabulary == "none", with_hours, in_files, MEMBERS)


def with_hours(table: pa.Table) -> pa.Table:
    """Add the columns hour_of_day and weekday, and put the number of the day into hour; null where it is no hour.

    What the file has is kept beside, to be shown where it is no hour.
    """
    coded = table["hour"].cast(pa.string()).combine_chunks().dictionary_encode()
    texts = coded.dictionary.to_pandas().astype(object)
    # A text of eight digits and nothing else; the parser would also take shorter ones.
    times = pd.to_datetime(texts.where(texts.str.fullmatch("[0-9]{8}")), format="%y%m%d%H", errors="coerce")
    known = times.notna().to_numpy(dtype=np.bool_)
    times = times.fillna(_FIRST_DAY)
    columns = {
        "hour_of_day": times.dt.hour.to_numpy(np.uint16),
        "weekday": times.dt.day_of_week.to_numpy(np.uint16),
        "hour": (times - _FIRST_DAY).dt.days.to_numpy(np.uint16),
    }
    table = table.rename_columns({"hour": "hour" + AS_WRITTEN})
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, mask=~known).take(coded.indices))
    return table
