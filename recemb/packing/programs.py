"""Writes a serving module as a program: torch.export's .pt2, which torch alone runs, and ONNX."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.fx.experimental._config as shapes_config
from torch import Tensor, nn

from recemb.options import RecembError

_OPSET = 20
_LARGEST_ONNX = 1 << 30
"""Bytes of weights above which they lie in a file of their own beside the graph, whose format ends at 2 GiB."""


def capture(module: nn.Module, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """Trace a module that takes flat ids.

    Args:
        module: takes `values` (N,) and `offsets` (F, B + 1), perhaps after `dense` (B, K); N and B are free afterwards.
        inputs: an example, N and B at least 2, by the names of the arguments.
    """
    bags = torch.export.Dim("bags")
    free = {"dense": {0: bags}, "values": {0: torch.export.Dim("ids")}, "offsets": {1: bags + 1}}
    shapes = {name: free[name] for name in inputs}
    # Otherwise torch takes sizes for at least 2, as in the example, and the program would refuse one bag, or no id.
    with shapes_config.patch(backed_size_oblivious=True), _quiet(), torch.no_grad():  # type: ignore[attr-defined]
        program = torch.export.export(module.eval(), (), inputs, dynamic_shapes=shapes)
    program.example_inputs = None  # they would be pickled into the file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where the code lies on this machine
    return program


def write_pt2(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program that `torch.export.load` reads."""
    # By way of memory: on a disk that fills up torch's own writer ends the process instead of raising.
    content = io.BytesIO()
    with _quiet():
        torch.export.save(program, content)
    with path.open("wb") as file:
        file.write(content.getbuffer())


def write_onnx(program: torch.export.ExportedProgram, path: Path, output: str) -> list[str]:
    """Write a program as ONNX, its inputs named as the module's arguments.

    Args:
        program: of `capture`.
        path: the file.
        output: name of the result.

    Returns:
        Names of the files written: the graph, and its weights where they are too large for it.

    Raises:
        RecembError: the packages that write ONNX are not there.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RecembError(
            f"writing ONNX needs the package {error.name}, which is not installed: pip install 'recemb[onnx]', or "
            "leave onnx out of --to."
        ) from error
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    external = weights > _LARGEST_ONNX
    with _quiet():
        written = torch.onnx.export(
            program, dynamo=True, opset_version=_OPSET, output_names=[output], verbose=False, optimize=True
        )
        assert written is not None
        written.save(str(path), external_data=external)
    return [path.name, *([path.name + ".data"] if external else [])]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporters tell their own authors from the user."""
    logs = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnx_ir", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def run_onnx(path: Path) -> Callable[..., Tensor]:
    """Load an ONNX file, to be called with the model's arguments in order.

    Raises:
        RecembError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RecembError(
            "checking ONNX needs the package onnxruntime, which is not installed: pip install 'recemb[onnx]', or leave "
            "onnx out of --to."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(*arguments: Tensor) -> Tensor:
        named = dict(zip(("dense", "values", "offsets")[-len(arguments) :], arguments, strict=True))
        wanted = [entry.name for entry in session.get_inputs()]
        return torch.from_numpy(session.run(None, {name: named[name].numpy() for name in wanted})[0])

    return call
