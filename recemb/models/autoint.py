"""AutoInt: features that attend to each other.

Song et al., "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks", CIKM 2019, arXiv
1810.11921. The vectors of all fields go through layers of multi-head self-attention with a residual,
relu(attention(e) + W_res e), and one linear layer reads what comes out of all of them. `deep_layers` put an MLP of the
vectors beside it: AutoInt+.

Differs from the paper: attention is divided by the root of a head's width, as in the authors' code; a number is a field
by its embedded quantile bin, where the paper multiplies one vector with the value, and enters AutoInt+'s MLP scaled
besides; no dropout. `normalize` normalises every layer's output, as the authors' code does and the paper does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recemb.models.base import Tables
from recemb.models.deep import DeepConfig, DeepModel
from recemb.models.layers import check_at_least, check_one_width, tower, widths_of_features
from recemb.options import option


@dataclass(kw_only=True)
class AutoIntConfig(DeepConfig):
    """Options of AutoInt."""

    name: ClassVar[str] = "autoint"
    needs_mlp: ClassVar[bool] = False

    attention_layers: int = option(2, "number of attention layers")
    heads: int = option(2, "attention heads of a layer")
    head_dim: int = option(16, "width of a head's queries, keys and values")
    deep_layers: list[int] = option([], "widths of an MLP beside the attention, for AutoInt+; none when empty")
    normalize: bool = option(False, "normalise what leaves an attention layer, and what enters the MLP (LayerNorm)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("attention_layers", "heads", "head_dim"):
            check_at_least(name, getattr(self, name), 1)

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise unless all vectors have one width."""
        check_one_width(self.name, widths, "projects all vectors by the same matrices")

    def build(self, tables: Tables, dense_sample: Tensor) -> nn.Module:
        """Build AutoInt over these tables."""
        return AutoInt(tables, dense_sample, self)


class AutoInt(DeepModel):
    """Attention layers over the fields, and a linear layer over what comes out.

    Args:
        tables: the collection of the categorical features; all of one width D.
        dense_sample: (n, K) float32 of training rows; K may be 0.
        config: the options.
    """

    def __init__(self, tables: Tables, dense_sample: Tensor, config: AutoIntConfig) -> None:
        widths = widths_of_features(tables)
        config.check_widths(widths)
        super().__init__(tables, dense_sample, config, widths[0])
        self.width = widths[0]
        numbers = dense_sample.shape[1]
        fields, inner = len(widths) + numbers, config.heads * config.head_dim
        self.attention = nn.Sequential()
        for inputs in [self.width, *[inner] * (config.attention_layers - 1)]:
            self.attention.append(InteractingLayer(inputs, config.heads, config.head_dim))
            if config.normalize:
                self.attention.append(nn.LayerNorm(inner))
        self.last = nn.Linear(fields * inner, 1)
        self.deep = None
        if config.deep_layers:
            self.deep = tower(fields * self.width + 2 * numbers, config.deep_layers, config.normalize)

    def head(self, dense_features: Tensor, vectors: Tensor) -> Tensor:
        """Predict from looked-up vectors; see `recemb.models.base.Backbone`."""
        scaled, bins = self.encoder(dense_features)
        fields = torch.cat([vectors.unflatten(1, (-1, self.width)), bins], dim=1)
        logits = self.last(self.attention(fields).flatten(1))
        if self.deep is not None:
            logits = logits + self.deep(torch.cat([fields.flatten(1), scaled], dim=1))
        return logits.squeeze(1)


class InteractingLayer(nn.Module):
    """Multi-head self-attention of the fields with a residual.

    Args:
        inputs: width of a field's vector.
        heads: H.
        head_dim: d, the width of a head.
    """

    def __init__(self, inputs: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.attend = nn.Linear(inputs, 3 * heads * head_dim, bias=False)
        self.residual = nn.Linear(inputs, heads * head_dim, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Let every field attend to all: (B, F, inputs) to (B, F, H d)."""
        queries, keys, values = self.attend(fields).unflatten(2, (3, self.heads, self.head_dim)).unbind(2)
        heads = [one.transpose(1, 2) for one in (queries, keys, values)]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return F.relu(attended + self.residual(fields))
