"""CTR backbones over a collection of compressed tables: dense (B, K) and sparse features in, logits (B,) out."""

from recemb.models.base import ModelConfig
from recemb.models.dlrm import DLRMConfig

MODELS: dict[str, type[ModelConfig]] = {"dlrm": DLRMConfig}
"""Every backbone by the name it has on the command line."""

__all__ = ["MODELS", "DLRMConfig", "ModelConfig"]
