"""Opens a prepared data set: what is in it, its features with their training frequencies, and batches of its rows."""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recemb.datasets.batches import Batches
from recemb.datasets.columns import SplitFile
from recemb.datasets.features import Feature
from recemb.datasets.splits import SPLITS
from recemb.files import read_json
from recemb.options import RecembError

if TYPE_CHECKING:
    from recemb.datasets.base import DatasetConfig

META = "meta.json"
_NEEDED = ("rows", "dataset", "dense", "categorical", "sources", "skipped", "fingerprint", "config")
SCHEMA_VERSION = 1


class PreparedDataset:
    """A folder that `prepare` made, opened for reading; the rows stay on disk until they are asked for.

    Attributes:
        path: the folder.
        meta: the contents of meta.json.
    """

    def __init__(self, path: Path, meta: dict[str, Any], splits: dict[str, SplitFile]) -> None:
        self.path = path
        self.meta = meta
        self._splits = splits

    @classmethod
    def open(cls, path: str | Path) -> "PreparedDataset":
        """Open a finished data set.

        Raises:
            RecembError: it is missing, not finished, damaged, or of another version of recemb.
        """
        folder = Path(path).expanduser()
        advice = "run recemb prepare to make it"
        if not folder.is_dir():
            raise RecembError(f"There is no prepared data set at {path}; {advice}.")
        try:
            meta = read_json(folder / META)
            schema = meta["schema"]
        except FileNotFoundError:
            raise RecembError(f"{path} is not a prepared data set (it has no {META}); {advice}.") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RecembError(
                f"{folder / META} cannot be read ({error}); {advice} again with overwrite=true."
            ) from error
        if schema != SCHEMA_VERSION:
            raise RecembError(
                f"{path} was prepared in form {schema}, and this recemb reads form {SCHEMA_VERSION}; {advice} again "
                "with overwrite=true."
            )
        if lacking := [name for name in _NEEDED if name not in meta]:
            raise RecembError(
                f"{folder / META} is damaged (it has no {lacking[0]}); {advice} again with overwrite=true."
            )
        meta["config"].setdefault("vocabulary", "frequency")  # what was made before there was a choice
        splits = {}
        for split in SPLITS:
            try:
                splits[split] = SplitFile(folder / f"{split}.arrow", meta["rows"][split])
            except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
                raise RecembError(
                    f"{folder / split}.arrow is missing or damaged ({error}); {advice} again with overwrite=true."
                ) from error
        dataset = cls(folder, meta, splits)
        for feature in dataset.features:
            if feature.vocabulary is not None and not feature.vocabulary.is_file():
                raise RecembError(f"{feature.vocabulary} is missing; {advice} again with overwrite=true.")
        return dataset

    @property
    def dense_names(self) -> list[str]:
        """The dense features in the order of a batch's columns."""
        return list(self.meta["dense"])

    @cached_property
    def features(self) -> list[Feature]:
        """The categorical features in the order of a batch's keys."""
        folder, raw = self.path / "vocabulary", self.meta["config"]["vocabulary"] == "none"
        return [
            Feature(
                f["name"],
                f["cardinality"],
                None if raw else folder / f"{f['name']}.arrow",
                f.get("max_length", 1),
                raw,
            )
            for f in self.meta["categorical"]
        ]

    @property
    def fingerprint(self) -> str:
        """Sha256 of the prepared rows and vocabularies: equal for equal data, wherever it came from."""
        return str(self.meta["fingerprint"])

    def num_rows(self, split: str) -> int:
        """How many rows a split has."""
        return self._split(split).rows

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
        window: int = 1 << 20,
        share: tuple[int, int] = (0, 1),
        start: int = 0,
        pin_memory: bool = False,
    ) -> Batches:
        """Return the batches of one pass over a split, or a process's share of each; iterate as often as you like.

        Args:
            split: "train", "valid" or "test".
            batch_size: B, rows a batch over all processes; the last one may have fewer.
            shuffle: every row once, in an order that depends on (seed, epoch) only.
            seed: of the order.
            epoch: of the order.
            drop_last: leave out a last batch of fewer rows.
            window: rows held in memory for shuffling. A split that fits is permuted exactly; of a larger one, pieces
                of window/16 rows come in random order, and rows are permuted among 16 pieces at a time.
            share: (rank, ranks). Of a batch of n rows, the same that one process alone would get, this one gets rows
                [n * rank // ranks, n * (rank + 1) // ranks), in their order, and one more that does not count where
                others have one more.
            start: the batch that iteration begins with; 0 to the number of batches, which stays that of all.
            pin_memory: give batches in memory that a GPU copies from by itself; needs one.

        Raises:
            RecembError: there is no such split, or a number is out of range.
        """
        if batch_size < 1:
            raise RecembError(f"batch_size={batch_size} is too small; it must be 1 or more.")
        order = (seed, epoch) if shuffle else None
        keys = [f.name for f in self.features]
        return Batches(self._split(split), keys, batch_size, order, drop_last, window, share, start, pin_memory)

    def _split(self, split: str) -> SplitFile:
        if split not in self._splits:
            raise RecembError(f"There is no split {split}; choose one of {', '.join(SPLITS)}.")
        return self._splits[split]


def refuse_other_data(wanted: "DatasetConfig", dataset: PreparedDataset, asked: Collection[str] = ()) -> None:
    """Raise where an option that was given differs from what the data was prepared with; defaults ask for nothing."""
    made_by = dict(dataset.meta["config"])
    if dataset.meta["dataset"] != wanted.name:
        raise RecembError(
            f"{wanted.path} holds {dataset.meta['dataset']}, not {wanted.name}; pass dataset={dataset.meta['dataset']} "
            "or another dataset.path."
        )
    default = type(wanted)().identity()
    for name, value in wanted.identity().items():
        if (value != default[name] or name in asked) and name in made_by and made_by[name] != value:
            raise RecembError(
                f"dataset.{name}={value} was asked for, but {wanted.path} was prepared with {name}={made_by[name]}; "
                "leave the option out or prepare another dataset.path."
            )
