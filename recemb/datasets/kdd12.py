"""The KDD Cup 2012 data, track 2 (Tencent's soso.com): ads shown beside search results, ten categories.

A row of training.txt stands for Impression shows of one ad in one setting, Click of which were clicked. As published
work on click models takes it, a row is one example, whose label is 1 where there was any click; Impression, which is
not known before an ad is shown, is left out. The files hold no time, so that rows are split at random.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from recemb.datasets.base import DatasetConfig, RowSource
from recemb.datasets.tabular import TabularRows
from recemb.datasets.tabular_columns import Columns
from recemb.options import RecembError, option

FEATURES = (
    "DisplayURL", "AdID", "AdvertiserID", "Depth", "Position", "QueryID", "KeywordID", "TitleID", "DescriptionID",
    "UserID",
)  # fmt: skip


@dataclass(kw_only=True)
class KddCup2012Config(DatasetConfig):
    """`training.txt` of track 2, compressed or not: tab-separated, without a header."""

    name: ClassVar[str] = "kdd12"
    texts: ClassVar[bool] = True

    path: str = option("data/kdd12", "folder of the prepared data set")
    source: Any = option(
        None, "training.txt, plain or compressed, or track2.zip: a file, a glob pattern, or several in a list"
    )
    protocol: str = option(
        "random", "how rows are split: random; the files hold no time, so that an order says nothing"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol == "last_day":
            raise RecembError(
                "dataset.protocol=last_day splits rows by time, and those of KDD Cup 2012 have none; leave it out, or "
                "choose random."
            )

    def open(self, *, on_bad_rows: str) -> RowSource:
        """Find the files."""
        columns = Columns(
            label="Click",
            positive=">0",
            categorical=list(FEATURES),
            split=("random", self.seed),
            separator="\t",
            header=["Click", "Impression", *FEATURES],
            quoting=False,
        )
        return TabularRows(self.source, columns, on_bad_rows, self.vocabulary == "none", members=("training.txt",))
