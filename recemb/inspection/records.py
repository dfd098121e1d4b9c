"""What is found out about a data set, as plain records.

A cell is one value of one feature in one row: a row has one of a single-valued feature, and as many of a multi-valued
one as its bag is long. Shares lie in 0..1 and are None where there is nothing to take a share of, or where it is not
known. `recemb.inspection.statistics` says how the measures are computed.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

FACTS_SCHEMA = 1

FEWER_THAN = (2, 5, 10, 100)
"""Values seen fewer times than these are a tail."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The share of the training cells that the most frequent ids hold.

    Attributes:
        ids: k, how many ids; the out-of-vocabulary id comes last, since the values behind it are rarer than all others.
        cells: share of the training cells.
    """

    ids: int
    cells: float


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The values that were seen in training fewer than some number of times.

    Attributes:
        fewer_than: that number.
        cells: share of the training cells that hold such a value; None where preparation made them one id and only that
            is known.
        ids: share of the feature's ids, the out-of-vocabulary one left out.
    """

    fewer_than: int
    cells: float | None
    ids: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far the ids of the test rows are distributed otherwise than those of the training rows.

    Attributes:
        bits: Jensen-Shannon divergence of both distributions, 0 (equal) to 1 (no id in common).
        expected: the same under no drift: what finite rows alone make of it, from random splits of the training cells.
        expected_std: standard deviation over such splits.
        excess: what `bits` has above `expected`, at least 0: the drift proper.
        psi: population stability index over the most frequent ids and one bin for all others, in nats; by the rule of
            thumb below 0.1 is little, above 0.25 is much.
        psi_expected: its expectation under no drift.
    """

    bits: float
    expected: float
    expected_std: float
    excess: float
    psi: float
    psi_expected: float

    @property
    def is_noticeable(self) -> bool:
        """Whether it is more than chance, and more than a hundredth of a bit."""
        return self.excess > max(0.01, 3 * self.expected_std)


@dataclass(frozen=True, kw_only=True)
class LabelInformation:
    """How much the feature tells about the label on its own.

    Attributes:
        mutual_information: of id and label over the training cells, in bits, less the bias of finite rows;
            still too high where most ids were seen once or twice.
        base_logloss: of the training rows' positive rate on the validation rows, in nats; None without such rows.
        logloss_gain: how much lower it is with the rate of the row's id in training, smoothed towards the overall rate
            (mean over the bag's ids): nats a validation row. Below 0 the feature alone misleads.
        standard_error: of the gain, over the validation rows.
    """

    mutual_information: float
    base_logloss: float | None
    logloss_gain: float | None
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class FeatureFacts:
    """What is known of one categorical feature.

    Attributes:
        name: the feature.
        ids: V, the out-of-vocabulary id counted.
        distinct: different values among the training cells, those without an id and the missing one counted.
        least_count: a value seen fewer times than this in training has no id.
        multi_valued: a row holds a bag of values.
        mean_bag_length: training cells a training row; 1 for a single-valued feature.
        cells: number of training cells.
        missing: share of the training cells whose value is missing; None where that has no id of its own.
        full_bytes: of its uncompressed fp32 table.
        coverage: for 1, 2, 4, ... ids, for all values and for all ids, which hold everything.
        ids_for: how many of the most frequent ids hold half, 90 % and 99 % of the training cells.
        tails: for each number in `FEWER_THAN`.
        unseen: for each split the share of cells with the out-of-vocabulary id; in training those of values that are
            too rare for an id.
        drift: from training to test; None where one has no cell.
        label: what it tells about the label.
    """

    name: str
    ids: int
    distinct: int
    least_count: int
    multi_valued: bool
    mean_bag_length: float
    cells: int
    missing: float | None
    full_bytes: int
    coverage: list[Coverage]
    ids_for: list[Coverage]
    tails: list[Tail]
    unseen: dict[str, float | None]
    drift: Drift | None
    label: LabelInformation

    def tail(self, fewer_than: int) -> Tail:
        """Find the tail of values seen fewer times than one of `FEWER_THAN`."""
        return next(tail for tail in self.tails if tail.fewer_than == fewer_than)


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What is known of a prepared data set.

    `to_dict` gives the form that `recemb inspect --json` prints; every key is the name of an attribute here or in the
    classes above. `schema` changes when a key changes its meaning or goes; new keys may come without notice.

    Attributes:
        schema: version of this form.
        dataset: the data set's name.
        protocol: how its rows were split.
        vocabulary: how ids were made: `frequency`, or `none` where they are raw values.
        fingerprint: of the prepared rows.
        embedding_dim: D, the width of vectors that bytes are given for.
        rows: of each split.
        positive_rate: of the training and validation rows; test labels are not looked at.
        full_bytes: of all uncompressed fp32 tables.
        features: in the order of a batch's keys.
        notes: what was done that is not so with every data set.
    """

    schema: int
    dataset: str
    protocol: str
    vocabulary: str
    fingerprint: str
    embedding_dim: int
    rows: dict[str, int]
    positive_rate: dict[str, float | None]
    full_bytes: int
    features: list[FeatureFacts]
    notes: list[str]

    @property
    def largest_first(self) -> list[FeatureFacts]:
        """The features by falling bytes, ties by name."""
        return sorted(self.features, key=lambda feature: (-feature.full_bytes, feature.name))

    def to_dict(self) -> dict[str, Any]:
        """Write the facts as plain JSON types."""
        return dataclasses.asdict(self)
