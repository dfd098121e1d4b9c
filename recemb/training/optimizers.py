"""Everything that updates weights in a step, beside what FBGEMM's kernels do in the backward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.sharded import ReplicatedTables, ShardedTables
from recemb.tables.storage import FusedTables


class Optimizers:
    """Adam for the model, what methods ask for beside it, and the learning rates of the tables' rows.

    Args:
        parameters: what is trained beside the rows.
        collections: the tables.
        lr: learning rate of Adam.
        weight_decay: its decoupled weight decay.
        table_lr: learning rate of the rows.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        collections: Sequence[CompressedEmbeddingBagCollection],
        lr: float,
        weight_decay: float,
        table_lr: float,
    ) -> None:
        own = [optimizer for collection in collections for optimizer in collection.method.optimizers()]
        of_methods = {id(one) for optimizer in own for group in optimizer.param_groups for one in group["params"]}
        rest = [one for one in parameters if id(one) not in of_methods]
        self._main: list[torch.optim.Optimizer] = [
            # One kernel for all weights, which may be very many small ones; on CPUs it would round otherwise.
            torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, fused=all(one.is_cuda for one in rest) or None),
            *own,
        ]
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._main]
        self._table_lr = table_lr
        hosts = [collection.tables for collection in collections]
        self._hosts = [host for host in hosts if isinstance(host, (FusedTables, ShardedTables, ReplicatedTables))]
        self._all = [*self._main, *(host.optimizer for host in self._hosts if isinstance(host, ReplicatedTables))]

    @property
    def lr(self) -> float:
        """Adam's learning rate at the moment."""
        return float(self._main[0].param_groups[0]["lr"])

    def scale_rates(self, scale: float) -> None:
        """Set all learning rates to a share of what they began with."""
        for optimizer, rates in zip(self._main, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        for host in self._hosts:
            host.set_lr(self._table_lr * scale)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update everything that the backward pass has not updated."""
        for optimizer in self._all:
            optimizer.step()

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Give all moments and accumulators by the names of what they belong to, to be saved or filled in place.

        Args:
            model: names the parameters.
        """
        found: dict[str, Tensor] = {}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for optimizer in self._main:
            _make_state(optimizer)
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    found[f"{names[id(parameter)]}.{key}"] = value
        for host in self._hosts:
            found |= {f"tables.{name}": tensor for name, tensor in host.optimizer_tensors().items()}
        return found


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer that has not stepped yet make its moments, all zero, without moving a weight."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    if optimizer.state or not parameters:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    gradients = [one.grad for one in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for one in parameters:
        one.grad = torch.zeros_like(one)
    optimizer.step()
    for one, gradient in zip(parameters, gradients, strict=True):
        one.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].zero_()
