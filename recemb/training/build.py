"""Makes what a run trains, model and tables, and measures it."""

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recemb.datasets import PreparedDataset
from recemb.tables.base import CompressedTable, TableConfig, TableSpec, total_full_bytes
from recemb.tables.collection import HERE, CompressedEmbeddingBagCollection
from recemb.tables.precision import empty_rows
from recemb.tables.sharded import ReplicatedTables, ShardedTables
from recemb.tables.storage import FusedTables
from recemb.training.sharding import held_as_asked, spread

if TYPE_CHECKING:
    from recemb.config import RunConfig

_SAMPLE_ROWS = 131_072


class Built(NamedTuple):
    """A model and the tables in it.

    Attributes:
        model: names and holds everything.
        tables: in the model.
        runs: what to call: the model, or what wraps it where several processes train together.
    """

    model: nn.Module
    tables: CompressedEmbeddingBagCollection
    runs: nn.Module


def build(
    config: "RunConfig", dataset: PreparedDataset, specs: list[TableSpec], table: TableConfig | CompressedTable
) -> Built:
    """Make tables and backbone, spread over the processes if there are several.

    The same seed starts them with the same weights, whatever was made before and however they are spread.

    Raises:
        RecembError: the tables do not fit into the processes' memory, or nothing says how they share them.
    """
    trainer = config.trainer
    held = held_as_asked(trainer.sharding)
    seed_everything(config.seed)
    device = trainer.torch_device()
    tables = CompressedEmbeddingBagCollection(
        specs, table, optimizer=trainer.fused_optimizer(), seed=config.seed, device=device, held=held
    )
    model = config.model.build(tables, dense_sample(dataset)).to(device)
    if held == HERE:
        return Built(model, tables, model)
    together = spread(
        model, tables, config.seed, device, sharding=trainer.sharding, batch_size=trainer.batch_size,
        cache_share=trainer.cache_share,
    )  # fmt: skip
    return Built(model, tables, together)


def trained_beside_rows(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters of a model that no host of rows updates."""
    of_rows = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (FusedTables, ShardedTables, ReplicatedTables))
        for parameter in module.parameters()
    }
    return [one for one in model.parameters() if one.requires_grad and id(one) not in of_rows]


def copy_backbone(source: nn.Module, target: nn.Module) -> None:
    """Copy everything but the tables from one model to another of the same backbone."""
    given = source.state_dict()
    with torch.no_grad():
        for name, tensor in _beside_tables(target).items():
            tensor.copy_(given[name])


def _beside_tables(model: nn.Module) -> dict[str, Tensor]:
    """Give everything that a model saves but the tables."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in (".embedding_bags.", ".method."))
    }


def dense_sample(dataset: PreparedDataset) -> Tensor:
    """Give the dense features of some training rows from all over the split, (n, K), the same at every call."""
    batches = dataset.batches("train", min(_SAMPLE_ROWS, dataset.num_rows("train")), shuffle=True)
    return next(iter(batches)).dense


def count_bytes(built: Built) -> dict[str, Any]:
    """Measure what is held, in bytes.

    Returns:
        tables_full: the uncompressed fp32 tables; tables_serving: every tensor serving the tables needs, by `parts`
        and by table; tables_training: the same while training; optimizer: accumulators of the tables' rows and of the
        rest; dense: the rest of the model.
    """
    model, tables, _ = built
    layout = tables.method.layout
    trained = trained_beside_rows(model)
    packed = (empty_rows(table, device="meta") for table in layout.tables)
    rows = sum(tensor.nbytes for tensors in packed for tensor in tensors.values())
    parameters = sum(parameter.nbytes for parameter in tables.method.parameters())
    constants = sum(tensor.nbytes for tensor in tables.method.state_dict().values()) - parameters
    helping = sum(buffer.nbytes for buffer in tables.method.buffers())  # those that are not served too
    return {
        "tables_full": total_full_bytes(tables.specs),
        "tables_serving": rows + parameters + constants,
        "tables_training": tables.tables.stored_bytes() + parameters + helping,
        # Adam holds two moments of every trained weight.
        "optimizer": tables.tables.optimizer_bytes() + 2 * sum(parameter.nbytes for parameter in trained),
        "dense": sum(tensor.nbytes for tensor in _beside_tables(model).values()),
        "parts": {"rows": rows, "parameters": parameters, "constants": constants},
        "per_table": layout.bytes_per_table(tables.specs),
    }


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
