"""Rows with a planted structure: half of all values say nothing, and half of the features need one float a value."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import ipc

from recemb.datasets import DatasetConfig, PreparedDataset, prepare
from recemb.datasets.base import RawChunk, RowSource
from recemb.options import option

NARROW = ("narrow1", "narrow2", "narrow3", "narrow4")
PAIRS = (("wide1", "wide2"), ("wide3", "wide4"))
WIDE = tuple(name for pair in PAIRS for name in pair)
FEATURES = NARROW + WIDE
# Values of one feature are equally likely, so that how often one is seen says nothing of its use. A pair of wide values
# has to be seen a few times.
VALUES = {**dict.fromkeys(NARROW, 120), **dict.fromkeys(WIDE, 50)}
WIDTH = 6  # floats that a value of a wide feature needs, each of them worth as much as any other
LEAST_EFFECT, LARGEST_EFFECT = 0.8, 1.6  # of a useful value of a narrow feature on the logit, either way
OWN_LO, OWN_HI = 0.5, 1.0
WIDE_EFFECT = 1.3  # of one float of a useful value on the logit, where the pair's other value is useful too


@dataclass(kw_only=True)
class PlantedConfig(DatasetConfig):
    """The planted rows as a data set like any other."""

    name: ClassVar[str] = "planted"

    path: str = option("data/planted", "folder of the prepared data set")
    protocol: str = option("random", "how rows are split")
    min_count: int = option(1, "a value seen fewer times than this in the training rows is out of vocabulary")
    rows: int = option(60_000, "rows to generate, over all splits")

    def open(self, *, on_bad_rows):
        return PlantedRows(self)


class PlantedRows(RowSource):
    """Draws rows and labels them by a teacher.

    The teacher's logit adds an effect for each useful value of a narrow feature, and for each pair of wide features the
    dot product of two vectors of signs where both values are useful.

    Attributes:
        useless: for each feature (VALUES,) bool by token.
    """

    dense_names = ()
    categorical_names = FEATURES
    unit = "row"
    knows_probability = True

    def __init__(self, config):
        super().__init__()
        self.files = []
        self.total = config.rows
        draw = np.random.default_rng(config.seed)
        self._tokens = {name: draw.integers(0, count, config.rows, np.uint32) for name, count in VALUES.items()}
        self.useless = {name: draw.permutation(count) < count // 2 for name, count in VALUES.items()}
        logit = np.zeros(config.rows)
        for name in FEATURES:
            bounds = (LEAST_EFFECT, LARGEST_EFFECT) if name in NARROW else (OWN_LO, OWN_HI)
            sizes = draw.uniform(*bounds, VALUES[name]) * ~self.useless[name]
            logit += (sizes * draw.choice([-1, 1], VALUES[name]))[self._tokens[name]]
        for pair in PAIRS:
            one, other = (draw.choice([-1, 1], (VALUES[name], WIDTH)) * ~self.useless[name][:, None] for name in pair)
            logit += WIDE_EFFECT * (one @ other.T)[self._tokens[pair[0]], self._tokens[pair[1]]]
        self._probability = 1 / (1 + np.exp(-logit))
        self._labels = (draw.random(config.rows) < self._probability).astype(np.uint8)

    def chunks(self, pool):
        yield RawChunk(
            self._labels, [], list(self._tokens.values()), [None] * len(FEATURES), self.total, self._probability
        )


class Planted(NamedTuple):
    """A prepared data set and what was planted in it.

    Attributes:
        config: what it was prepared from; its features are `FEATURES`, of which `NARROW` need one float a value and
            `WIDE` need `WIDTH`.
        dataset: train, valid and test 8:1:1; `meta["ceiling"]` has the teacher's own AUC by split.
        useless: for each feature (V,) bool by id, True where the value adds nothing. Id 0, which no row has, is False.
    """

    config: PlantedConfig
    dataset: PreparedDataset
    useless: dict[str, torch.Tensor]


def prepare_planted(path, rows=60_000, seed=0):
    """Prepare planted rows in a folder."""
    config = PlantedConfig(path=str(path), rows=rows, seed=seed)
    dataset = prepare(config, progress=False)
    useless = {}
    of_tokens = PlantedRows(config).useless
    for feature in dataset.features:
        with ipc.open_file(pa.memory_map(str(Path(feature.vocabulary)))) as reader:
            tokens = reader.read_all()["value"].to_numpy()
        useless[feature.name] = torch.from_numpy(np.append(False, of_tokens[feature.name][tokens]))
    return Planted(config, dataset, useless)
