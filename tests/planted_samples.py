"""Rows with a planted structure: half of all values say nothing, and half of the features need one float a value."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import ipc

from recemb.datasets import DatasetConfig, PreparedDataset, prepare
from recemb.datasets.base import RawChunk, RowSource
from recemb.options import option

NARROW = ("narrow1", "narrow2", "narrow3", "narrow4")
WIDE = ("wide1", "wide2", "wide3", "wide4")
CONTEXT = "context"
FEATURES = (*NARROW, *WIDE, CONTEXT)
VALUES = 100  # of a narrow or a wide feature, all equally likely: how often one is seen says nothing of its use
CONTEXTS = 6
WIDTH = CONTEXTS - 1  # floats that a value of a wide feature needs: its effects in all contexts add up to zero
EFFECT = 1.5  # of a useful value on the logit, up or down


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
    """Draws rows, and labels by a teacher whose logit adds the effects of all values.

    A useful value of a narrow feature has the same effect always. One of a wide feature has it up in half of the
    contexts and down in the others, so that nothing is learned of it without the context. A useless value has none.

    Attributes:
        useless: for each feature (V,) bool by token.
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
        context = draw.integers(0, CONTEXTS, config.rows, dtype=np.uint32)
        self.useless = {CONTEXT: np.zeros(CONTEXTS, dtype=np.bool_)}
        self._tokens = []
        logit = np.zeros(config.rows)
        for name in (*NARROW, *WIDE):
            tokens = draw.integers(0, VALUES, config.rows, dtype=np.uint32)
            self.useless[name] = draw.permutation(VALUES) < VALUES // 2
            signs = draw.permuted(np.tile([-1, 1], (VALUES, CONTEXTS // 2)), axis=1)
            signs[self.useless[name]] = 0
            logit += EFFECT * signs[tokens, context if name in WIDE else 0]
            self._tokens.append(tokens)
        self._tokens.append(context)
        self._probability = 1 / (1 + np.exp(-logit))
        self._labels = (draw.random(config.rows) < self._probability).astype(np.uint8)

    def chunks(self, pool):
        missing = [None] * len(FEATURES)
        yield RawChunk(self._labels, [], self._tokens, missing, self.total, self._probability)


class Planted(NamedTuple):
    """A prepared data set and what was planted in it.

    Attributes:
        config: what it was prepared from; its features are `FEATURES`.
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
    of_tokens, useless = PlantedRows(config).useless, {}
    for feature in dataset.features:
        with ipc.open_file(pa.memory_map(str(feature.vocabulary))) as reader:
            tokens = reader.read_all()["value"].to_numpy()
        useless[feature.name] = torch.from_numpy(np.append(False, of_tokens[feature.name][tokens]))
    return Planted(config, dataset, useless)
