"""From raw values, as the text of a data set spells them, to the ids and numbers that a trained model takes.

A trained model is exported with this in two files, so that who serves it needs neither the prepared data set nor its
raw source: `vocabulary.parquet` lists what every id stands for, and `values.json` says how texts and numbers are read.
Reading them back takes the spelling from the data set's own class, and refuses files that ask for another.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import ipc
from pyarrow import parquet as pq

from recemb.datasets import DATASETS
from recemb.datasets.base import DatasetConfig
from recemb.datasets.features import Feature
from recemb.datasets.prepared import PreparedDataset
from recemb.datasets.spelling import Numbers, Spelling, as_texts, is_list, is_missing
from recemb.datasets.text_spelling import Text
from recemb.datasets.vocabulary import Mapper, number_by, widen
from recemb.files import read_json
from recemb.options import RecembError

VOCABULARY = "vocabulary.parquet"
VALUES = "values.json"
FORM = 1
_SCHEMA = pa.schema(
    [
        pa.field("feature", pa.dictionary(pa.int32(), pa.string())),
        pa.field("value", pa.string()),
        pa.field("id", pa.int32()),
    ]
)


@dataclass
class Values:
    """The values of one categorical feature.

    Attributes:
        spelling: how they are written.
        multi_valued: a row has any number of them.
        tokens: (V - 1,) uint32, that of id i + 1 in place i; None where ids are raw.
        missing: the place of the missing value, -1 when it has no id.
        mapper: from tokens to ids, as preparation has it.
    """

    spelling: Spelling
    multi_valued: bool
    tokens: np.ndarray | None
    missing: int
    mapper: Mapper = field(init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "mapper"}  # a function of the tokens

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __post_init__(self) -> None:
        self.mapper = widen if self.tokens is None else number_by(self.tokens, self.missing)

    @property
    def raw(self) -> bool:
        """Ids are the tokens themselves."""
        return self.tokens is None

    def describe(self, name: str) -> dict[str, Any]:
        """Return what values.json says of the feature."""
        return {
            "name": name,
            "kind": self.spelling.kind,
            "text": self.spelling.words,
            "multi_valued": self.multi_valued,
            "raw": self.raw,
            "values": 0 if self.tokens is None else len(self.tokens),
            "missing_id": -1 if self.raw else self.missing + 1,
            "unreadable_id": -1 if self.raw else 0,
        }

    def table(self, name: str) -> pa.Table:
        """Return the rows of vocabulary.parquet."""
        tokens = np.empty(0, dtype=np.uint32) if self.tokens is None else self.tokens
        if self.missing < 0:
            texts = self.spelling.texts(tokens)
        else:
            # What is under the missing value need not be a token that can be written.
            before, after = tokens[: self.missing], tokens[self.missing + 1 :]
            parts = self.spelling.texts(before), pa.nulls(1, pa.string()), self.spelling.texts(after)
            texts = pa.concat_arrays(parts)
        feature = pa.DictionaryArray.from_arrays(np.zeros(len(tokens), dtype=np.int32), pa.array([name], pa.string()))
        return pa.table([feature, texts, np.arange(1, len(tokens) + 1, dtype=np.int32)], schema=_SCHEMA)


class RawValues:
    """From raw values, as the data set's own text spells them, to what models take.

    Attributes:
        dataset: the name of the data set.
        features: the categorical features, in the order of a batch's keys.
        dense_names: the dense features, in the order of a batch's columns.
    """

    def __init__(self, dataset: str, values: dict[str, Values], numbers: dict[str, Numbers]) -> None:
        self.dataset = dataset
        self.features = list(values)
        self.dense_names = list(numbers)
        self._values = values
        self._numbers = numbers

    @classmethod
    def of(cls, dataset: PreparedDataset) -> "RawValues":
        """Take them from a prepared data set.

        Raises:
            RecembError: its vocabulary is damaged, or recemb has no data set of this name any more.
        """
        name = dataset.meta["dataset"]
        config = DATASETS.get(name)
        if config is None:
            raise RecembError(
                f"{dataset.path} holds the data set {name}, and how its values are spelled is not known; "
                f"known are {', '.join(DATASETS)}."
            )
        values = {feature.name: _values_of(feature, config) for feature in dataset.features}
        kinds = dataset.meta.get("transforms", {})
        return cls(name, values, {dense: config.numbers(dense, kinds.get(dense, "")) for dense in dataset.dense_names})

    def is_multi_valued(self, feature: str) -> bool:
        """Tell whether `bags` takes the feature, and not `ids`."""
        return self._find(feature).multi_valued

    def texts(self, feature: str, most: int) -> list[str | None]:
        """Spell what the first ids from 1 on stand for, `most` at most; None is the missing value.

        Raises:
            RecembError: no such feature.
        """
        found = self._find(feature)
        if found.raw:
            return []
        texts: list[str | None] = found.table(feature)["value"].slice(0, most).to_pylist()
        return texts

    def ids(self, feature: str, values: Sequence[Any]) -> np.ndarray:
        """Return the ids of n values of a feature with one value a row.

        Args:
            feature: its name.
            values: n texts, or integers where the raw text has decimal numbers; None, NaN and "" are missing. Lists
                and arrays of numpy, pandas and pyarrow are taken alike.

        Returns:
            (n,) int64. A value that was not seen, or cannot be one of this feature, has id 0. Where ids are raw, 0
            may be a value: there, what cannot be one counts as missing, which is -1.

        Raises:
            RecembError: no such feature, one with bags, or something that is neither a text nor a number.
        """
        found = self._find(feature)
        if found.multi_valued:
            raise RecembError(f"{feature} has a bag of values a row; ask for its bags and not for its ids.")
        return self._map(feature, values)[0]

    def bags(self, feature: str, values: Sequence[Sequence[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of n bags of a multi-valued feature.

        Args:
            feature: its name.
            values: n lists of what `ids` takes; a missing element is left out, and None or "" is an empty bag.

        Returns:
            (m,) int64 ids of all bags one after the other, and (n,) int64 lengths, which add up to m.

        Raises:
            RecembError: as with `ids`.
        """
        if not self._find(feature).multi_valued:
            raise RecembError(f"{feature} has one value a row; ask for its ids and not for its bags.")
        if not is_list(values):
            raise RecembError(f"{feature} needs a list of lists, one a row, not {type(values).__name__}.")
        rows = [[] if is_missing(row) else row for row in values]
        for row in rows:
            if not is_list(row):
                raise RecembError(f"{feature} needs a list of values in every row, not {row!r:.40}.")
        ids, missing = self._map(feature, list(chain.from_iterable(rows)))
        row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return ids[~missing], np.bincount(row_of[~missing], minlength=len(rows)).astype(np.int64)

    def dense(self, name: str, values: Sequence[Any]) -> np.ndarray:
        """Return n numbers of a dense feature, transformed as those that the model was trained on.

        Args:
            name: of the feature.
            values: n numbers, or texts of them; None, NaN and "" are missing.

        Returns:
            (n,) float32; NaN where a value is missing, or is no number that the raw data may hold.

        Raises:
            RecembError: no such feature, or something that is neither a text nor a number.
        """
        if name not in self._numbers:
            raise RecembError(f"There is no dense feature {name}; {_known(self.dense_names)}.")
        texts = as_texts(name, values, True, "a number")
        return self._numbers[name].values(texts.fill_null(b""))

    def save(self, folder: Path) -> list[str]:
        """Write two files into a folder, which is made if it is not there; return their names."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(
                folder / VOCABULARY,
                _SCHEMA,
                compression="zstd",
                use_dictionary=["feature"],
                column_encoding={"id": "DELTA_BINARY_PACKED"},
            ) as writer:
                for name, values in self._values.items():
                    if values.tokens is not None and len(values.tokens):
                        writer.write_table(values.table(name))
            text = json.dumps(self._describe(_sha256(folder / VOCABULARY)), indent=2) + "\n"
            (folder / VALUES).write_text(text, encoding="utf-8")
        except OSError as error:
            raise RecembError(f"{folder} cannot be written ({error.strerror or error}).") from error
        return [VOCABULARY, VALUES]

    @classmethod
    def load(cls, folder: Path) -> "RawValues":
        """Read what `save` wrote.

        Raises:
            RecembError: a file is missing, damaged, of another version of recemb, or not from the same `save`.
        """
        try:
            meta = read_json(folder / VALUES)
            if meta["form"] != FORM:
                raise RecembError(f"{folder / VALUES} has form {meta['form']}, and this recemb reads form {FORM}.")
            if _sha256(folder / VOCABULARY) != meta["vocabulary_sha256"]:
                raise RecembError(f"{folder / VOCABULARY} is damaged, or not the one that {VALUES} was written with.")
            config = DATASETS[meta["dataset"]]
            table = pq.ParquetFile(folder / VOCABULARY).read()  # read_table makes columns of a path with a=b in it
            if table.schema.remove_metadata() != _SCHEMA:
                raise ValueError(f"the columns of {VOCABULARY} are not {', '.join(_SCHEMA.names)}")
            values = _read_values(meta["categorical"], config, table)
            numbers = {str(entry["name"]): config.numbers(entry["name"], entry["transform"]) for entry in meta["dense"]}
            read = cls(meta["dataset"], values, numbers)
            # Once more in full, so that nothing in the file can differ from what is done.
            if read._describe(meta["vocabulary_sha256"]) != meta:
                raise ValueError("it describes other values or numbers than this recemb knows for this data set")
        except OSError as error:
            missing = error.filename or folder
            raise RecembError(
                f"{missing} cannot be read ({error.strerror or error}); export the model again."
            ) from error
        except RecembError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
            raise RecembError(
                f"{folder / VALUES} or {VOCABULARY} is damaged ({_reason(error)}); export the model again."
            ) from error
        return read

    def _describe(self, vocabulary_sha256: str) -> dict[str, Any]:
        """Return the contents of values.json."""
        numbers = self._numbers.items()
        return {
            "form": FORM,
            "dataset": self.dataset,
            "unseen_id": 0,
            "categorical": [values.describe(name) for name, values in self._values.items()],
            "dense": [
                {"name": name, "transform": n.kind, "formula": n.formula, "missing": "NaN"} for name, n in numbers
            ],
            "vocabulary_sha256": vocabulary_sha256,
        }

    def _find(self, feature: str) -> Values:
        if feature not in self._values:
            raise RecembError(f"There is no categorical feature {feature}; {_known(self.features)}.")
        return self._values[feature]

    def _map(self, feature: str, values: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) int64 ids and (n,) bool, true where a value is missing."""
        found = self._values[feature]
        texts = as_texts(feature, values, found.spelling.takes_numbers, found.spelling.words)
        missing = texts.is_null().to_numpy(zero_copy_only=False)
        tokens, readable = found.spelling.tokens(texts.fill_null(b""))
        if found.raw:
            missing = ~readable  # every raw id may be a value, so there is none to spare for what is no value
        ids = found.mapper(tokens, missing).astype(np.int64, copy=False)
        ids[~(readable | missing)] = 0
        return ids, missing


