"""CompressedEmbeddingBagCollection: a torchrec-shaped collection over any method of the family."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recemb.options import RecembError
from recemb.tables.base import (
    CompressedTable,
    Layout,
    TableConfig,
    TableSpec,
    total_full_bytes,
)
from recemb.tables.casting import keep_integers
from recemb.tables.initial import init_orthogonal_, init_uniform_
from recemb.tables.lanes import stored_shape
from recemb.tables.looking_up import Answer, Ask, Asked
from recemb.tables.lookups import Lookups
from recemb.tables.plain import PlainTables
from recemb.tables.quantized import QuantizedTables
from recemb.tables.registry import create_table
from recemb.tables.sharded import ReplicatedTables, ShardedTables
from recemb.tables.storage import FusedOptimizer, FusedTables

HERE, SHARDED, REPLICATED = "here", "sharded", "replicated"


@dataclass(frozen=True)
class BagConfig:
    """What torchrec's models ask of a collection: one logical table as it appears from outside."""

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: list[str]


class CompressedEmbeddingBagCollection(nn.Module):
    """Pooled embeddings of all features, KeyedJaggedTensor in, KeyedTensor out, whatever the method.

    Args:
        specs: the logical tables.
        config: the method and its sizes, or a module of a method made for these tables.
        optimizer: hold the rows in FBGEMM's fused tables under this optimizer; None keeps ordinary parameters, which
            autograd and any torch optimizer can see. Rows under an optimizer are updated inside `backward()`, in
            evaluation mode too, unless `requires_grad_(False)` freezes them; see `FusedOptimizer` for what that
            leaves out, and `unscale_with` for mixed precision.
        seed: fixes the initial weights; two collections of one seed are equal.
        device: where the weights live.
        rows: (rows, width) of each physical table, to be held for serving as the specs' precisions say; `config` is
            then the module that they belong to. See `quantized`, which passes them.
        held: where rows under an optimizer are: `here`, in this process; `sharded`, spread over processes by
            torchrec's DistributedModelParallel once `recemb.training.sharding.spread` has wrapped the model;
            `replicated`, all of them in every process, which add up their gradients.

    Attributes:
        features: the features that are looked up, in the order of the result.

    Example::

        specs = [TableSpec(name="C1", num_embeddings=1000, embedding_dim=16)]
        collection = CompressedEmbeddingBagCollection(specs, HashingConfig(rows=100))
        #        0       1     <-- row of the batch
        # "C1"   [7]     [7, 8]
        features = KeyedJaggedTensor(keys=["C1"], values=torch.tensor([7, 7, 8]), lengths=torch.tensor([1, 2]))
        collection(features)["C1"].shape  # (2, 16)

    Raises:
        RecembError: two tables have one name or one feature, or ids are out of range (in `forward`; the sentence names
            the feature, the id and the size).
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: TableConfig | CompressedTable,
        *,
        optimizer: FusedOptimizer | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        rows: Sequence[Tensor] | None = None,
        held: str = HERE,
    ) -> None:
        super().__init__()
        _check_names(specs)
        if rows is not None and (optimizer is not None or not isinstance(config, CompressedTable)):
            raise RecembError("rows= holds trained rows for serving: pass their own module, and no optimizer.")
        self.specs = list(specs)
        method = config if isinstance(config, CompressedTable) else create_table(config, specs)
        self.method: CompressedTable = method.to(device)
        layout = self.method.layout
        packed = optimizer is not None and any(stored_shape(table).dim != table.dim for table in layout.tables)
        lookups = Lookups(specs, self.method, packed)
        self.features = lookups.features
        by_value = lookups.by_value
        self.tables: PlainTables | FusedTables | QuantizedTables | ShardedTables | ReplicatedTables
        if rows is not None:
            self.tables = QuantizedTables(layout.tables, lookups.tables, rows, by_value=by_value)
        elif optimizer is not None and held != HERE:
            elsewhere: type[ShardedTables | ReplicatedTables] = ShardedTables if held == SHARDED else ReplicatedTables
            self.tables = elsewhere(layout.tables, lookups.tables, optimizer, device, by_value=by_value)
        elif optimizer is not None:
            self.tables = FusedTables(layout.tables, lookups.tables, optimizer, device, by_value=by_value)
        else:
            self.tables = PlainTables(layout.tables, lookups.tables, device)
        self.ask = Ask(specs, lookups, self.method, self.tables, device)
        self.answer = Answer(lookups, self.method, self.tables, device)
        self._expected: tuple[KeyedJaggedTensor, Asked] | None = None
        if rows is None:
            self.start(seed)

    def start(self, seed: int) -> None:
        """Give all weights the values that training starts from; rows that are still to be sharded wait for that."""
        layout = self.method.layout
        for table in layout.tables:
            if isinstance(self.tables, ShardedTables):
                self.tables.start(table, seed)
            elif not isinstance(self.tables, QuantizedTables):
                init_uniform_(self.tables.read(table.name).data, table.init_std, table.name, seed)
        for parameter in layout.parameters:
            init_orthogonal_(self.method.get_parameter(parameter.name), parameter.init_std, parameter.name, seed)

    def embedding_bag_configs(self) -> list[BagConfig]:
        """Describe the logical tables the way torchrec's models read them; a narrower table says its own width."""
        return bag_configs(self.specs, self.method.layout)

    @property
    def kept(self) -> float:
        """Serving bytes over the bytes of the full fp32 tables."""
        return self.method.layout.serving_bytes / total_full_bytes(self.specs)

    @property
    def weights(self) -> list[Tensor]:
        """The physical tables' weights (rows, width), in the layout's order.

        Sharded rows are gathered, so that all processes must ask for them together and get copies; see `write`.
        """
        host = self.tables
        if isinstance(host, QuantizedTables):
            raise RecembError("quantized tables hold packed rows and no weights; ask the collection they were made of.")
        return [host.read(table.name) for table in self.method.layout.tables]

    @torch.no_grad()
    def write(self, weights: Sequence[Tensor]) -> None:
        """Give the physical tables other weights (rows, width), in the layout's order, wherever they are held."""
        assert not isinstance(self.tables, QuantizedTables)
        for table, weight in zip(self.method.layout.tables, weights, strict=True):
            self.tables.write(table.name, weight)

    def quantized(self) -> "CompressedEmbeddingBagCollection":
        """Make the collection that serves these tables: rows held as the specs' precisions say, on the CPU.

        It takes and gives what this one does, and holds exactly the layout's serving bytes. Nothing in it is trained,
        and nothing of it is shared with this one.

        Raises:
            RecembError: the tables are still being pruned, or a number is too large for half precision.
        """
        if self.method.gates:
            raise RecembError("tables that are still being pruned cannot be served; serve the packed table.")
        method = copy.deepcopy(self.method).cpu().requires_grad_(False)
        return CompressedEmbeddingBagCollection(self.specs, method, rows=self.weights).train(self.training)

    def unscale_with(self, scaler: GradScaler | None) -> None:
        """Tell rows under an optimizer which `torch.amp.GradScaler` scales the loss; None for none, as at the start.

        The rows are updated inside the backward pass, where gradients still carry the scale: a scaler that they are
        not told of makes their steps as many times too large. With it the scale is divided out first, and where a
        gradient of rows has overflowed they stay as they are in that step, as the scaler's own optimizers do. Rows
        without an optimizer need none of this: the scaler unscales what it steps. A copy uses the same scaler; a
        collection that comes out of a pickle must be told anew before it is trained.
        """
        if isinstance(self.tables, (FusedTables, ShardedTables)):
            self.tables.unscale_with(scaler)

    def requires_grad_(self, requires_grad: bool = True) -> "CompressedEmbeddingBagCollection":
        """Freeze the tables, or let them be trained again, rows under an optimizer included."""
        if not isinstance(self.tables, ShardedTables):
            return super().requires_grad_(requires_grad)
        for part in (self.tables, self.method):
            part.requires_grad_(requires_grad)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "CompressedEmbeddingBagCollection":
        super()._apply(keep_integers(fn), recurse)
        return self

    def serving_tensors(self) -> dict[str, Tensor]:
        """Give every tensor that serving the tables needs, by name."""
        return {f"tables.{name}": tensor for name, tensor in self.tables.state_dict().items()} | {
            f"method.{name}": tensor for name, tensor in self.method.state_dict().items()
        }

    def expect(self, features: KeyedJaggedTensor, asked: Asked) -> None:
        """Take what `ask` made of these very features beforehand, if they come next."""
        self._expected = features, asked

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look all features up.

        Args:
            features: ids by feature; must hold every feature of the collection, in any order, others are ignored.

        Returns:
            KeyedTensor with (B, D) for each feature; an empty bag gives zeros.
        """
        expected, self._expected = self._expected, None
        asked = expected[1] if expected is not None and expected[0] is features else self.ask(features)
        if isinstance(self.tables, ShardedTables):
            # torchrec follows this by symbols to find what it may run ahead: no value of `asked` is looked at.
            return cast(KeyedTensor, self.answer(self.tables(asked.shared), asked))
        if asked.counts is None:
            return cast(KeyedTensor, self.answer(self.tables(asked.rows, asked.offsets), asked))
        if self.answer.widening is not None and isinstance(self.tables, FusedTables):
            return cast(KeyedTensor, self.answer(self.tables.stored(asked.rows, asked.counts), asked))
        return cast(KeyedTensor, self.answer(self.tables.values(asked.rows, asked.counts), asked))


def _check_names(specs: Sequence[TableSpec]) -> None:
    if not specs:
        raise RecembError("a collection needs at least one table.")
    for what, names in (
        ("table", [spec.name for spec in specs]),
        ("feature", [name for spec in specs for name in spec.feature_names]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                raise RecembError(f"{what} {name!r} is named {count} times; names must differ.")
    for spec in specs:
        if "." in spec.name or not spec.name or hasattr(nn.ModuleDict(), spec.name):
            raise RecembError(
                f"table name {spec.name!r} cannot be used: it must not be empty, hold a dot or be a method of "
                "torch.nn.ModuleDict, as keys and type are."
            )


def bag_configs(specs: Sequence[TableSpec], layout: Layout) -> list[BagConfig]:
    """Describe logical tables the way torchrec's models read them; a narrower table says its own width."""
    return [
        BagConfig(spec.name, spec.num_embeddings, dim, spec.feature_names)
        for spec, dim in zip(specs, layout.dims, strict=True)
    ]
