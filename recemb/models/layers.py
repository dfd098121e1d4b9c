"""What the backbones share: plain layers, and the check of the widths they are given."""

from collections.abc import Sequence

from torch import nn

from recemb.options import RecembError


def mlp(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Stack linear layers of these widths, each followed by a ReLU: (B, inputs) to (B, widths[-1])."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


def check_widths(option_name: str, widths: Sequence[int]) -> None:
    """Raise unless an option is a list of at least one width, each at least 1."""
    if not widths or any(width < 1 for width in widths):
        raise RecembError(f"model.{option_name}={list(widths)} must be a list of widths of at least 1.")


def check_at_least(option_name: str, value: int, least: int) -> None:
    """Raise where an option is smaller than makes sense."""
    if value < least:
        raise RecembError(f"model.{option_name}={value} is too small; it must be at least {least}.")
