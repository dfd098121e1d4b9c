"""Spreads the tables of a model over processes: torchrec plans, DistributedModelParallel does it.

The planner may choose only what trains the same as one process does: fused kernels, since torchrec ignores the
optimizer of the rows with any other; no column-wise shards with row-wise Adagrad, each of which would keep an
accumulator of its own; widths of shards that are multiples of four, as the kernels need them.
"""

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import CacheParams, ShardingEnv, ShardingPlan, ShardingType

from recemb.budget import format_bytes, parse_budget
from recemb.options import RecembError
from recemb.tables.base import TableConfig, TableSpec
from recemb.tables.collection import HERE, REPLICATED, SHARDED, CompressedEmbeddingBagCollection
from recemb.tables.full import FullConfig
from recemb.tables.lanes import lanes_of, stored_shape
from recemb.tables.sharded import ReplicatedTables, ShardedTables
from recemb.tables.storage import FusedOptimizer
from recemb.training.processes import on_first, world_size

if TYPE_CHECKING:
    from recemb.training.trainer_config import TrainerConfig

# It asks for descriptions of hardware that only make its estimates finer.
logging.getLogger("torchrec.distributed.planner.types").setLevel(logging.ERROR)

SHARDINGS = ("none", "auto", "table_wise", "row_wise", "column_wise", "data_parallel")
_KERNEL_WIDTH = 4
_NO_COLUMNS = (
    "with table_optimizer=rowwise_adagrad every part of a row would keep an accumulator of its own, which is another "
    "optimizer"
)


class Shard(NamedTuple):
    """A part of a table's stored rows that one process holds."""

    table: str
    kind: str
    kernel: str
    process: int
    rows: int
    width: int


def check_sharding(sharding: str, optimizer: FusedOptimizer, cache: float | None) -> None:
    """Raise where tables cannot be spread like this.

    Args:
        sharding: one of `SHARDINGS`.
        optimizer: of the rows.
        cache: the share of rows that a GPU caches, None for all.
    """
    if sharding not in SHARDINGS:
        raise RecembError(f"trainer.sharding={sharding} is not known; choose one of {', '.join(SHARDINGS)}.")
    if sharding == "column_wise" and optimizer.name == "rowwise_adagrad":
        raise RecembError(
            f"trainer.sharding=column_wise is not offered here: {_NO_COLUMNS}. Take trainer.table_optimizer=adagrad or "
            "sgd, or another sharding."
        )
    if cache is not None and sharding in ("none", "data_parallel"):
        raise RecembError(
            f"trainer.cache_share is for sharded tables, not for trainer.sharding={sharding}; take auto, table_wise, "
            "row_wise or column_wise."
        )


def held_as_asked(sharding: str) -> str:
    """Say where a collection holds its rows under torchrun, or alone.

    Raises:
        RecembError: several processes were started, and nothing says how they share the tables.
    """
    if not dist.is_initialized():
        return HERE
    if sharding == "none":
        if world_size() > 1:
            raise RecembError(
                f"{world_size()} processes were started, and trainer.sharding=none is for one; pass "
                "trainer.sharding=auto."
            )
        return HERE
    return REPLICATED if sharding == "data_parallel" else SHARDED


def spread(
    model: nn.Module,
    tables: CompressedEmbeddingBagCollection,
    seed: int,
    device: torch.device,
    *,
    sharding: str,
    batch_size: int,
    cache_share: float | None = None,
) -> nn.Module:
    """Make what the processes run together of a model that each of them has built.

    Args:
        model: holds `tables`; its own modules are changed in place.
        tables: made to be `sharded` or `replicated`.
        seed: of the initial weights.
        device: of this process.
        sharding: as in the trainer's options.
        batch_size: rows a step, of all processes.
        cache_share: as in the trainer's options.

    Returns:
        The module to call, which averages the gradients of everything beside the tables.

    Raises:
        RecembError: the tables do not fit into the processes' memory.
    """
    host = tables.tables
    if isinstance(host, ReplicatedTables):
        return DistributedDataParallel(
            model, device_ids=None if device.type == "cpu" else [device],
            gradient_as_bucket_view=True, broadcast_buffers=False,
        )  # fmt: skip
    assert isinstance(host, ShardedTables)
    if not any(weight.requires_grad for weight in host.parameters()):
        host.requires_grad_(False)  # torchrec's sharded weights do not remember it
    sharders = _sharders(host.fused_optimizer)
    plan = on_first(
        lambda: make_plan(host, world_size(), device.type, sharding, batch_size=batch_size, cache_share=cache_share)
    )
    together = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(_group()),
        device=device,
        plan=_of_model(plan, model, host),
        sharders=sharders,
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=False),
    )
    host.sharded()
    tables.start(seed)
    return together