def _values_of(feature: Feature, config: type[DatasetConfig]) -> Values:
    spelling, multi_valued = config.spelling(feature.name), feature.max_length is None
    if feature.vocabulary is None:
        return Values(spelling, multi_valued, None, -1)
    try:
        with pa.memory_map(str(feature.vocabulary)) as source, ipc.open_file(source) as reader:
            column = reader.read_all()["value"]
            missing = _place_of_null(column)
            if config.texts:
                spelling = Text(column)
                tokens = np.arange(len(column), dtype=np.uint32)
            else:
                column = column.combine_chunks().fill_null(0)
                tokens = column.to_numpy(zero_copy_only=False).astype(np.uint32)  # a copy: the map closes
        if len(tokens) != feature.num_embeddings - 1:
            raise ValueError(f"{len(tokens)} values instead of {feature.num_embeddings - 1}")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RecembError(
            f"{feature.vocabulary} is missing or damaged ({error}); run recemb prepare again with overwrite=true."
        ) from error
    return Values(spelling, multi_valued, tokens, missing)


def _read_values(entries: list[dict[str, Any]], config: type[DatasetConfig], table: pa.Table) -> dict[str, Values]:
    """Cut the rows of vocabulary.parquet into features; ValueError where they are not as values.json says."""
    values: dict[str, Values] = {}
    start = 0
    for entry in entries:
        name, count = str(entry["name"]), int(entry["values"])
        spelling, multi_valued = config.spelling(name), bool(entry["multi_valued"])
        if entry["raw"]:
            values[name] = Values(spelling, multi_valued, None, -1)
            continue
        rows = table.slice(start, count)
        start += count
        if rows.num_rows != count or not pc.all(pc.equal(rows["feature"].cast(pa.string()), name), min_count=0).as_py():
            raise ValueError(f"there are not {count} values of {name}")
        if not np.array_equal(rows["id"].to_numpy(), np.arange(1, count + 1)):
            raise ValueError(f"the ids of {name} do not count from 1")
        if config.texts:
            spelling = Text(rows["value"])
        texts = rows["value"].cast(pa.binary()).combine_chunks()
        missing = _place_of_null(texts)
        tokens, readable = spelling.tokens(texts.fill_null(b""))
        known = tokens[readable]
        if len(known) != count - (missing >= 0) or len(np.unique(known)) != len(known):
            raise ValueError(f"a value of {name} cannot be read, or is there twice")
        values[name] = Values(spelling, multi_valued, tokens, missing)
    if start != table.num_rows:
        raise ValueError(f"there are {table.num_rows} values instead of {start}")
    return values


def _place_of_null(column: pa.Array | pa.ChunkedArray) -> int:
    """Return where the missing value is, -1 where it is not; ValueError where it is twice."""
    places = np.flatnonzero(np.asarray(column.is_null()))
    if len(places) > 1:
        raise ValueError("the missing value is there twice")
    return int(places[0]) if len(places) else -1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known(names: list[str]) -> str:
    return f"there are {', '.join(names)}" if names else "there are none"


def _reason(error: Exception) -> str:
    words = str(error).strip().splitlines()
    return f"no {words[0]}" if isinstance(error, KeyError) else words[0] if words else type(error).__name__
