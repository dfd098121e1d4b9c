"""Which tensors of a module follow when it is cast, moved or shared (`half`, `to`, `type`, `share_memory`, ...)."""

from collections.abc import Callable

from torch import Tensor


def keep_types(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Make what `nn.Module._apply` is given move tensors to where it would, but in the types that they have."""

    def apply(tensor: Tensor) -> Tensor:
        applied = fn(tensor)
        return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

    return apply


def keep_integers(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Do the same for tensors that are not floats, such as codes and row numbers, which `nn.Module.type` casts too."""

    def apply(tensor: Tensor) -> Tensor:
        return fn(tensor) if tensor.is_floating_point() else keep_types(fn)(tensor)

    return apply
