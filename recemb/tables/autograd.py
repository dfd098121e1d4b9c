"""How rows that are updated inside the backward pass take part in torch's idioms.

FBGEMM's kernels move rows in the backward pass, before an optimizer, a gradient scaler or DistributedDataParallel could
look at a gradient. What those would do is done here, where the gradient passes on its way to the kernel:

- rows whose weight has `requires_grad` off are looked up without autograd, so that nothing moves them;
- the scale of a `torch.amp.GradScaler` is divided out, and a gradient that overflowed moves nothing;
- training in a DistributedDataParallel is refused, since each process would move its own copy of the rows.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from recemb.options import RecembError

_NO_GRADIENT = contextlib.nullcontext()


@contextlib.contextmanager
def _outside_of_inference() -> Any:
    with torch.inference_mode(False), torch.no_grad():
        yield


def kernel_mode(trains: bool) -> contextlib.AbstractContextManager[Any]:
    """Give the context to call one of FBGEMM's training kernels in.

    Args:
        trains: whether the backward pass shall update any row.
    """
    if torch.is_inference_mode_enabled():
        return _outside_of_inference()  # the CPU kernels are registered with autograd only
    return _NO_GRADIENT if trains else torch.no_grad()


def check_not_replicated() -> None:
    """Raise where rows are about to be trained inside a DistributedDataParallel."""
    if DistributedDataParallel._active_ddp_module is not None:
        raise RecembError(
            "a collection with optimizer= cannot be trained in DistributedDataParallel, since every process would "
            "update its own copy of the rows; make it without optimizer=, so that gradients are averaged, or freeze it "
            "with requires_grad_(False) before it is wrapped."
        )


def unscaled(vectors: Tensor, scaler: GradScaler | None) -> Tensor:
    """Divide a scaler's scale out of the gradient of looked-up rows of any shape; leave the rows as they are."""
    if scaler is None or not scaler.is_enabled() or not vectors.requires_grad:
        return vectors
    return _Unscaled.apply(vectors, scaler)


class _Unscaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, scaler: GradScaler) -> Tensor:
        ctx.scaler = scaler
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        gradient = gradient / ctx.scaler.scale(torch.ones((), device=gradient.device))
        return torch.where(gradient.isfinite().all(), gradient, 0.0), None