def _group() -> Any:
    group = dist.group.WORLD
    assert group is not None
    return group


def make_plan(
    host: ShardedTables,
    processes: int,
    device: str,
    sharding: str,
    *,
    batch_size: int,
    cache_share: float | None = None,
    memory: int | None = None,
) -> ShardingPlan:
    """Let torchrec's planner say which process holds what; no process has to run.

    Args:
        host: the tables, not yet sharded.
        processes: how many.
        device: `cpu` or `cuda`.
        sharding: as in the trainer's options.
        batch_size: rows a step, of all processes.
        cache_share: as in the trainer's options.
        memory: bytes that a process has for tables; what this machine has when not given.

    Raises:
        RecembError: the tables do not fit.
    """
    on_a_machine = min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    each = memory or _memory_each(device, on_a_machine)
    topology = Topology(
        world_size=processes,
        compute_device=device,
        local_world_size=on_a_machine,
        hbm_cap=each if device == "cuda" else 0,
        ddr_cap=_host_memory() // processes if device == "cuda" else each,
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=max(1, batch_size // processes),
        constraints=_constraints(host, processes, sharding, cache_share),
        storage_reservation=FixedPercentageStorageReservation(0.1),
    )
    try:
        return planner.plan(host, _sharders(host.fused_optimizer))
    except PlannerError as error:
        need = host.stored_bytes() + host.optimizer_bytes()
        raise RecembError(
            f"the tables do not fit: rows and accumulators take {format_bytes(need)}, and {processes} processes have "
            f"{format_bytes(each)} each, a tenth of it for the rest, with trainer.sharding={sharding}. Take more "
            "processes, a smaller budget, or another sharding."
        ) from error


def shards_of(plan: ShardingPlan) -> list[Shard]:
    """List the parts of tables that a plan gives to processes."""
    shards = []
    for of_module in plan.plan.values():
        for table, found in of_module.items():
            for one in found.sharding_spec.shards:
                process, (rows, width) = one.placement.rank(), one.shard_sizes
                shards.append(Shard(table, found.sharding_type, found.compute_kernel, process, rows, width))
    return shards


def bytes_of_processes(shards: Iterable[Shard], processes: int, optimizer: FusedOptimizer) -> list[int]:
    """Bytes of rows and accumulators that each process holds."""
    held = [0] * processes
    for shard in shards:
        of_optimizer = {"sgd": 0, "adagrad": shard.rows * shard.width}.get(optimizer.name, shard.rows)
        held[shard.process] += 4 * (shard.rows * shard.width + of_optimizer)
    return held


def planned(
    specs: list[TableSpec], table: TableConfig, trainer: "TrainerConfig", processes: int, memory: Any = None
) -> dict[str, Any]:
    """Say how processes that do not run yet would share the tables, in the form that `describe` has.

    Args:
        specs: the logical tables.
        table: the method, sizes set. Of methods that learn what to keep, the first stage is shown, which holds most.
        trainer: says how to share, and the optimizer of the rows.
        processes: how many.
        memory: of each, as `parse_budget` reads it; None for no limit.

    Raises:
        RecembError: the tables do not fit.
    """
    optimizer, found = trainer.fused_optimizer(), {"asked": trainer.sharding, "processes": processes}
    layout = (FullConfig() if table.learns else table).layout(specs)
    lookups = [index for of_spec in layout.lookups for index in of_spec]
    host = ShardedTables(layout.tables, list(dict.fromkeys(lookups)), optimizer)
    limit = parse_budget(memory, 1 << 62) if memory is not None else 1 << 60
    whole = host.stored_bytes() + host.optimizer_bytes()
    if trainer.sharding == "data_parallel":
        if whole > limit:
            raise RecembError(
                f"every process would hold all rows and accumulators, {format_bytes(whole)}, and has "
                f"{format_bytes(limit)}; take trainer.sharding=auto."
            )
        return found | {"bytes_per_process": [whole] * processes}
    device = "cuda" if trainer.device == "cuda" else "cpu"
    plan = make_plan(
        host, processes, device, trainer.sharding, batch_size=trainer.batch_size, cache_share=trainer.cache_share,
        memory=limit,
    )  # fmt: skip
    shards = shards_of(plan)
    return found | {
        "bytes_per_process": bytes_of_processes(shards, processes, optimizer),
        "tables": _of_tables(shards),
    }


def describe(tables: CompressedEmbeddingBagCollection, together: nn.Module, sharding: str) -> dict[str, Any]:
    """Say for the record how the processes share the tables, and what each of them holds."""
    host = tables.tables
    assert isinstance(host, (ShardedTables, ReplicatedTables))
    held: list[int] = [0] * world_size()
    dist.all_gather_object(held, host.bytes_here())
    found: dict[str, Any] = {"asked": sharding, "processes": world_size(), "bytes_per_process": held}
    if isinstance(host, ReplicatedTables):
        return found
    return found | {"tables": _of_tables(shards_of(cast(Any, together).plan))}


def _of_tables(shards: Iterable[Shard]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for shard in shards:
        of_table = found.setdefault(shard.table, {"type": shard.kind, "kernel": shard.kernel, "processes": []})
        of_table["processes"].append(shard.process)
    return found


def plan_lines(found: dict[str, Any]) -> list[str]:
    """Say in words what `describe` found, a line for each table."""
    held = ", ".join(format_bytes(one) for one in found["bytes_per_process"])
    lines = [
        f"sharding {found['asked']} over {found['processes']} processes, which hold {held} of rows and accumulators"
    ]
    of_tables = found.get("tables", {})
    longest = max(map(len, of_tables), default=0)
    for name, of_table in of_tables.items():
        where = ", ".join(map(str, of_table["processes"]))
        lines.append(f"  {name:{longest}}  {of_table['type']} ({of_table['kernel']})  process {where}")
    return lines


def _constraints(
    host: ShardedTables, processes: int, sharding: str, cache_share: float | None
) -> dict[str, ParameterConstraints]:
    kernel, cache = EmbeddingComputeKernel.FUSED.value, None
    if cache_share is not None:
        kernel, cache = EmbeddingComputeKernel.FUSED_UVM_CACHING.value, CacheParams(load_factor=cache_share)
    by_columns = host.fused_optimizer.name != "rowwise_adagrad"
    found = {}
    for name, table in host.tables.items():
        kinds = [sharding]
        if sharding == "auto":
            kinds = [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]
            kinds += [ShardingType.COLUMN_WISE.value] if by_columns else []
        if lanes_of(table.dim) > 1:  # several rows side by side are not cut between columns
            kinds = [ShardingType.TABLE_WISE.value if kind == "column_wise" else kind for kind in kinds]
        width = stored_shape(table).dim
        found[name] = ParameterConstraints(
            sharding_types=list(dict.fromkeys(kinds)),
            compute_kernels=[kernel],
            min_partition=_KERNEL_WIDTH * -(-width // (_KERNEL_WIDTH * processes)),
            cache_params=cache,
        )
    return found


class _BagSharder(EmbeddingBagCollectionSharder):
    """torchrec's, which knows how to cut rows on the CPU too and does not say so."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(dict.fromkeys([*super().sharding_types(compute_device_type), ShardingType.ROW_WISE.value]))


class _ValueSharder(EmbeddingCollectionSharder):
    """The same for embeddings that are looked up one by one."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(dict.fromkeys([*super().sharding_types(compute_device_type), ShardingType.ROW_WISE.value]))


def _sharders(optimizer: FusedOptimizer) -> list[Any]:
    return [_BagSharder(fused_params=optimizer.kwargs()), _ValueSharder(fused_params=optimizer.kwargs())]


def _of_model(plan: ShardingPlan, model: nn.Module, host: ShardedTables) -> ShardingPlan:
    """Name the modules of a plan as the model does, which holds the tables that were planned."""
    (path,) = (name for name, module in model.named_modules() if module is host)
    return ShardingPlan(plan={f"{path}.{name}": of_module for name, of_module in plan.plan.items()})


def _memory_each(device: str, local_processes: int) -> int:
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return _host_memory() // local_processes


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
