"""Makes what a run trains, model and tables, and measures it."""

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recemb.datasets import PreparedDataset
from recemb.tables.base import CompressedTable, TableConfig, TableSpec, total_full_bytes
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.precision import empty_rows

if TYPE_CHECKING:
    from recemb.config import RunConfig

_SAMPLE_ROWS = 131_072


class Built(NamedTuple):
    """A model and the tables in it."""

    model: nn.Module
    tables: CompressedEmbeddingBagCollection


def build(
    config: "RunConfig", dataset: PreparedDataset, specs: list[TableSpec], table: TableConfig | CompressedTable
) -> Built:
    """Make tables and backbone; the same seed starts them with the same weights, whatever was made before."""
    seed_everything(config.seed)
    device = config.trainer.torch_device()
    tables = CompressedEmbeddingBagCollection(
        specs, table, optimizer=config.trainer.fused_optimizer(), seed=config.seed, device=device
    )
    return Built(config.model.build(tables, dense_sample(dataset)).to(device), tables)


def copy_backbone(source: nn.Module, target: nn.Module) -> None:
    """Copy everything but the tables from one model to another of the same backbone."""
    rest = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if not any(part in name for part in (".embedding_bags.", ".method."))
    }
    target.load_state_dict(target.state_dict() | rest)


def dense_sample(dataset: PreparedDataset) -> Tensor:
    """Give the dense features of some training rows from all over the split, (n, K), the same at every call."""
    batches = dataset.batches("train", min(_SAMPLE_ROWS, dataset.num_rows("train")), shuffle=True)
    return next(iter(batches)).dense


def count_bytes(model: nn.Module, tables: CompressedEmbeddingBagCollection) -> dict[str, Any]:
    """Measure what is held, in bytes.

    Returns:
        tables_full: the uncompressed fp32 tables; tables_serving: every tensor serving the tables needs, by `parts`
        and by table; tables_training: the same while training; optimizer: accumulators of the tables' rows and of the
        rest; dense: the rest of the model.
    """
    layout = tables.method.layout
    serving = tables.serving_tensors()
    served = {tensor.data_ptr() for tensor in serving.values()}
    rest = [tensor for tensor in model.state_dict().values() if tensor.data_ptr() not in served]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    packed = (empty_rows(table, device="meta") for table in layout.tables)
    rows = sum(tensor.nbytes for tensors in packed for tensor in tensors.values())
    parameters = sum(parameter.nbytes for parameter in tables.method.parameters())
    constants = sum(tensor.nbytes for name, tensor in serving.items() if name.startswith("method.")) - parameters
    helping = sum(buffer.nbytes for buffer in tables.method.buffers())  # those that are not served too
    return {
        "tables_full": total_full_bytes(tables.specs),
        "tables_serving": rows + parameters + constants,
        "tables_training": tables.tables.stored_bytes() + parameters + helping,
        # Adam holds two moments of every trained weight.
        "optimizer": tables.tables.optimizer_bytes() + 2 * sum(parameter.nbytes for parameter in trained),
        "dense": sum(tensor.nbytes for tensor in rest),
        "parts": {"rows": rows, "parameters": parameters, "constants": constants},
        "per_table": layout.bytes_per_table(tables.specs),
    }


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
