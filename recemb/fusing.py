"""Chains of small operations as one kernel each way, on GPUs."""

import functools
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

_Result = TypeVar("_Result")
# Before torch 2.12 a compiled function must not be called while another thread compiles.
_ONE_AT_A_TIME = threading.RLock()
_LEAST_CAPABILITY = (7, 0)  # of GPUs that Triton makes kernels for


def fused(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Compile a function of tensors where the first of them is on a GPU; elsewhere it is called as it is.

    On CPUs compiling gains 2 % of a step, and takes longer than many a run. TORCH_COMPILE_DISABLE=1 turns it off, and
    so does what `makes_kernels` misses.
    """

    @functools.cache
    def compiled() -> Callable[..., _Result]:
        return torch.compile(function)  # which takes seconds to import what it needs

    @functools.wraps(function)
    def call(first: Tensor, *others: object) -> _Result:
        if torch.compiler.is_compiling() or not makes_kernels(first.device):  # whoever compiles fuses this too
            return function(first, *others)
        with _ONE_AT_A_TIME:
            return compiled()(first, *others)

    return call


@functools.cache
def makes_kernels(device: torch.device) -> bool:
    """Whether kernels can be made for a device: a GPU that Triton knows, Triton, and a C compiler."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    compilers = [os.environ.get("CC") or "cc", "gcc", "clang"]
    return any(map(shutil.which, compilers)) and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
