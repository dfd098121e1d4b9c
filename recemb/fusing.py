"""Chains of small operations as one kernel each way, on GPUs."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

_Result = TypeVar("_Result")


def fused(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Compile a function of tensors where the first of them is on a GPU; elsewhere it is called as it is.

    On CPUs compiling gains 2 % of a step, and takes longer than many a run. TORCH_COMPILE_DISABLE=1 turns it off.
    """

    @functools.cache
    def compiled() -> Callable[..., _Result]:
        return torch.compile(function)  # which takes seconds to import what it needs

    @functools.wraps(function)
    def call(first: Tensor, *others: object) -> _Result:
        return (compiled() if first.is_cuda else function)(first, *others)

    return call
