"""Finds out what a prepared data set says about its features, streaming over the rows in bounded memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from recemb.budget import FLOAT32_BYTES, format_bytes
from recemb.datasets import Feature, PreparedDataset
from recemb.datasets.splits import SPLITS
from recemb.inspection.cells import Cells, read_cells, rows_bar
from recemb.inspection.counting import MEMORY_BYTES, Counted, bytes_needed
from recemb.inspection.records import FACTS_SCHEMA, DatasetFacts, FeatureFacts, LabelInformation
from recemb.inspection.statistics import (
    coverage_curve,
    drift_between,
    encode_target,
    ids_holding,
    mutual_information_bits,
    tails_of,
)
from recemb.models.base import ModelConfig
from recemb.options import RecembError


def inspect_dataset(
    dataset: PreparedDataset,
    *,
    embedding_dim: int = ModelConfig.embedding_dim,
    memory_bytes: int = MEMORY_BYTES,
    progress: bool = True,
) -> DatasetFacts:
    """Find out what a data set says about each of its categorical features.

    Reads the columns of the features once, in groups whose counters fit in memory. A single feature that does not fit
    is counted by itself, and a note says how much that took; another one names a feature without any value in training
    rows, of which there are no facts. Validation labels are used for what a feature tells about
    the label, test labels for nothing.

    Args:
        dataset: the prepared rows.
        embedding_dim: D, the width of vectors that bytes are given for.
        memory_bytes: counters held at a time.
        progress: show a bar on stderr.

    Raises:
        RecembError: there are no training rows, or no categorical features with values in them, or a file is damaged.
    """
    features = dataset.features
    if not features:
        raise RecembError(f"{dataset.path} has no categorical features, so there are no tables to say anything about.")
    if dataset.num_rows("train") == 0:
        raise RecembError(f"{dataset.path} has no training rows to count; prepare it with a protocol that leaves some.")
    groups = _groups(features, memory_bytes)
    raw = any(feature.raw for feature in features)
    rows = {split: dataset.num_rows(split) for split in SPLITS}
    total = len(groups) * (sum(rows.values()) + (rows["train"] if raw else 0))
    rates = {split: _positive_rate(dataset, split) for split in ("train", "valid")}
    found: list[FeatureFacts] = []
    empty: list[str] = []
    with rows_bar(total, "inspect") if progress else tqdm(disable=True) as bar:
        for group in groups:
            counted = _Group(dataset, group, rates["train"] or 0.0, embedding_dim, bar)
            found += counted.facts()
            empty += counted.empty
    if not found:
        raise RecembError(
            f"no categorical feature of {dataset.path} has a value in any training row, so there is nothing to say of "
            "them; see whether their columns are the right ones."
        )
    return DatasetFacts(
        schema=FACTS_SCHEMA,
        dataset=dataset.meta["dataset"],
        protocol=dataset.meta["config"].get("protocol", ""),
        vocabulary=dataset.meta["config"]["vocabulary"],
        fingerprint=dataset.fingerprint,
        embedding_dim=embedding_dim,
        rows=rows,
        positive_rate=rates,
        full_bytes=sum(one.full_bytes for one in found),
        features=found,
        notes=[*_notes(features, groups, memory_bytes, rows), *map(_note_of_empty, empty)],
    )


def _groups(features: Sequence[Feature], memory_bytes: int) -> list[list[int]]:
    """Cut the features, in their order, into groups that fit in memory; one that does not is a group of its own."""
    groups: list[list[int]] = []
    held = memory_bytes
    for index, feature in enumerate(features):
        if held + bytes_needed(feature) > memory_bytes:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += bytes_needed(feature)
    return groups


def _notes(
    features: Sequence[Feature], groups: Sequence[Sequence[int]], memory_bytes: int, rows: dict[str, int]
) -> Iterator[str]:
    raw = [feature for feature in features if feature.raw]
    if raw:
        yield (
            "ids are raw values: they were counted exactly and numbered in memory by training frequency, and those "
            "that training does not show count as out of vocabulary"
        )
    if len(groups) > 1:
        yield f"features took turns in {len(groups)} groups, each counted in about {format_bytes(memory_bytes)}"
    for feature in features:
        if bytes_needed(feature) > memory_bytes:
            yield (
                f"{feature.name} has {feature.num_embeddings:,} ids, whose counters took about "
                f"{format_bytes(bytes_needed(feature))} at once"
            )
    for split in ("valid", "test"):
        if rows[split] == 0:
            yield f"there are no {'validation' if split == 'valid' else split} rows, so what needs them is left out"


def _note_of_empty(name: str) -> str:
    return f"{name} has no value in any training row, so that nothing is said of it; models gain nothing from it"


def _positive_rate(dataset: PreparedDataset, split: str) -> float | None:
    rows = dataset.num_rows(split)
    positives = sum(int(labels.sum(dtype=np.int64)) for labels, _ in read_cells(dataset, split, []))
    return positives / rows if rows else None


class _Group:
    """Counts some features of a data set together: one pass over each split, and one more where ids are raw.

    Attributes:
        empty: those without a value in any training row, of which there are no facts.
    """

    def __init__(
        self, dataset: PreparedDataset, indices: Sequence[int], rate: float, embedding_dim: int, bar: "tqdm"
    ) -> None:
        self._dataset = dataset
        self._indices = indices
        self._rate = rate
        self._embedding_dim = embedding_dim
        self._bar = bar
        self._counted = [Counted(dataset, index) for index in indices]
        self.empty: list[str] = []

    def facts(self) -> list[FeatureFacts]:
        """Count, and give what is known of each."""
        if any(one.feature.raw for one in self._counted):
            for _, columns in self._read("train"):
                for one, cells in zip(self._counted, columns, strict=True):
                    one.add_raw(cells)
            for one in self._counted:
                one.number_raw()
        for labels, columns in self._read("train"):
            for one, cells in zip(self._counted, columns, strict=True):
                np.add.at(one.positives, one.ids(cells), cells.of_rows(labels))
        base_logloss = self._validate()
        for _, columns in self._read("test"):
            for one, cells in zip(self._counted, columns, strict=True):
                np.add.at(one.test, one.ids(cells), 1)
        self.empty = [one.feature.name for one in self._counted if not one.counts.any()]
        return [self._facts_of(one, base_logloss) for one in self._counted if one.counts.any()]

    def _read(self, split: str) -> Iterator[tuple[np.ndarray, list[Cells]]]:
        return read_cells(self._dataset, split, self._indices, self._bar)

    def _validate(self) -> float | None:
        """Add up what each feature's rates gain on the validation rows; give the loss of the overall rate."""
        rows = self._dataset.num_rows("valid")
        if rows == 0:
            return None
        encoded = [encode_target(one.counts, one.positives, self._rate) for one in self._counted]
        base = 0.0
        for labels, columns in self._read("valid"):
            without = _logloss(np.full(len(labels), self._rate), labels)
            base += float(without.sum())
            for one, rates, cells in zip(self._counted, encoded, columns, strict=True):
                ids = one.ids(cells)
                one.valid_cells += len(ids)
                one.valid_unseen += int(np.count_nonzero(ids == 0))
                gain = without - _logloss(_of_bags(rates[ids], cells, self._rate), labels)
                one.gain += float(gain.sum())
                one.gain_squared += float((gain**2).sum())
        return base / rows

    def _facts_of(self, one: Counted, base_logloss: float | None) -> FeatureFacts:
        feature, counts, cells = one.feature, one.counts, int(one.counts.sum())
        test_cells = int(one.test.sum())
        return FeatureFacts(
            name=feature.name,
            ids=len(counts),
            distinct=one.distinct,
            least_count=one.least_count,
            multi_valued=feature.max_length is None,
            mean_bag_length=cells / self._dataset.num_rows("train"),
            cells=cells,
            missing=None if one.missing is None else one.missing / cells,
            full_bytes=len(counts) * self._embedding_dim * FLOAT32_BYTES,
            coverage=coverage_curve(counts),
            ids_for=ids_holding(counts),
            tails=tails_of(counts, one.least_count),
            unseen={
                "train": int(counts[0]) / cells,
                "valid": one.valid_unseen / one.valid_cells if one.valid_cells else None,
                "test": int(one.test[0]) / test_cells if test_cells else None,
            },
            drift=drift_between(counts, one.test, one.least_count),
            label=_label_information(one, base_logloss, self._dataset.num_rows("valid")),
        )


def _label_information(one: Counted, base_logloss: float | None, rows: int) -> LabelInformation:
    gain = error = None
    if base_logloss is not None:
        gain = one.gain / rows
        error = (max(one.gain_squared / rows - gain**2, 0.0) / rows) ** 0.5
    return LabelInformation(
        mutual_information=mutual_information_bits(one.counts, one.positives),
        base_logloss=base_logloss,
        logloss_gain=gain,
        standard_error=error,
    )


def _of_bags(rates: np.ndarray, cells: Cells, rate: float) -> np.ndarray:
    """Give (n,) float64 the mean of the cells' (m,) rates of each row, the overall rate where a row has no cell."""
    if cells.lengths is None:
        return rates.astype(np.float64)
    rows = np.repeat(np.arange(len(cells.lengths)), cells.lengths)
    sums = np.bincount(rows, weights=rates, minlength=len(cells.lengths))
    return np.where(cells.lengths > 0, sums / np.maximum(cells.lengths, 1), rate)


def _logloss(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give (n,) nats; a probability of exactly 0 or 1, which a split of one label alone leads to, is held just off."""
    safe = np.clip(probability, 1e-7, 1 - 1e-7)
    return -np.where(labels > 0, np.log(safe), np.log1p(-safe))
