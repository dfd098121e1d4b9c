"""What a data set hands to preparation: a config with the common options, and a source of raw rows.

A new data set is one file: a config class that derives from `DatasetConfig` and a `RowSource` its `open` returns. The
writer knows nothing beyond these two.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from recemb.datasets.bags import Bags
from recemb.datasets.spelling import AsTheyAre, Decimal, Numbers, Spelling
from recemb.datasets.splits import PROTOCOLS
from recemb.datasets.text_index import HashedTexts
from recemb.options import RecembError, option

if TYPE_CHECKING:
    from recemb.datasets.features import Feature

BAD_ROW_POLICIES = ("error", "skip")
VOCABULARIES = ("frequency", "none")


class RawChunk(NamedTuple):
    """Some consecutive rows as a source reads them; F categorical, K dense and M multi-valued features, n rows.

    Attributes:
        labels: (n,) uint8, 0 or 1.
        dense: K arrays (n,) float32, already transformed; NaN = missing.
        tokens: F arrays (n,) uint32; what is under a missing value does not matter.
        missing: F arrays (n,) bool, or None where no row of this chunk misses the feature.
        position: how much of the source is read once this chunk is, in the source's unit.
        probability: (n,) float64, the true probability of a 1 where the source knows it.
        bags: M bags of uint32 tokens (`Bags.of(tokens, lengths)`); a missing value is an empty bag.
        texts: where values are texts, F + M lists of those in this chunk, and tokens are places in these lists: tokens
            of the whole data set are made of them when rows are parked.
        split: (n,) what `RowSource.split_by` says, of the type that `split_columns.KINDS` has for it.
    """

    labels: np.ndarray
    dense: list[np.ndarray]
    tokens: list[np.ndarray]
    missing: list[np.ndarray | None]
    position: int
    probability: np.ndarray | None = None
    bags: tuple[Bags, ...] = ()
    texts: tuple[HashedTexts, ...] = ()
    split: np.ndarray | None = None


class RowSource(ABC):
    """Raw rows in a fixed order, read once from front to back.

    Attributes:
        dense_names: the K dense features.
        categorical_names: the F categorical features with one value a row.
        multi_valued: the M categorical features with a bag of values a row; they come after the others everywhere.
        files: name, size in bytes and modification time in ns of every file, empty for generated rows.
        total: the length of the source in `unit`, for progress.
        unit: "B" or "row".
        knows_probability: every chunk carries the true probability.
        protocol: name of the split where the source decides it, and not `DatasetConfig.protocol`.
        split_by: what `RawChunk.split` of every chunk says, a kind of `split_columns`; "" = the protocol decides.
        split_shown: what to call that column in a sentence.
        transforms: kind of the transform of each dense feature, where the data set's class does not say it all.
        skipped: rows left out so far, by reason.
    """

    dense_names: tuple[str, ...]
    categorical_names: tuple[str, ...]
    multi_valued: tuple[str, ...] = ()
    files: list[dict[str, Any]]
    total: int
    unit: str
    knows_probability: bool = False
    protocol: str = ""
    split_by: str = ""
    split_shown: str = ""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.transforms: dict[str, str] = {}

    @property
    def feature_names(self) -> tuple[str, ...]:
        """All categorical features in the order of a batch's keys."""
        return (*self.categorical_names, *self.multi_valued)

    @abstractmethod
    def chunks(self, pool: ThreadPoolExecutor) -> Iterator[RawChunk]:
        """Yield all rows in order, doing the heavy work on the threads of `pool`."""


@dataclass(kw_only=True)
class DatasetConfig:
    """Options that every data set has."""

    name: ClassVar[str]
    protocols: ClassVar[tuple[str, ...]] = tuple(PROTOCOLS)
    texts: ClassVar[bool] = False
    """Categorical values are texts of any kind, which the vocabulary keeps as they are."""

    path: str = option("data/prepared", "folder of the prepared data set")
    protocol: str = option("last_day", f"how rows are split: {', '.join(PROTOCOLS)}")
    min_count: int = option(2, "a value seen fewer times than this in the training rows is out of vocabulary")
    min_counts: dict[str, int] = option({}, "min_count of single features, e.g. {C1: 10}")
    vocabulary: str = option(
        "frequency",
        "how ids are made: frequency numbers the values of the training rows, the most frequent first; none takes the "
        "raw values as ids, which only table methods that hash can look up",
    )
    seed: int = option(0, "seed of everything random in the preparation")

    def __post_init__(self) -> None:
        if self.protocol not in self.protocols:
            known = ", ".join(self.protocols)
            raise RecembError(f"dataset.protocol={self.protocol} is not known; choose one of {known}.")
        for option_name, count in [("min_count", self.min_count), *_dotted("min_counts", self.min_counts)]:
            if count < 1:
                raise RecembError(f"dataset.{option_name}={count} is too small; it must be 1 or more.")
        if self.vocabulary not in VOCABULARIES:
            known = ", ".join(VOCABULARIES)
            raise RecembError(f"dataset.vocabulary={self.vocabulary} is not known; choose one of {known}.")
        self._check_counts_have_effect()
        if not str(self.path).strip():
            raise RecembError("dataset.path is empty; name the folder that shall hold the prepared data set.")

    def open(self, *, on_bad_rows: str) -> RowSource:
        """Check the source and return it, ready to be read; reads no more than file sizes."""
        raise NotImplementedError

    @classmethod
    def spelling(cls, feature: str) -> Spelling:  # noqa: ARG003 - for those that do not fit
        """Say how the raw values of a categorical feature are written: tokens in decimal, where nothing else is said.

        What preparation does with a text and what the spelling does with it must be the same. Where values are `texts`
        this is about raw ids alone: the vocabulary itself reads the others.
        """
        return Decimal()

    @classmethod
    def numbers(cls, feature: str, kind: str = "") -> Numbers:  # noqa: ARG003
        """Say how numbers of a dense feature are written and transformed: not at all, where nothing else is said.

        Args:
            feature: its name.
            kind: of its transform, where `RowSource.transforms` has one.
        """
        return AsTheyAre()

    def describe_features(self, asked: Collection[str] = ()) -> "list[Feature]":
        """Say what is known of the categorical features without reading a row; in the order of a batch's keys.

        Args:
            asked: names of the options that somebody gave, even where they equal the default.

        Raises:
            RecembError: nothing is prepared at `path`, or other data than these options ask for.
        """
        from recemb.datasets.prepared import PreparedDataset, refuse_other_data  # they read what this module declares

        dataset = PreparedDataset.open(self.path)
        refuse_other_data(self, dataset, asked)
        return dataset.features

    def identity(self) -> dict[str, Any]:
        """What decides the prepared rows: every option except where things lie."""
        names = [field.name for field in fields(self) if field.name not in ("path", "source")]
        return {name: dict(value) if isinstance(value := getattr(self, name), dict) else value for name in names}

    def _check_counts_have_effect(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        changed = [f"min_count={self.min_count}"] if self.min_count != defaults["min_count"] else []
        changed += [f"{name}={count}" for name, count in _dotted("min_counts", self.min_counts)]
        if self.vocabulary == "none" and changed:
            raise RecembError(
                f"dataset.{changed[0]} has nothing to act on with dataset.vocabulary=none; leave it out, or take "
                "dataset.vocabulary=frequency."
            )

    def least_count(self, feature: str) -> int:
        """How often `feature` must show a value in the training rows for it to get an id."""
        return self.min_counts.get(feature, self.min_count)


def _dotted(name: str, values: dict[str, int]) -> list[tuple[str, int]]:
    return [(f"{name}.{key}", value) for key, value in values.items()]
